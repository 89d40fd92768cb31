"""The bridge between the registry and Git: it commits a moved alias, and CI builds and deploys the commit."""
