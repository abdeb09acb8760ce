"""The controller of a Kubernetes host: makes what follows from each cluster, and makes it again when it was changed."""
