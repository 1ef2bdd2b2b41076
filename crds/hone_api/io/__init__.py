"""Ports, standard streams, terminal text, options and the limits of the container, for all programs of Hone."""
