"""The model version: its name and tags, its files and their scan, its contract, and its environment."""
