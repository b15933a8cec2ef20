"""Run programs and watch all their connections.

Python calls an audit hook for each connection, datagram and name look-up of any library. Those to
another machine are refused and logged, and the test fails even if the library ignores the error.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

_HOOK = """if True:
    import os, runpy, sys
    HERE = ("127.0.0.1", "::1", "localhost", b"localhost", "", None)

    def watch(event, arguments):
        if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
            address = arguments[1]
            host = address[0] if isinstance(address, tuple) else None
        elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
            host = arguments[0]
        else:
            return
        if host not in HERE:
            with open(os.environ["WATCHED"], "a") as file:
                file.write(f"{event} {host}\\n")
            raise PermissionError(f"{event} to {host}")

    sys.addaudithook(watch)
    sys.argv = sys.argv[1:]
    if sys.argv[0].endswith(".py"):
        sys.path.insert(0, os.path.dirname(sys.argv[0]))
        runpy.run_path(sys.argv[0], run_name="__main__")
    else:
        exec(sys.argv[0])
    """

# Variables that users have not set are not set here either.
_UNSET = (
    "HF_",
    "TRANSFORMERS_",
    "ANONYMIZED_",
    "DO_NOT_TRACK",
    "LANGSMITH",
    "LANGCHAIN",
    "OLLAMA",
    "ORT_",
)


def run(arguments: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program, and fail if it tried to reach another machine.

    Args:
        arguments: A path that ends in .py and its arguments, or code.
        folder: Its working folder, with the hub's cache.
        **environment: More variables.
    """
    clean = {name: value for name, value in os.environ.items() if not name.startswith(_UNSET)}
    with tempfile.TemporaryDirectory() as place:
        log = Path(place) / "log"
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", _HOOK, *arguments],
            cwd=folder,
            env=clean | {"HF_HOME": str(folder), "WATCHED": str(log)} | environment,
            capture_output=True,
            text=True,
            timeout=110,
        )
        assert not log.exists(), log.read_text() + done.stdout + done.stderr
    return done
