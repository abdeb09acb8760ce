"""HTTP as kubectl does not speak it, through the tunnel and straight: the same status, headers and bodies."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tests.kubernetes.rawhttp import Answer, Connection
from tests.kubernetes.views import Pair, View

pytestmark = pytest.mark.cluster

PLAIN = {
    "a list": ("GET", "/api/v1/namespaces"),
    "metadata only": (
        "GET",
        "/api/v1/nodes",
        "Accept: application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1",
    ),
    "protobuf": ("GET", "/api/v1/namespaces", "Accept: application/vnd.kubernetes.protobuf"),
    "compressed": ("GET", "/openapi/v2", "Accept-Encoding: gzip"),
    "not modified": ("GET", "/version", 'If-None-Match: "x"'),
    "head": ("HEAD", "/api/v1/namespaces"),
    "options": ("OPTIONS", "/api/v1/namespaces"),
    "nowhere": ("GET", "/apis/none.example/v1/things"),
    "an escaped path": ("GET", "/api/v1/namespaces/de%66ault"),
    "a bad selector": ("GET", "/api/v1/namespaces?fieldSelector=%%%"),
}


@pytest.mark.parametrize("name", PLAIN)
def test_answers_are_the_same(pair: Pair, name: str) -> None:
    method, path, *headers = PLAIN[name]

    def ask(view: View) -> Answer:
        with Connection(view) as connection:
            connection.send(connection.request(method, path, *headers))
            return connection.answer(method)

    direct, tunnel = while_nothing_changes(pair, ask)
    assert tunnel == direct


def while_nothing_changes(pair: Pair, ask: Callable[[View], Answer]) -> tuple[Answer, Answer]:
    """A list carries the version of the latest write, and the apiserver renews leases of its own now and then: what is
    compared is asked between two equal answers."""
    for _ in range(10):
        direct, tunnel, again = ask(pair.direct), ask(pair.tunnel), ask(pair.direct)
        if again == direct:
            break
    return direct, tunnel


def test_many_requests_keep_one_connection(pair: Pair) -> None:
    def ask(view: View) -> list[Answer]:
        with Connection(view) as connection:
            answers = []
            for _ in range(20):
                connection.send(connection.request("GET", "/api/v1/namespaces/default"))
                answers.append(connection.answer())
                connection.send(connection.request("HEAD", "/api/v1/namespaces/default"))
                answers.append(connection.answer("HEAD"))
            return answers

    direct, tunnel = (ask(view) for view in pair.both())
    assert tunnel == direct
    assert [answer.status for answer in tunnel] == [200, 405] * 20  # a HEAD is answered with a length and no body


def test_pipelined_requests_are_answered_in_order(pair: Pair) -> None:
    paths = ["/version", "/api/v1/namespaces/default", "/api/v1/namespaces/missing", "/readyz", "/api"] * 4

    def ask(view: View) -> list[Answer]:
        with Connection(view) as connection:
            connection.send(b"".join(connection.request("GET", path) for path in paths))
            return [connection.answer() for _ in paths]

    direct, tunnel = (ask(view) for view in pair.both())
    assert tunnel == direct
    assert [answer.status for answer in tunnel] == [200, 200, 404, 200, 200] * 4


def document(name: str, size: int = 10) -> bytes:
    return json.dumps(
        {"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": name}, "data": {"k": "x" * size}}
    ).encode()


DRY = "/api/v1/namespaces/shared/configmaps?dryRun=All"


def without_times(answer: Answer) -> tuple[int, set[str], dict[str, object]]:
    body = json.loads(answer.body)
    body["metadata"] = {key: value for key, value in body["metadata"].items() if key == "name"}
    return answer.status, {name for name, _ in answer.headers}, body


def test_a_client_that_waits_for_100_continue(pair: Pair) -> None:
    body = document("waited")

    def ask(view: View) -> tuple[bytes, Answer]:
        with Connection(view) as connection:
            headers = ("Content-Type: application/json", f"Content-Length: {len(body)}", "Expect: 100-continue")
            connection.send(connection.request("POST", DRY, *headers))
            interim = connection.interim()
            connection.send(body)
            return interim, connection.answer()

    direct, tunnel = (ask(view) for view in pair.both())
    assert tunnel[0] == direct[0] == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert without_times(tunnel[1]) == without_times(direct[1])
    assert tunnel[1].status == 201


def test_a_refusal_reaches_a_client_that_waits_for_100_continue(pair: Pair) -> None:
    def ask(view: View) -> Answer:
        with Connection(view) as connection:
            headers = ("Content-Type: application/json", "Content-Length: 100", "Expect: 100-continue")
            connection.send(connection.request("POST", "/apis/none.example/v1/things", *headers))
            return connection.answer()

    direct, tunnel = (ask(view) for view in pair.both())
    assert tunnel == direct
    assert tunnel.status == 404


@pytest.mark.parametrize("size", [10, 500_000])
def test_chunked_bodies_with_trailers(pair: Pair, size: int) -> None:
    body = document("chunked", size)
    pieces = [body[at : at + 1000] for at in range(0, len(body), 1000)]
    coded = b"".join(b"%x;ext=1\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\nX-Trailer: after\r\n\r\n"

    def ask(view: View) -> list[Answer]:
        with Connection(view) as connection:
            headers = ("Content-Type: application/json", "Transfer-Encoding: chunked", "Trailer: X-Trailer")
            connection.send(connection.request("POST", DRY, *headers, body=coded))
            first = connection.answer()
            connection.send(connection.request("GET", "/version"))  # the trailers are not taken for a request
            return [first, connection.answer()]

    direct, tunnel = (ask(view) for view in pair.both())
    assert without_times(tunnel[0]) == without_times(direct[0])
    assert tunnel[0].status == 201
    assert tunnel[1] == direct[1]
