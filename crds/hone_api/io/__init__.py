"""What all programs of Hone do with their surroundings: ports, streams, terminals, options, files, container limits."""
