"""The asyncio shells around the pure protocol: WebSocket carrier, tunnel, streams, TLS pump, splice."""
