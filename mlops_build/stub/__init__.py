"""A stand-in for a service in its callers' tests, made from its contract. Needs no model."""
