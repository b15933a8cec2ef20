"""Where a server is, and the headers that it gets with every request."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from gemma_embed.errors import ConfigurationError

DEFAULT_PORTS = {"http": 80, "https": 443}

# RFC 1035's lengths; many names in use have an underscore, which it does not allow.
_HOST_NAME = re.compile(r"[\w-]{1,63}(\.[\w-]{1,63})*\.?", re.ASCII)
# RFC 9110: a token, and visible ASCII with blanks inside. httpx quotes a header it cannot send.
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"([!-~]([ \t!-~]*[!-~])?)?")


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


@dataclass(frozen=True)
class Endpoint:
    """A server, and what to send it with every request.

    Attributes:
        url: Scheme, host, port and path; never a user name, a password or a query.
        headers: Names and values; None for a value that a pickle left out. Secret: no ``repr`` or
            message shows them.
    """

    url: str
    headers: tuple[tuple[str, HeaderValue | None], ...] = field(default=(), repr=False)

    def without_secrets(self) -> Endpoint:
        """Return what may be written down: names of headers, and of environment variables."""
        return Endpoint(
            self.url,
            tuple(
                (name, value if isinstance(value, EnvironmentVariable) else None)
                for name, value in self.headers
            ),
        )

    def sent_headers(self) -> dict[str, str]:
        """Return the headers as they are sent: names in lower case.

        Raises:
            ConfigurationError: If a pickle left a value out, or an environment variable is unset
                or cannot be sent.
        """
        return {name.lower(): _sent_value(name, value) for name, value in self.headers}

    @property
    def origin(self) -> str:
        """The URL without its path: what messages show."""
        return "/".join(self.url.split("/", 3)[:3])

    @property
    def loopback(self) -> bool:
        """Whether the server is on this machine."""
        host = self.origin.partition("://")[2].rpartition(":")[0].strip("[]")
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host.lower() == "localhost"


def server_url(address: str, *, server: str, bare_port: int) -> str:
    """Return the URL of a server, from any form in which users write an address.

    Args:
        address: Say ``127.0.0.1``, ``gpu-box:8080``, ``https://models.example.com/v1``, or
            nothing, which is this machine. An address to listen on, such as ``0.0.0.0``, becomes
            one to connect to.
        server: What messages call the server.
        bare_port: The port of an address without scheme and port.

    Returns:
        Scheme, host, port, and the path if there is one.

    Raises:
        ConfigurationError: If it is malformed, or has a user name or a query. These may be
            secrets; the message does not repeat them.
    """
    scheme, separator, rest = address.partition("://")
    if not separator:
        scheme, rest = "http", address
    scheme = scheme.lower()
    if "@" in rest:
        raise ConfigurationError(
            f"the address of {server} contains a user name or password; leave it out and pass "
            'headers={"Authorization": ...} instead'
        )
    if "?" in rest or "#" in rest:
        raise ConfigurationError(
            f"the address of {server} contains '?' or '#'; it must be scheme, host, port and "
            "path, and a token belongs in headers={...}"
        )
    if scheme not in DEFAULT_PORTS:
        raise ConfigurationError(
            f"the address of {server} must start with http:// or https://, or be a bare host with "
            "or without a port"
        )
    place, _, path = rest.partition("/")
    bracketed = re.fullmatch(r"\[([^\]]*)\](?::(.*))?", place)
    if bracketed:
        host, port = bracketed[1], bracketed[2] or ""
    elif place.count(":") > 1:
        # An IPv6 address without brackets, so without a port.
        host, port = place, ""
    else:
        host, _, port = place.partition(":")
    if port and not (port.isascii() and port.isdigit() and 0 < int(port[:6]) <= 65535):
        raise ConfigurationError(
            f"the port in the address of {server} must be a number from 1 to 65535, such as "
            f"{bare_port}"
        )
    port = port or str(DEFAULT_PORTS[scheme] if separator else bare_port)
    path = path.strip("/")
    return f"{scheme}://{_connectable(host, server)}:{port}" + (f"/{path}" if path else "")


def _connectable(name: str, server: str) -> str:
    """Return a host that a client can connect to; IPv6 in brackets."""
    if not name:
        return "127.0.0.1"
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        if not _HOST_NAME.fullmatch(name) or len(name) > 253:
            raise ConfigurationError(
                f"the host in the address of {server} is neither a name nor an IP address; write "
                "the address like 127.0.0.1:8080 or https://models.example.com"
            ) from None
        return name
    if address.is_unspecified:
        return "127.0.0.1" if address.version == 4 else "[::1]"
    return str(address) if address.version == 4 else f"[{address}]"


def checked_headers(headers: Headers | None) -> tuple[tuple[str, HeaderValue], ...]:
    """Return a copy of headers that can be sent.

    Args:
        headers: A mapping, or pairs of name and value.

    Raises:
        ConfigurationError: If one cannot; its value is not repeated.
    """
    pairs = headers.items() if isinstance(headers, Mapping) else headers
    if isinstance(pairs, str | bytes) or not isinstance(pairs, Iterable | None):
        raise ConfigurationError(
            f'headers must be a mapping like {{"Authorization": ...}}, not {type(pairs).__name__}'
        )
    checked: dict[str, tuple[str, HeaderValue]] = {}
    for pair in pairs or ():
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise ConfigurationError("headers must be a mapping, or pairs of name and value")
        name, value = pair
        if not isinstance(name, str) or not _HEADER_NAME.fullmatch(name):
            raise ConfigurationError("headers has a name that is not an HTTP header name")
        if name.lower() in checked:
            raise ConfigurationError(f"headers has {name!r} more than once; give it one value")
        if not isinstance(value, EnvironmentVariable):
            _check_value(name, value)
        checked[name.lower()] = (name, value)
    return tuple(checked.values())


def _check_value(name: str, value: object) -> None:
    if not isinstance(value, str) or not _HEADER_VALUE.fullmatch(value):
        raise ConfigurationError(
            f"headers[{name!r}] must be a string of visible ASCII characters, "
            "without line breaks and without blanks at its ends"
        )


def _sent_value(name: str, value: HeaderValue | None) -> str:
    if isinstance(value, EnvironmentVariable):
        found = os.environ.get(value.name)
        if found is None:
            raise ConfigurationError(
                f"headers[{name!r}] comes from the environment variable {value.name}, which is not "
                "set in this process; set it"
            )
        _check_value(name, found)
        return found
    if value is None:
        raise ConfigurationError(
            f"headers[{name!r}] was left out of the pickle that this runtime comes from, since it "
            f"may be secret; pass headers={{{name!r}: EnvironmentVariable('A_NAME')}} (from "
            "gemma_embed.runtimes) to the original, which each process reads for itself, or "
            "create the runtime again with its headers"
        )
    return value
