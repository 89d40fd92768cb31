"""Adapters: the only modules that start a program or open a connection. Each one hides one external system."""
