"""Ports, standard streams and terminal text, for all programs of Hone."""
