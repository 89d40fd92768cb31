"""What an environment should run: the release record in Git, and the aliases in the registry that it follows."""
