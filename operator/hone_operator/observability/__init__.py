"""Metrics, logs and health of the operator itself."""
