"""``OLLAMA_HOST``, read as Ollama reads it."""

from __future__ import annotations

from gemma_embed.runtimes.remote.endpoint import server_url

OLLAMA_PORT = 11434


def resolve_host(host: str) -> str:
    """Return the URL that a value of ``OLLAMA_HOST`` stands for.

    The rules are those of Ollama's own ``envconfig.Host``, so that every value that works for the
    ``ollama`` command works here. Two differ: a malformed port is an error, where Ollama warns
    and takes the default; and an address to listen on becomes one to connect to.

    Raises:
        ConfigurationError: If it is malformed, or has a user name or a query. These may be
            secrets; the message does not repeat them.
    """
    value = host.strip().strip("\"'").strip()
    if value == "ollama.com":
        value = "https://ollama.com"
    return server_url(value, server="the Ollama server", bare_port=OLLAMA_PORT)
