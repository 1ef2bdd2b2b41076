"""The inference engines and the artifacts that they load. Another engine is a module, and a line in registry.py."""
