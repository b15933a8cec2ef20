"""Where an Ollama server is, read as Ollama reads ``OLLAMA_HOST``."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from gemma_embed.errors import ConfigurationError

DEFAULT_PORTS = {"http": 80, "https": 443}
OLLAMA_PORT = 11434

# RFC 1035's lengths; the underscore is no part of it, and yet of many names.
_HOST_NAME = re.compile(r"[\w-]{1,63}(\.[\w-]{1,63})*\.?", re.ASCII)
# RFC 9110: a token, and visible ASCII with blanks inside. httpx quotes what it does not like.
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"([!-~]([ \t!-~]*[!-~])?)?")


@dataclass(frozen=True)
class EnvironmentVariable:
    """A header's value that is read where and when it is sent, and so is in no pickle.

    Attributes:
        name: The variable. It must hold the whole value, say ``Bearer abc``.
    """

    name: str

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ConfigurationError("EnvironmentVariable needs the name of a variable")


Header = tuple[str, str | EnvironmentVariable | None]


@dataclass(frozen=True)
class Endpoint:
    """A server, and what to send it with every request.

    Attributes:
        url: Scheme, host, port and path; never a user name, a password or a query.
        headers: Names and values; None for a value that a pickle left out. Secret: no ``repr`` or
            message shows them.
    """

    url: str
    headers: tuple[Header, ...] = field(default=(), repr=False)

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
            ConfigurationError: If a value was left out of the pickle that this comes from, or an
                environment variable is unset or cannot be sent.
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


def resolve_host(host: str) -> str:
    """Return the URL that a value of ``OLLAMA_HOST`` stands for.

    The rules are those of Ollama's own ``envconfig.Host``, so that every value that works for the
    ``ollama`` command works here. Two differ: a port that is none is an error, where Ollama
    warns and takes the default; and an address to listen on becomes one to connect to.

    Args:
        host: Say ``127.0.0.1``, ``gpu-box:8080``, ``https://models.example.com/ollama``, or
            nothing, which is this machine.

    Returns:
        Scheme, host, port, and the path if there is one.

    Raises:
        ConfigurationError: If it is no such address, or holds a user name or a query. These may
            be secrets; the message does not repeat them.
    """
    value = host.strip().strip("\"'").strip()
    scheme, separator, rest = value.partition("://")
    if not separator:
        scheme, rest = "http", value
    scheme = scheme.lower()
    port = DEFAULT_PORTS.get(scheme, OLLAMA_PORT) if separator else OLLAMA_PORT
    if value == "ollama.com":
        scheme, port = "https", 443
    place, _, path = rest.partition("/")
    if "@" in rest:
        raise ConfigurationError(
            "the address of the Ollama server holds a user name or password; leave it out and "
            'pass headers={"Authorization": ...} instead'
        )
    if "?" in rest or "#" in rest:
        raise ConfigurationError(
            "the address of the Ollama server holds '?' or '#'; it must be scheme, host, port and "
            "path, and a token belongs in headers={...}"
        )
    if scheme not in DEFAULT_PORTS:
        raise ConfigurationError(
            "the address of the Ollama server must start with http:// or https://, or be a bare "
            "host with or without a port"
        )
    name, port = _host_and_port(place, port)
    path = path.strip("/")
    return f"{scheme}://{name}:{port}" + (f"/{path}" if path else "")


def _host_and_port(place: str, default: int) -> tuple[str, int]:
    """Split ``host:port``, either of which may be missing; IPv6 comes back in brackets."""
    bracketed = re.fullmatch(r"\[([^\]]*)\](?::(.*))?", place)
    if bracketed:
        name, port = bracketed[1], bracketed[2] or ""
    elif place.count(":") > 1:
        name, port = place, ""
    else:
        name, _, port = place.partition(":")
    if port and not (port.isascii() and port.isdigit() and 0 < int(port[:6]) <= 65535):
        raise ConfigurationError(
            "the port in the address of the Ollama server must be a number from 1 to 65535; "
            f"Ollama's own is {OLLAMA_PORT}"
        )
    return _connectable(name), int(port) if port else default


def _connectable(name: str) -> str:
    """Return a host to connect to: 0.0.0.0 and :: are only to listen on."""
    if not name:
        return "127.0.0.1"
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        if not _HOST_NAME.fullmatch(name) or len(name) > 253:
            raise ConfigurationError(
                "the address of the Ollama server has a host that is neither a name nor an IP "
                "address; write it like 127.0.0.1:11434 or https://models.example.com"
            ) from None
        return name
    if address.is_unspecified:
        return "127.0.0.1" if address.version == 4 else "[::1]"
    return str(address) if address.version == 4 else f"[{address}]"


def checked_headers(
    headers: Mapping[str, str | EnvironmentVariable] | None,
) -> tuple[Header, ...]:
    """Return a copy of headers that can be sent.

    Raises:
        ConfigurationError: If one cannot; its value is not repeated.
    """
    for name, value in (headers or {}).items():
        if not isinstance(name, str) or not _HEADER_NAME.fullmatch(name):
            raise ConfigurationError("headers has a name that is no HTTP header name")
        if not isinstance(value, EnvironmentVariable):
            _check_value(name, value)
    return tuple((headers or {}).items())


def _check_value(name: str, value: object) -> None:
    if not isinstance(value, str) or not _HEADER_VALUE.fullmatch(value):
        raise ConfigurationError(
            f"headers[{name!r}] must be a string of visible ASCII characters, "
            "without a line break or blanks round it"
        )


def _sent_value(name: str, value: str | EnvironmentVariable | None) -> str:
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
            "gemma_embed.runtimes) to the original, which each process reads for itself, or make "
            "the runtime anew with its headers"
        )
    return value
