"""Object stores, registries and servers outside the cluster: their fields, and their failures."""
