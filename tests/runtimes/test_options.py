"""Checks of constructor arguments, and values that each process creates itself."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from gemma_embed.errors import ConfigurationError
from gemma_embed.runtimes.options import (
    check_choice,
    check_kind,
    checked_count,
    checked_seconds,
)
from gemma_embed.runtimes.per_process import PerProcess

SECRET = "canary-of-a-token-7f3a"


@pytest.mark.parametrize(
    ("kinds", "value"),
    [((str, None), None), ((str, None), "a"), ((int,), 3), ((str, Path), Path("a"))],
)
def test_accepted_types(kinds: tuple[Any, ...], value: object) -> None:
    check_kind("option", value, *kinds)


@pytest.mark.parametrize(
    ("kinds", "value", "message"),
    [
        ((str, None), 5, "option must be str or None, not int"),
        ((str,), SECRET.encode(), "option must be str, not bytes"),
        ((str,), None, "option must be str, not None"),
        ((int,), True, "option must be int, not bool"),
        ((str,), dict, "option must be str, not the class dict"),
    ],
)
def test_refused_types(kinds: tuple[Any, ...], value: object, message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        check_kind("option", value, *kinds)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "value", [0, -1, 0.0, float("inf"), float("nan"), 10**400, -(10**400), True, "5", None]
)
def test_seconds_are_finite_and_above_0(value: Any) -> None:
    with pytest.raises(ConfigurationError, match="seconds"):
        checked_seconds("seconds", value)
    assert checked_seconds("seconds", 0.5) == 0.5


@pytest.mark.parametrize("value", [0, 9, 2.0, True, "2", None])
def test_counts_are_within_bounds(value: Any) -> None:
    with pytest.raises(ConfigurationError, match="count"):
        checked_count("count", value, 1, 8)
    assert checked_count("count", 8, 1, 8) == 8
    assert checked_count("count", 10**30, 1) == 10**30


@pytest.mark.parametrize("value", ["c", "", 1, None, ["a"]])
def test_choices_are_listed(value: Any) -> None:
    with pytest.raises(ConfigurationError, match="must be 'a' or 'b'"):
        check_choice("option", value, ("a", "b"))
    check_choice("option", None, ("a", None))


class TestPerProcess:
    def test_it_is_made_once_for_many_threads(self) -> None:
        made: list[object] = []

        def make() -> object:
            time.sleep(0.02)
            made.append(object())
            return made[-1]

        value = PerProcess(make)
        seen: list[object] = []
        threads = [threading.Thread(target=lambda: seen.append(value.get())) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(made) == 1
        assert seen == made * 8

    def test_after_a_failure_the_next_call_tries_again(self) -> None:
        attempts = iter([ValueError("first"), None])

        def make() -> str:
            error = next(attempts)
            if error:
                raise error
            return "made"

        value = PerProcess(make)
        with pytest.raises(ValueError, match="first"):
            value.get()
        assert value.get() == "made"

    def test_it_is_made_again_after_clear(self) -> None:
        value = PerProcess(object)
        first = value.get()
        value.clear()
        assert value.get() is not first
        assert value.get() is value.get()

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
    @pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
    def test_a_forked_child_makes_its_own_even_if_a_thread_has_the_lock(self) -> None:
        slow = threading.Event()
        value = PerProcess(lambda: (slow.wait(10), os.getpid())[1])
        thread = threading.Thread(target=value.get)
        thread.start()
        while not value._locks:
            time.sleep(0.001)
        child = os.fork()
        if child == 0:
            slow.set()
            os._exit(value.get() != os.getpid())
        slow.set()
        thread.join()
        assert os.waitpid(child, 0)[1] == 0
        assert value.get() == os.getpid()
