"""Copy an artifact to places outside the cluster: planned by digests, resumed, and verified after the upload."""
