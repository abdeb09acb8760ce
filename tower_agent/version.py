"""The version of this distribution."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def product_version() -> str:
    """As installed; `unknown` when run from a source tree that was never installed."""
    try:
        return version("tower-tunnel")
    except PackageNotFoundError:
        return "unknown"
