"""How the commands reach clusters, engines and child processes, and read the user's files."""
