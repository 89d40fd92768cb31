"""Old model files into the registry: list them into a CSV file, which people edit, and register those that they chose."""
