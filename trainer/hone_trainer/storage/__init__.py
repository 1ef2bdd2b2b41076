"""What a run keeps on disk: atomic files, checkpoints, the output folder and the artifact."""
