"""A service around a model of the registry whose training is gone: its weights, its code and its recorded examples."""
