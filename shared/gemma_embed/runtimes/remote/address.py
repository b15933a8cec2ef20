"""Where a server is."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import urlsplit

from gemma_embed.errors import ConfigurationError

# RFC 1035's lengths; many names in use have an underscore, which it does not allow.
_HOST_NAME = re.compile(r"(?=.{1,253}$)[\w-]{1,63}(\.[\w-]{1,63})*\.?", re.ASCII)


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
    scheme, separator, rest = address.rpartition("://")
    scheme = scheme.lower() or "http"
    if re.search("[@?#]", rest):
        raise ConfigurationError(
            f"the address of {server} contains '@', '?' or '#'; it must be scheme, host, port and "
            'path, and a password or token belongs in headers={"Authorization": ...}'
        )
    place, _, path = rest.partition("/")
    try:
        # IPv6 without brackets has no port.
        parts = urlsplit(
            f"//[{place}]" if place.count(":") > 1 and "[" not in place else "//" + place
        )
        port = {"http": 80, "https": 443}[scheme] if separator else bare_port
        port = port if parts.port is None else parts.port
        host = _connectable(parts.hostname or "127.0.0.1")
        if not port:
            raise ValueError
    except (ValueError, KeyError):
        # Not chained: these quote the address.
        raise ConfigurationError(
            f"the address of {server} is malformed; write it like 127.0.0.1:{bare_port} or "
            "https://models.example.com, with a port from 1 to 65535"
        ) from None
    path = path.strip("/")
    return f"{scheme}://{host}:{port}" + (f"/{path}" if path else "")


def _connectable(name: str) -> str:
    """Return a host that a client can connect to; IPv6 in brackets."""
    if _HOST_NAME.fullmatch(name) and not re.fullmatch(r"[\d.]+", name):
        return name
    address = ipaddress.ip_address(name)
    if address.is_unspecified:
        return "127.0.0.1" if address.version == 4 else "[::1]"
    return str(address) if address.version == 4 else f"[{address}]"


def is_loopback(url: str) -> bool:
    """Tell whether a server is on this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
