"""Collecting thousands of tests makes a heap that lives as long as the run: no collection of garbage looks at it.

A plugin for pytest. A look at all of it takes a tenth of a second, many a second on a busy machine: longer than what
some tests hold the product to, and a part of what all of them take.
"""

from __future__ import annotations

import gc
from collections.abc import Generator

import pytest


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()
