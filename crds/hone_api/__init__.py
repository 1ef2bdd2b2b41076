"""Hone's contract: the Kubernetes objects, the files on the claim, and the messages between the packages."""
