"""The tunnel protocol `tower.v1` as pure state machines: no sockets, clocks, threads or randomness."""
