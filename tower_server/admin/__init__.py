"""The admin API: HTTP and JSON on a Unix socket, the only way in for the command line."""
