"""The command ``gemma-embed``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gemma_embed.errors import CollectionError, ConfigurationError, EmbeddingError
from gemma_embed.runtimes import Runtime, open_runtime
from gemma_embed.runtimes.named import RUNTIMES


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code: 0 if all is well, 1 if not, 2 for a wrong call."""
    options = _parser().parse_args(arguments)
    try:
        found = _verified(options)
    except EmbeddingError as error:
        sys.stderr.write(" ".join(f"{type(error).__name__}: {error}".split()) + "\n")
        return 2 if isinstance(error, ConfigurationError) else 1
    if options.json:
        text = json.dumps({name: verdict.as_dict() for name, verdict in found.items()}, indent=1)
    else:
        text = "\n\n".join(str(verdict) for verdict in found.values())
    sys.stdout.write(text + "\n")
    return 0 if all(verdict.ok for verdict in found.values()) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="gemma-embed")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    verify = commands.add_parser(
        "verify", help="say whether a runtime gives EmbeddingGemma's vectors, and if not, why"
    )
    verify.add_argument(
        "runtime",
        help=f"{', '.join(RUNTIMES)}; a server's address (ollama, or openai if it ends in /v1); "
        "a folder, or 'bundled', which transformers loads",
    )
    verify.add_argument("--model", help="folder, hub id or server tag; for a runtime's name")
    verify.add_argument("--precision", help="the runtime's: bfloat16, int8, int4, ...")
    verify.add_argument("--chroma", type=Path, metavar="FOLDER", help="verify a collection, too")
    verify.add_argument("--collection", help="its name, if the folder has several")
    verify.add_argument("--rows", type=int, default=24, help="rows to embed again (24)")
    verify.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _verified(options: argparse.Namespace) -> dict[str, Any]:
    from gemma_embed.verify import verify

    if options.collection is not None and options.chroma is None:
        raise ConfigurationError("--collection needs --chroma FOLDER")
    runtime = _runtime(options.runtime, options.model, options.precision)
    found: dict[str, Any] = {"runtime": verify(runtime)}
    if options.chroma is not None:
        found["collection"] = _collection(options, runtime)
    return found


def _runtime(named: str, model: str | None, precision: str | None) -> Runtime:
    settings: dict[str, Any] = {"runtime": named}
    if named.startswith(("http://", "https://")):
        kind = "openai" if named.rstrip("/").endswith("/v1") else "ollama"
        settings = {"runtime": kind, "host": named}
    elif named not in RUNTIMES:
        if model is not None:
            raise ConfigurationError(f"--model needs one of {', '.join(RUNTIMES)} before it")
        if named != "bundled" and not Path(named).is_dir():
            raise ConfigurationError(
                f"{named!r} is no runtime, address or folder: name one of {', '.join(RUNTIMES)}, "
                "http://..., or a folder with a checkpoint"
            )
        settings = {"runtime": "transformers", "model": named}
    if model is not None:
        settings["model"] = model
    if precision is not None:
        settings["dtype" if settings["runtime"] == "transformers" else "precision"] = precision
    return open_runtime(settings)


def _collection(options: argparse.Namespace, runtime: Runtime) -> Any:
    from gemma_embed.chroma.place import folder_client
    from gemma_embed.verify import verify_collection

    if not (options.chroma / "chroma.sqlite3").is_file():
        raise CollectionError(f"{options.chroma} is no folder of Chroma's: it lacks chroma.sqlite3")
    client = folder_client(options.chroma)
    names = [collection.name for collection in client.list_collections()]
    name = options.collection or (names[0] if len(names) == 1 else None)
    if name not in names:
        raise CollectionError(f"name one of these with --collection: {', '.join(names) or 'none'}")
    collection = client.get_collection(name, embedding_function=None)
    return verify_collection(collection, runtime, rows=options.rows)
