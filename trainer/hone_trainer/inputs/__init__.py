"""What a run reads from outside: the manifest, the hub, and the files of models."""
