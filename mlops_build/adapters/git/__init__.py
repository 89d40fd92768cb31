"""Git: read a tree, commit without a checkout, push only if the branch is still at the commit that was read."""
