"""The table of registered models and environments."""
