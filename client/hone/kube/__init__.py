"""Access to a cluster with the user's own rights: objects, logs, pods and ports."""
