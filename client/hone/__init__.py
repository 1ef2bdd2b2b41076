"""The Python client of Hone."""
