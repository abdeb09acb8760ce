"""Measures the tunnel beside the direct way, on one machine in one run; `make bench`."""
