"""GGUF files changed on purpose, and llama.cpp's own server on them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Keys = Mapping[str, Any]

# llama-server as xllamacpp has it in a wheel. It ends with its standard input.
_SERVE = """
import json, sys, xllamacpp
options = xllamacpp.CommonParams()
options.model.path, said = sys.argv[1], json.loads(sys.argv[2])
options.embedding, options.warmup, options.verbosity = True, False, -1
options.n_batch = options.n_ubatch = said.pop("n_ubatch", 2048)
options.n_parallel = 1
# Threads wait for each other by spinning, which takes long where something else computes.
threads = said.pop("threads", 1)
options.cpuparams.n_threads = options.cpuparams_batch.n_threads = threads
for name, value in said.items():
    setattr(options, name, value)
server = xllamacpp.Server(options)
print(server.listening_address, flush=True)
sys.stdin.read()
"""


@contextmanager
def llama_server(path: Path, **options: object) -> Iterator[str]:
    """Serve a file with ``-ub 2048 -np 1``; yield the server's address."""
    command = [sys.executable, "-c", _SERVE, str(path), json.dumps(options)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            address = process.stdout.readline().strip()
            assert address.startswith("http://"), f"llama.cpp did not start on {path}"
            yield address
        finally:
            process.stdin.close()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


def rewritten(
    file: Path,
    path: Path,
    keys: Keys = {},  # noqa: B006
    *,
    leaving_out: Callable[[str], bool] = lambda name: False,
) -> Path:
    """Copy a file by gguf's writer.

    Args:
        file: A file.
        path: The copy.
        keys: Values for some of its keys; None for none.
        leaving_out: Tells which tensors are left out, by name.
    """
    import gguf

    reader = gguf.GGUFReader(file)
    kinds = gguf.GGUFValueType
    writer = gguf.GGUFWriter(path, keys.get("general.architecture", "gemma-embedding"))
    for name in {*reader.fields, *keys}:
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        field = reader.fields.get(name)
        kind, *of = field.types if field else (kinds.UINT16,)
        value = keys[name] if name in keys else field.contents()  # type: ignore[union-attr]
        if value is not None:
            writer.add_key_value(name, value, kind, of[0] if of else None)
    for tensor in reader.tensors:
        if not leaving_out(tensor.name):
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
