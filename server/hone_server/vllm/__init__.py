"""What Hone adds to vLLM: the middleware in its process, and the check before its start."""
