"""Access to clusters, engines and child processes, and to the user's files, for the commands."""
