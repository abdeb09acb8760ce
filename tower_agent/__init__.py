"""The member side: dialer, identity, services, policy, probe."""
