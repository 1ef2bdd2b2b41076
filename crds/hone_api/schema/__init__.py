"""CRDs, validation and reference pages, made from the models."""
