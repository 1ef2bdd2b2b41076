"""Device memory of a job, known before it runs: from the model's config and the spec, without weights or a GPU."""
