"""PEM for OpenSSL, which reads keys from files only: files in memory, so that no key touches a disk."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def in_memory(pem: bytes) -> Iterator[str]:
    """The path of a file that holds `pem` and exists as long as the context; this process alone can open it."""
    descriptor = os.memfd_create("tower-pem", os.MFD_CLOEXEC)
    try:
        os.fchmod(descriptor, 0o600)
        view = memoryview(pem)
        while view:
            view = view[os.write(descriptor, view) :]
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)
