"""What a model version is: how it is named, which files it carries, what may be in them, which environment it needs."""
