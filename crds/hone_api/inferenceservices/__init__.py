"""The InferenceService: its spec and status, and the files for the adapter sidecar."""
