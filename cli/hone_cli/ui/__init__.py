"""Output for the user: lines, hints, consoles and the progress of a job."""
