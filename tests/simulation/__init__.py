"""The real protocol code of many agents and a server on a virtual clock and a simulated network, driven by a seed.

`plan` draws what happens, `world` is time, `network` carries bytes, `processes` dial and hold tunnels, `ends` are the
shells around sessions, `books` and `wire` hold the invariants, both from outside the session; `cluster` has the
server's own choice among tunnels, `attempts` resumes that must be refused. `run` plays one plan,
`shrink` makes a failing one small, `mutants` shows that planted bugs are seen. `python -m tests.simulation --help`.
"""
