"""``gemma-embed verify``."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from gemma_embed.commands import runtime as runtimes
from gemma_embed.errors import CollectionError, ConfigurationError
from gemma_embed.runtimes import Runtime


def add(commands: Any) -> None:
    """Add the subcommand to the parser's."""
    parser = commands.add_parser(
        "verify", help="say whether a runtime gives EmbeddingGemma's vectors, and if not, why"
    )
    parser.add_argument("runtime", help=runtimes.HELP)
    parser.add_argument("--model", help="folder, hub id or server tag; for a runtime's name")
    parser.add_argument("--precision", help="the runtime's: bfloat16, int8, int4, ...")
    parser.add_argument("--chroma", type=Path, metavar="FOLDER", help="verify a collection, too")
    parser.add_argument("--collection", help="its name, if the folder has several")
    parser.add_argument("--rows", type=int, default=24, help="rows to embed again (24)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from gemma_embed.verify import verify

    if options.collection is not None and options.chroma is None:
        raise ConfigurationError("--collection needs --chroma FOLDER")
    runtime = runtimes.opened(options.runtime, options.model, options.precision)
    found: dict[str, Any] = {"runtime": verify(runtime)}
    if options.chroma is not None:
        found["collection"] = _collection(options, runtime)
    if options.json:
        text = json.dumps({name: verdict.as_dict() for name, verdict in found.items()}, indent=1)
    else:
        text = "\n\n".join(str(verdict) for verdict in found.values())
    sys.stdout.write(text + "\n")
    return 0 if all(verdict.ok for verdict in found.values()) else 1


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
