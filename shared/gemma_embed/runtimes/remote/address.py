"""Where a server is."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import urlsplit

from gemma_embed.errors import ConfigurationError

_PORTS = {"http": 80, "https": 443}
_PLACE = re.compile(r"(?:\[([^\[\]]*)\]|([^:\[\]]*))(?::([0-9]{0,5}))?")
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
    scheme, separator, rest = address.partition("://")
    if not separator:
        scheme, rest = "http", address
    if re.search("[@?#]", rest):
        raise ConfigurationError(
            f"the address of {server} contains '@', '?' or '#'; it must be scheme, host, port and "
            'path, and a password or token belongs in headers={"Authorization": ...}'
        )
    place, _, path = rest.partition("/")
    # IPv6 without brackets has no port.
    bare = place.count(":") > 1 and "[" not in place
    parts = _PLACE.fullmatch(f"[{place}]" if bare else place)
    usual = _PORTS.get(scheme.lower())
    host = _connectable(parts[1] or parts[2] or "127.0.0.1") if parts else ""
    port = int(parts[3] or (separator and usual) or bare_port) if parts else 0
    if not usual or not host or not 0 < port < 65536:
        raise ConfigurationError(
            f"the address of {server} is malformed; write it like 127.0.0.1:{bare_port} or "
            "https://models.example.com, with a port from 1 to 65535"
        )
    path = path.strip("/")
    return f"{scheme.lower()}://{host}:{port}" + (f"/{path}" if path else "")


def _connectable(name: str) -> str:
    """Return a host that a client can connect to, IPv6 in brackets; empty for a malformed one."""
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return name if _HOST_NAME.fullmatch(name) else ""
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
