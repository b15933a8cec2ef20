"""How long to wait before asking a server again."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC
from email.utils import parsedate_to_datetime

FIRST_PAUSE = 0.5
LONGEST_PAUSE = 8.0
LONGEST_ASKED_PAUSE = 60.0

# Unlike random.random, forked processes do not all draw the same from it.
_random = random.SystemRandom().random


def retry_after_seconds(value: str | None, now: float) -> float | None:
    """Read a ``Retry-After`` header: seconds, or an HTTP date (RFC 9110, 10.2.3).

    Args:
        value: The header; None if there is none.
        now: Unix time, to which a date is compared.

    Returns:
        Seconds from ``now``, at least 0 and of any size; None without a readable header.
    """
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            date = parsedate_to_datetime(value)
            # A date without a zone, "-0000", means UTC; Python would take it for local time.
            seconds = date.replace(tzinfo=date.tzinfo or UTC).timestamp() - now
        except (ValueError, OverflowError):
            return None
    return None if math.isnan(seconds) else max(0.0, seconds)


def pause_seconds(
    attempt: int, asked: float | None, random: Callable[[], float] = _random
) -> float:
    """Return how long to wait after a failed attempt.

    Exponential with full jitter, so that clients that failed together do not come back together
    (https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/).

    Args:
        attempt: Which attempt failed, from 1.
        asked: What the server asked for in ``Retry-After``. It is waited in full, up to
            ``LONGEST_ASKED_PAUSE``.
        random: Gives numbers in [0, 1).

    Returns:
        Seconds.
    """
    # The exponent is bounded because 2.0**10000 overflows.
    jittered = random() * min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(attempt - 1, 10))
    return max(jittered, min(asked or 0.0, LONGEST_ASKED_PAUSE))


async def pause(seconds: float, stop: asyncio.Event) -> bool:
    """Wait, but no longer than until ``stop`` is set; return whether it is set."""
    with suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), seconds)
    return stop.is_set()
