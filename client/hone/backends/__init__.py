"""Where jobs and services run: in a cluster, or on this machine. Both keep objects of the same form."""
