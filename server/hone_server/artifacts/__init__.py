"""Artifacts before an engine loads them: sources and digests."""
