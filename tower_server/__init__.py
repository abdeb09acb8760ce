"""The host side: tunnels it holds, ports it listens on, the store, the admin API."""
