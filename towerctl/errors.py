"""What ends a command: always a `TowerError`, so that code, message, mend and exit code come from one table.

Exit codes mean the same in every command and output format: 0 fine, 1 failed, 2 usage, 3 could not check.
"""

from __future__ import annotations

from daemon.faults import FAULTS, TowerError


class ServerUnreachable(TowerError):
    """The admin API did not answer, so nothing is known about what was asked."""

    def __init__(self, message: str, *, mend: str | None = None) -> None:
        super().__init__("TWR602", message, mend=mend)


class AdminRefused(TowerError):
    """The admin API answered and refused; `status` is its HTTP status, `code` what it named, known here or not."""

    def __init__(self, status: int, code: str, message: str, mend: str) -> None:
        super().__init__(code if code in FAULTS else "TWR611", message, mend=mend or None)
        self.status = status
        self.given = code

    @property
    def code(self) -> str:
        return self.given or super().code


def usage(message: str, *, mend: str) -> TowerError:
    """The command line is wrong: exit code 2."""
    return TowerError("TWR601", message, mend=mend)


def not_understood(what: str) -> TowerError:
    """The server answered, but not as this version expects."""
    return TowerError("TWR611", f"the server's answer is not understood: {what}")
