"""The FineTuneJob: its spec and its status."""
