"""What an administrator sets up once, before a service's plans can run: CI system, Git host, image registry, cluster, MLflow, S3.

items.toml is the list, items.py fills in the service's names (names.py). `mlops-build doctor --ci --checklist` prints it. `doctor --ci`
runs the checks that are possible from an agent (checks.py). A check changes nothing: it reads or does a dry run, and ends within seconds.
"""
