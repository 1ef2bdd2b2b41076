"""Replaces chardet, which the operator's image does not have.

The tests' environment has it, and requests, which kopf imports, would load it: 11 MiB.
"""

raise ImportError("the operator's image has no chardet")
