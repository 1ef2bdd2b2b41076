"""In place of chardet, which the operator's image does not have.

A package of the tests brings it, and requests, which kopf imports, would load it: 11 MiB.
"""

raise ImportError("the operator's image has no chardet")
