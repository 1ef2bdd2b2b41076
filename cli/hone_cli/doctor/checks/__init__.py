"""The checks of `hone doctor` for a cluster, as pure functions of its facts."""
