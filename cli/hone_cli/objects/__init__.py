"""Decide what the commands show of Hone's objects, and what they may change. Pure: `client` reads the cluster."""
