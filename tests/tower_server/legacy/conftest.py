"""This room's tests run on the loop that the server runs on."""

from tests.lab.loops import pytest_asyncio_loop_factories as pytest_asyncio_loop_factories
