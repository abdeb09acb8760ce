"""The server's records: one interface, one implementation a file; nothing above it knows which one it talks to."""
