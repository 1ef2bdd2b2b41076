"""Explain why a pod, claim or child is not as it should be, with a reason of the catalogue and a remedy."""
