"""The artifact of a FineTuneJob: its manifest, its reports, and the proof of its files."""
