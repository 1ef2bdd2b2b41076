"""The plan for a FineTuneJob: its Jobs, its claim, its attempts and its status."""
