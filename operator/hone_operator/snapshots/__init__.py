"""The readers of snapshots: one for each kind, and those of objects, nodes and events that both use."""
