"""What people must do by hand, once, before a service's plans can run: in Bamboo, Bitbucket, the image registry, the cluster, MLflow, S3.

One list (items.py) with the service's own names (names.py). `mlops-build doctor --ci --checklist` prints it; `doctor --ci` looks from an
agent at each line that can be seen from there (agent.py, host.py, image_registry.py, cluster.py, storage.py). A look changes nothing: it
reads, or asks what it would be allowed to do, and ends within seconds.
"""
