"""The parts that all of Hone's pods have in common: settings, security levels and access to GPUs."""
