"""Run programs and watch all their connections.

Python calls an audit hook for each connection, datagram and name look-up of any library. Those to
another machine are refused and logged, and the test fails even if the library ignores the error.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

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

    def execute(arguments):
        sys.argv = arguments
        if arguments[0].endswith(".py"):
            sys.path.insert(0, os.path.dirname(arguments[0]))
            runpy.run_path(arguments[0], run_name="__main__")
        else:
            exec(arguments[0], {"__name__": "__main__"})

    sys.addaudithook(watch)
    """

_ONE = """
execute(sys.argv[1:])
"""

_MANY = """
import contextlib, io, json, traceback

answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
for line in sys.stdin:
    arguments, folder, environment = json.loads(line)
    os.chdir(folder)
    os.environ.update(environment)
    output, code = io.StringIO(), 0
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            execute(arguments)
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
            print(ended.code if code and not isinstance(ended.code, int) else "", file=sys.stderr)
        except BaseException:
            code = 1
            traceback.print_exc()
    print(json.dumps([code, output.getvalue()]), file=answers, flush=True)
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


class Run(Protocol):
    """Runs a program, a path that ends in .py and its arguments, or code.

    Its arguments are the program, its working folder and more variables. It returns the exit code
    and the output, and fails if the program tried to reach another machine.
    """

    def __call__(
        self, arguments: list[str], folder: Path, /, **environment: str
    ) -> tuple[int, str]: ...


def run(arguments: list[str], folder: Path, /, **environment: str) -> tuple[int, str]:
    """See ``Run``: in a process of its own, as a user runs it; the hub's cache is in the folder."""
    with _log() as log:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", _HOOK + _ONE, *arguments],
            cwd=folder,
            env=_clean() | {"HF_HOME": str(folder), "WATCHED": str(log)} | environment,
            capture_output=True,
            text=True,
            timeout=110,
        )
        output = done.stdout + done.stderr
        assert not log.exists(), log.read_text() + output
    return done.returncode, output


@contextmanager
def shared_process() -> Iterator[Run]:
    """Yield a ``Run`` whose programs run in one process, one after the other.

    Importing the frameworks takes most of a short program's time; here it is done once.
    """
    with (
        _log() as log,
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", _HOOK + _MANY],
            env=_clean() | {"HF_HOME": str(log.parent), "WATCHED": str(log)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process,
    ):
        requests, answers = process.stdin, process.stdout
        assert requests
        assert answers

        def run_there(arguments: list[str], folder: Path, /, **environment: str) -> tuple[int, str]:
            print(json.dumps([arguments, str(folder), environment]), file=requests, flush=True)
            code, output = json.loads(answers.readline())
            assert not log.exists(), log.read_text() + output
            return code, output

        yield run_there
        requests.close()


def _clean() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(_UNSET)}


@contextmanager
def _log() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as place:
        yield Path(place) / "log"
