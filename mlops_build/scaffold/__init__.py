"""Starting services from the template and keeping them up to date."""
