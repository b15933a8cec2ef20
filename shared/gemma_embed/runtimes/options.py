"""Checks of constructor arguments: each runs before the argument is used.

Messages name the option and never quote a value that may be secret.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Final

from gemma_embed.errors import ConfigurationError

FLOAT16: Final = (
    "float16 overflows in this model (activations reach 264,000, it ends at 65,504) and gives NaN"
)


def check_kind(name: str, value: object, *kinds: type | None) -> None:
    """Check an option's type.

    Args:
        name: The option.
        value: What was given; only its type is shown.
        kinds: The types allowed; None stands for the value None. A bool is not taken for an int.

    Raises:
        ConfigurationError: If it is of another type.
    """
    if any(
        value is None
        if kind is None
        else isinstance(value, kind) and not (kind is int and isinstance(value, bool))
        for kind in kinds
    ):
        return
    names = " or ".join("None" if kind is None else kind.__name__ for kind in kinds)
    if isinstance(value, type):
        given = f"the class {value.__name__}"
    else:
        given = "None" if value is None else type(value).__name__
    raise ConfigurationError(f"{name} must be {names}, not {given}")


def checked_seconds(name: str, value: float) -> float:
    """Return a time-out: a finite number of seconds above 0.

    Raises:
        ConfigurationError: If it is something else.
    """
    check_kind(name, value, int, float)
    # The bound is some 292 years; no clock takes more. NaN fails both comparisons.
    if not 0 < value <= threading.TIMEOUT_MAX:
        raise ConfigurationError(f"{name}={value!r} must be a finite number of seconds above 0")
    return value


def checked_count(name: str, value: int, least: int, most: int | None = None) -> int:
    """Return a whole number within bounds.

    Raises:
        ConfigurationError: If it is of another type or outside.
    """
    check_kind(name, value, int)
    if value < least or (most is not None and value > most):
        allowed = f"at least {least}" if most is None else f"from {least} to {most}"
        raise ConfigurationError(f"{name}={value} must be {allowed}")
    return value


def check_precision(name: str, value: object, choices: Iterable[str]) -> None:
    """Check the type that a runtime computes in; float16 is refused with the reason.

    Raises:
        ConfigurationError: If it is not one of the choices.
    """
    # torch's own types are printed as torch.float16.
    if str(value).removeprefix("torch.") in ("float16", "half"):
        raise ConfigurationError(f"{name}={value!r}: {FLOAT16}; use {_either(choices)}")
    check_choice(name, value, choices)


def check_choice(name: str, value: object, choices: Iterable[str | None]) -> None:
    """Check an option that has a few possible values.

    Raises:
        ConfigurationError: If it is another one; the message lists them.
    """
    choices = tuple(choices)
    if not isinstance(value, str | None) or value not in choices:
        raise ConfigurationError(f"{name}={value!r} must be {_either(choices)}")


def _either(choices: Iterable[str | None]) -> str:
    return " or ".join(map(repr, choices))
