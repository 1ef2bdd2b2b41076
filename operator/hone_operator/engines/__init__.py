"""The inference engines, and what they load: another engine is a module, and a line in registry.py."""
