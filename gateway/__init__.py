"""The HTTP part that authenticates callers in front of an apiserver."""
