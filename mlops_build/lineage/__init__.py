"""The origin of a model version."""
