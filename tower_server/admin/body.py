"""Bodies of admin requests: small JSON objects whose keys are known, or a refusal that names the key."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.requests import ClientDisconnect, Request

from daemon.faults import TowerError
from protocol import defaults
from protocol.jsontext import parse_json

MAX_BODY: Final = 1024 * 1024


class Body(BaseModel):
    """The base of every body: unknown keys and wrong kinds are refused, nothing is coerced."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


B = TypeVar("B", bound=Body)


async def read_object(request: Request) -> dict[str, Any]:
    """The body as a JSON object; an empty one is `{}`. TowerError TWR606 or TWR605."""
    data = bytearray()
    try:
        async with asyncio.timeout(defaults.HEAD_DEADLINE):
            async for chunk in request.stream():
                data += chunk
                if len(data) > MAX_BODY:
                    raise TowerError("TWR606", f"the body has more than {MAX_BODY} bytes")
    except TimeoutError:
        raise TowerError("TWR605", f"the body was not complete within {defaults.HEAD_DEADLINE:g} s") from None
    except ClientDisconnect:
        raise TowerError("TWR605", "the connection ended within the body") from None
    if not data.strip():
        return {}
    try:
        document = parse_json(bytes(data))
    except ValueError as error:
        raise TowerError("TWR605", f"the body is not JSON: {str(error)[:200]}") from error
    if not isinstance(document, dict):
        raise TowerError("TWR605", "the body is not a JSON object")
    return document


def checked(model: type[B], document: Mapping[str, Any]) -> B:
    """TowerError TWR605 naming the first key that is wrong."""
    try:
        return model.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        raise TowerError("TWR605", f"{key[:80] or 'the body'}: {first['msg'][:200]}") from error
