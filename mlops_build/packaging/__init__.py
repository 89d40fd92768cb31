"""From a model version to a build context: a folder that any image builder turns into an image with nothing else."""
