"""From a build context to an HTTP service that speaks MLflow's scoring protocol. Needs no registry."""
