"""The plan for an InferenceService: its engine, adapters, roll-outs, scaling and status."""
