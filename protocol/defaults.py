"""Every default and limit of the product, in one place.

Units are in the names: seconds unless `_BYTES`, `_DAYS` or a count says otherwise. A test compares this module with the
table of defaults in docs/OPERATIONS.md, so neither can drift from the other.
"""

from __future__ import annotations

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * 1024

# Addresses and places.
TUNNEL_PORT: Final = 8443
TUNNEL_PATH: Final = "/v1/tunnel"
SERVER_HEALTH_ADDRESS: Final = "127.0.0.1:9443"
AGENT_HEALTH_ADDRESS: Final = "127.0.0.1:9444"
SERVER_CONFIG_FILE: Final = "/etc/tower/server.yaml"
AGENT_CONFIG_FILE: Final = "/etc/tower/agent.yaml"
STATE_DIR: Final = "/var/lib/tower"
AGENT_STATE_DIR: Final = "/var/lib/tower-agent"
ADMIN_SOCKET: Final = "/run/tower/admin.sock"
PORT_RANGE: Final = (6000, 7000)
KUBESPHERE_PORT_OFFSET: Final = 10000

# Lifetimes.
CA_DAYS: Final = 3650
ISSUER_DAYS: Final = 1825
AGENT_IDENTITY_DAYS: Final = 7
EXPIRED_IDENTITY_GRACE_DAYS: Final = 90  # an expired, unrevoked identity may still renew, and nothing else
CALLER_HOURS: Final = 24
CLUSTER_KUBECONFIG_DAYS: Final = 30
RENEW_AT: Final = 2 / 3  # of a certificate's life
TOKEN_LIFETIME: Final = 3600.0
TOKEN_USES: Final = 1

# Liveness.
PING_INTERVAL: Final = 5.0
DEAD_AFTER: Final = 15.0
BACKOFF_MIN: Final = 0.2
BACKOFF_MAX: Final = 30.0

# Deadlines.
DIAL_DEADLINE: Final = 5.0
HANDSHAKE_DEADLINE: Final = 10.0
HEAD_DEADLINE: Final = 10.0
PROBE_FRESH_FOR: Final = 30.0
PROBE_INTERVAL: Final = 10.0
HOLD: Final = 2.0
HOLD_WAITERS: Final = 256
RETURN_WINDOW: Final = 40.0  # how long after its last tunnel a cluster is worth holding a caller for

# Sizes.
MAX_HEAD_BYTES: Final = 64 * KIB
MAX_HEADER_FIELDS: Final = 200
MAX_FRAME_PAYLOAD: Final = 64 * KIB
MAX_HANDSHAKE_BYTES: Final = 16 * KIB
MAX_CONTROL_LINE_BYTES: Final = 256 * KIB
INITIAL_CREDIT: Final = 256 * KIB
RESERVED_CREDIT: Final = 16 * KIB
MAX_CREDIT: Final = 32 * MIB
TUNNEL_BUDGET: Final = 48 * MIB
PROCESS_BUDGET: Final = 48 * MIB

# Counts.
MAX_STREAMS: Final = 10_000
OPEN_BACKLOG: Final = 256
