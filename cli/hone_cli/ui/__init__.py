"""What the user reads: lines, hints, consoles and the progress of a job."""
