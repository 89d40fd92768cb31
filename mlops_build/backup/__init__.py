"""Backups of a registry: the dump of MLflow's database, and every artifact that it names, once by its SHA-256."""
