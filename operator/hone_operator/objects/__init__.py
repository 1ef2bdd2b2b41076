"""Kubernetes objects as plain JSON: kinds, quantities, texts and sizes."""
