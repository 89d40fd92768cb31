"""Releases: the release record of an environment in Git, and the alias in the registry that it follows."""
