"""Write and check manifests: from the arguments of the client, and from the user's files. Pure."""
