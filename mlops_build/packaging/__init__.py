"""Write a model version as a build context: a folder from which any image builder can build the image."""
