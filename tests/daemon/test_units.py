from __future__ import annotations

import socket

import pytest

from daemon.units import (
    MAX_DURATION,
    MAX_SIZE,
    format_age,
    format_bytes,
    format_count,
    format_duration,
    parse_duration,
    parse_size,
    spell_duration,
    spell_size,
    split_address,
)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("256KiB", 262144),
        ("48Mi", 50331648),
        ("1MB", 1_000_000),
        ("1.5GiB", 1610612736),
        ("0", 0),
        (" 7 kb ", 7000),
        (9, 9),
    ],
)
def test_sizes(text: object, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "KiB", "-1", "1 apple", "1e3", "1KiB2", -1, 1.5, True, None, [1]])
def test_what_is_no_size_says_what_one_looks_like(text: object) -> None:
    with pytest.raises(ValueError, match="a size is a"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("40s", 40), ("1h30m", 5400), ("200ms", 0.2), ("7d", 604800), ("0.5s", 0.5), (3, 3), ("15", 15), ("0", 0)],
)
def test_durations(text: object, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "s", "-1s", "1 week", "1h 30", "h1", float("inf"), float("nan"), -2, True, None])
def test_what_is_no_duration_says_what_one_looks_like(text: object) -> None:
    with pytest.raises(ValueError, match='such as "200ms"'):
        parse_duration(text)


@pytest.mark.parametrize("text", [f"{MAX_SIZE + 2**10}", "9" * 400, "99999999999GiB", MAX_SIZE + 1])
def test_a_size_beyond_all_memory_is_a_mistake(text: object) -> None:
    with pytest.raises(ValueError, match="at most 1073741824GiB"):
        parse_size(text)


@pytest.mark.parametrize("text", ["36501d", f"{'9' * 300}s", 4e9, 10**400])
def test_a_duration_beyond_what_clocks_take_is_a_mistake(text: object) -> None:
    with pytest.raises(ValueError, match="at most 36500d"):
        parse_duration(text)


def test_the_longest_duration_is_one_that_a_clock_takes() -> None:
    assert parse_duration("36500d") == MAX_DURATION
    with socket.socket() as one:
        one.settimeout(MAX_DURATION)


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0B"), (1025, "1025B"), (2048, "2KiB"), (50331648, "48MiB"), (5_000_000, "5MB"), (3 * 1024**3, "3GiB")],
)
def test_a_size_is_spelled_as_it_is_read(size: int, text: str) -> None:
    assert spell_size(size) == text
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0s"),
        (0.5, "500ms"),
        (1.1, "1100ms"),
        (0.0125, "0.0125s"),
        (1e-7, "0.0000001s"),
        (40.0, "40s"),
        (90.0, "90s"),
        (5400.0, "90m"),
        (3600.0, "1h"),
        (7 * 86400.0, "7d"),
    ],
)
def test_a_duration_is_spelled_as_it_is_read(seconds: float, text: str) -> None:
    assert spell_duration(seconds) == text
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (-3, "0s"),
        (119, "119s"),
        (120, "2m"),
        (192, "3m12s"),
        (720, "12m"),
        (3 * 3600 + 300, "3h5m"),
        (20 * 3600, "20h"),
        (2 * 86400 + 4 * 3600, "2d4h"),
        (41 * 86400, "41d"),
        (3 * 365 * 86400, "3y"),
    ],
)
def test_ages_as_kubectl_prints_them(seconds: float | None, text: str) -> None:
    assert format_age(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (0.00085, "850us"), (0.0041, "4.1ms"), (0.031, "31ms"), (1.2, "1.2s"), (720, "12m")],
)
def test_measured_times(seconds: float | None, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"), [(None, "-"), (0, "0"), (512, "512"), (1126, "1.1Ki"), (48 << 20, "48Mi"), (2 << 30, "2.0Gi")]
)
def test_byte_counts(count: float | None, text: str) -> None:
    assert format_bytes(count) == text


@pytest.mark.parametrize(
    ("text", "pair"),
    [("127.0.0.1:80", ("127.0.0.1", 80)), (":80", ("", 80)), ("[::1]:80", ("::1", 80)), ("h:0", ("h", 0))],
)
def test_addresses(text: str, pair: tuple[str, int]) -> None:
    assert split_address(text) == pair


@pytest.mark.parametrize("text", ["", "80", "h", "h:", "h:x", "h:70000", "::1:80", "h:-1", "h:8²", 80])
def test_what_is_no_address_says_what_one_looks_like(text: object) -> None:
    with pytest.raises(ValueError, match=r"must be HOST:PORT, \[IPV6\]:PORT or :PORT"):
        split_address(text)


@pytest.mark.parametrize("text", ["a..b:80", f"{'a' * 64}:80", ".:80"])
def test_a_name_that_nobody_could_look_up_is_no_host(text: str) -> None:
    with pytest.raises(ValueError, match="is no host"):
        split_address(text)


@pytest.mark.parametrize("text", [":80", "h:0", "h", "::1:80"])
def test_what_can_be_listened_on_cannot_always_be_dialled(text: str) -> None:
    with pytest.raises(ValueError, match="must be HOST:PORT such as"):
        split_address(text, listener=False)


def test_one_is_not_many() -> None:
    assert [format_count(number, "tunnel") for number in (0, 1, 2)] == ["0 tunnels", "1 tunnel", "2 tunnels"]
