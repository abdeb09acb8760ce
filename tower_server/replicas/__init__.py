"""Several tower servers of one host, which find each other and pass callers on to whoever holds a cluster's tunnels."""
