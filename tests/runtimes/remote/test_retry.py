"""Pauses before a retry."""

from __future__ import annotations

import asyncio
import time

import pytest

from gemma_embed.runtimes.remote import retry

NOW = 1_000_000_000.0  # Sun, 09 Sep 2001 01:46:40 GMT


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("0", 0.0),
        ("7", 7.0),
        (" 7 ", 7.0),
        ("1.5", 1.5),
        ("-3", 0.0),
        ("nan", None),
        ("soon", None),
        ("", None),
        ("Sun, 09 Sep 2001 01:47:10 GMT", 30.0),
        ("Sun, 09 Sep 2001 01:47:10 -0000", 30.0),
        ("Sun, 09 Sep 2001 03:47:10 +0200", 30.0),
        ("Sun, 09 Sep 2001 01:46:10 GMT", 0.0),
        ("Sun, 99 Sep 2001 01:46:10 GMT", None),
    ],
)
def test_retry_after_is_read(header: str | None, seconds: float | None) -> None:
    assert retry.retry_after_seconds(header, NOW) == seconds


def test_without_jitter_pauses_double_up_to_the_longest() -> None:
    pauses = [retry.pause_seconds(attempt, None, lambda: 1.0) for attempt in range(1, 8)]
    assert pauses == [0.5, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0]
    assert retry.pause_seconds(10_000, None, lambda: 1.0) == 8.0


def test_jitter_covers_the_full_pause() -> None:
    assert retry.pause_seconds(3, None, lambda: 0.0) == 0.0
    assert retry.pause_seconds(3, None, lambda: 0.25) == 0.5


@pytest.mark.parametrize(
    ("asked", "waited"), [(0.0, 0.5), (0.1, 0.5), (7.0, 7.0), (1e9, 60.0), (float("inf"), 60.0)]
)
def test_a_requested_pause_is_waited_in_full_up_to_a_limit(asked: float, waited: float) -> None:
    assert retry.pause_seconds(1, asked, lambda: 1.0) == waited


async def test_a_pause_ends_when_the_work_is_stopped() -> None:
    stop = asyncio.Event()
    assert not await retry.pause(0.0, stop)
    assert not await retry.pause(0.01, stop)
    asyncio.get_running_loop().call_later(0.05, stop.set)
    started = time.monotonic()
    assert await retry.pause(30.0, stop)
    assert time.monotonic() - started < 5.0
