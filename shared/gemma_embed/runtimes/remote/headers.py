"""Headers that a server gets with every request. Their values may be secret: none is ever shown."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from gemma_embed.errors import ConfigurationError

# RFC 9110: a token, and visible ASCII with blanks inside. httpx quotes a header it cannot send.
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"([!-~]([ \t!-~]*[!-~])?)?")


@dataclass(frozen=True)
class EnvironmentVariable:
    """A header's value that each process reads for itself, so that no pickle contains it.

    Attributes:
        name: The variable. It must contain the complete value, say ``Bearer abc``.
    """

    name: str

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ConfigurationError("EnvironmentVariable needs the name of a variable")


HeaderValue = str | EnvironmentVariable
Headers = Mapping[str, HeaderValue] | Iterable[tuple[str, HeaderValue]]
# None for a value that a pickle left out.
CheckedHeaders = tuple[tuple[str, HeaderValue | None], ...]


def checked_headers(headers: Headers | None) -> CheckedHeaders:
    """Return a copy of headers that can be sent.

    Args:
        headers: A mapping, or pairs of name and value.

    Raises:
        ConfigurationError: If one cannot; its value is not repeated.
    """
    pairs = headers.items() if isinstance(headers, Mapping) else headers
    try:
        given = () if pairs is None else tuple(pairs)
        # Two characters, or two names in a set, are no name and value.
        if isinstance(pairs, str | bytes) or not all(isinstance(i, tuple | list) for i in given):
            raise TypeError
        checked = tuple((name, value) for name, value in given)
        names = {name.lower() for name, _ in checked if _NAME.fullmatch(name)}
    except (TypeError, ValueError):
        # Not chained: it may quote a value.
        raise ConfigurationError(
            'headers must be a mapping like {"Authorization": ...}, or pairs of name and value'
        ) from None
    if len(names) < len(checked):
        raise ConfigurationError("headers must have HTTP header names, each of them once")
    for name, value in checked:
        if not isinstance(value, EnvironmentVariable):
            _check_value(name, value)
    return checked


def without_secrets(headers: CheckedHeaders) -> CheckedHeaders:
    """Return what may be written down: names of headers, and of environment variables."""
    return tuple(
        (name, value if isinstance(value, EnvironmentVariable) else None) for name, value in headers
    )


def sent_headers(headers: CheckedHeaders) -> dict[str, str]:
    """Return headers as they are sent: names in lower case.

    Raises:
        ConfigurationError: If a pickle left a value out, or an environment variable is unset or
            cannot be sent.
    """
    sent: dict[str, str] = {}
    for name, value in headers:
        if isinstance(value, EnvironmentVariable):
            found = os.environ.get(value.name)
            if found is None:
                raise ConfigurationError(
                    f"headers[{name!r}] comes from the environment variable {value.name}, which is "
                    "not set in this process; set it"
                )
            _check_value(name, found)
        elif value is None:
            raise ConfigurationError(
                f"headers[{name!r}] was left out of the pickle that this runtime comes from, since "
                f"it may be secret; pass headers={{{name!r}: EnvironmentVariable('A_NAME')}} (from "
                "gemma_embed.runtimes) to the original, which each process reads for itself, or "
                "create the runtime again with its headers"
            )
        else:
            found = value
        sent[name.lower()] = found
    return sent


def _check_value(name: str, value: object) -> None:
    if not isinstance(value, str) or not _VALUE.fullmatch(value):
        raise ConfigurationError(
            f"headers[{name!r}] must be a string of visible ASCII characters, "
            "without line breaks and without blanks at its ends"
        )
