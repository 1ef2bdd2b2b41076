"""Decide what is shown of Hone's objects, and what may be changed. Pure: `kube` reads the cluster."""
