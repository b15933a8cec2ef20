"""A PostgreSQL server of a test's own, with pgvector."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

WHERE = Path("/usr/lib/postgresql")


@contextmanager
def server() -> Iterator[str]:
    """Start one, yield its URL, and stop it; skip where there is none."""
    programs = max(WHERE.glob("*/bin/initdb"), default=None)
    if programs is None:
        pytest.skip("needs PostgreSQL: apt-get install postgresql, with the extension pgvector")
    version = programs.parent.parent.name
    if not Path(f"/usr/share/postgresql/{version}/extension/vector.control").exists():
        pytest.skip(f"needs pgvector: apt-get install postgresql-{version}-pgvector, or its source")
    # Short, since the socket's path is limited to 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    before: list[str] = []
    if os.getuid() == 0:
        # PostgreSQL refuses to run as root.
        os.chown(folder, pwd.getpwnam("postgres").pw_uid, -1)
        before = ["runuser", "-u", "postgres", "--"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    data = str(folder / "data")

    def run(program: str, *args: str) -> None:
        command = [*before, str(programs.parent / program), "-D", data, *args]
        # Not captured: the server would keep a pipe open.
        with (folder / f"{program}.log").open("w") as log:
            subprocess.run(command, check=True, cwd="/", stdout=log, stderr=log, timeout=60)

    try:
        run("initdb", "-A", "trust", "-U", "postgres", "--no-sync")
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c fsync=off -k {folder}"
        run("pg_ctl", "-w", "-o", options, "start")
        try:
            yield f"postgresql://postgres@127.0.0.1:{port}/postgres"
        finally:
            run("pg_ctl", "-m", "immediate", "-w", "stop")
    finally:
        shutil.rmtree(folder)
