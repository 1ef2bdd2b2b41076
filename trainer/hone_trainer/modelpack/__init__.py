"""Models and datasets as artifacts of an OCI registry: media types, manifests, and layers that are archives."""
