"""Counts the code: lines by room, and the functions and files that one text crosses.

A code line is a line with code on it: comments, docstrings and blank lines do not count. A function
is crossed if a call enters it (comprehensions and generator expressions do not count).

    python benchmarks/code_size.py                   lines by room
    PYTHONPATH=tests python benchmarks/code_size.py --crossed   what one text crosses as well
"""

from __future__ import annotations

import argparse
import ast
import io
import sys
import tempfile
import threading
import tokenize
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gemma_embed.runtimes import Runtime

ROOT = Path(__file__).resolve().parent.parent
CORE = ROOT / "shared" / "gemma_embed"
PACKAGES = (
    CORE,
    ROOT / "shared" / "gemma_fast",
    ROOT / "langchain_gemma_embed",
    ROOT / "llamaindex_gemma_embed",
)
NOT_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}


def code_lines(path: Path) -> int:
    """Count the lines of a file that hold code."""
    source = path.read_text(encoding="utf-8")
    docstrings: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Expr(ast.Constant(str())):
                docstrings.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in NOT_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    return len(lines - docstrings)


def rooms() -> dict[str, int]:
    """Count code lines by room: a folder of a package; files at the top are a room together."""
    found: dict[str, int] = {}
    for package in PACKAGES:
        for path in sorted(package.rglob("*.py")):
            parts = path.relative_to(package).parts[:-1]
            room = "/".join((package.name, *parts[:2]))
            found[room] = found.get(room, 0) + code_lines(path)
    return found


def crossed(call: Callable[[], object]) -> tuple[int, int]:
    """Return how many functions, in how many files of the packages, a call enters."""
    entered: set[tuple[str, str, int]] = set()
    homes = tuple(str(package) for package in PACKAGES)

    from gemma_embed.runtimes.remote.loop import LOOP

    def watch(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        named = not code.co_name.startswith("<")
        if event == "call" and named and code.co_filename.startswith(homes):
            entered.add((code.co_filename, code.co_qualname, code.co_firstlineno))

    # Servers are asked on a thread that runs already.
    loop = LOOP.get()
    loop.call_soon_threadsafe(sys.setprofile, watch)
    threading.setprofile(watch)
    sys.setprofile(watch)
    try:
        call()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
        loop.call_soon_threadsafe(sys.setprofile, None)
    return len(entered), len({name for name, *_ in entered})


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--crossed", action="store_true")
    options = parser.parse_args()
    counted = rooms()
    for room, lines in counted.items():
        print(f"{lines:6,}  {room}")
    core = sum(lines for room, lines in counted.items() if room.startswith("gemma_embed"))
    print(f"{core:6,}  the core, all rooms")
    if not options.crossed:
        return

    from ollama_server import OllamaServer

    from gemma_embed import Embedder
    from gemma_embed.chroma import ChromaIndex
    from gemma_embed.runtimes import OllamaRuntime, OnnxRuntime, TransformersRuntime

    print("\nfunctions and files that one text crosses, the model loaded")
    report(OnnxRuntime("bundled"))
    report(TransformersRuntime("bundled", device="cpu"))
    with OllamaServer() as server:
        report(OllamaRuntime(host=server.url))
    with tempfile.TemporaryDirectory() as folder:
        index = ChromaIndex(Path(folder) / "index", "notes", Embedder(OnnxRuntime("bundled")))
        functions, files = crossed(lambda: index.ingest([{"text": "a text"}]))
        print(f"{functions:4} in {files:2}  ChromaIndex.ingest, a new collection")


def report(runtime: Runtime) -> None:
    """Print what one text to a runtime crosses."""
    from gemma_embed import Embedder

    embedder = Embedder(runtime)
    embedder.embed(["the first text loads the model"])
    functions, files = crossed(lambda: embedder.embed(["a text"]))
    print(f"{functions:4} in {files:2}  {type(runtime).__name__}")


if __name__ == "__main__":
    main()
