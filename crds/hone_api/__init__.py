"""Hone's contract: the Kubernetes objects, the files on the claim, and what every room says to the others."""
