"""A model version's origin: what it was made from."""
