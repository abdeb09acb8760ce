"""Kubernetes over plain HTTP: access, a client of unstructured objects, a reflector. No generated models."""
