"""The bridge between the registry and Git: a moved alias becomes a commit that CI builds and deploys."""
