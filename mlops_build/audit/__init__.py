"""What does not fit together in the registry, the artifact store, the DVC remotes and the repositories. Nothing is changed."""
