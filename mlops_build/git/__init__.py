"""Git: read a tree, commit without a checkout, push only onto what was read."""
