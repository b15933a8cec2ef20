"""Search your own files, mail and visited pages, on this machine.

index   remember sources, read what is new, forget what is gone
ask     do that first, then answer a question from it
status  say what is indexed, what is not, and why
serve   the same as a page in the browser
mcp     the same as tools for an assistant
"""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import date
from pathlib import Path

from gemma_embed.errors import CollectionLocked, EmbeddingError
from gemma_embed.runtimes import OllamaRuntime, OnnxRuntime, Runtime, open_runtime
from private_search.answer import NOTHING, answered
from private_search.catalogue import Filter, start_of
from private_search.documents import Source
from private_search.files import Folder
from private_search.generators import Generator, open_generator
from private_search.history import History
from private_search.library import Library, Progress
from private_search.mail import Mail
from private_search.reader import shown
from private_search.search import Hit, Search
from private_search.text import on_terminal

SAMPLE = Path(__file__).resolve().parent / "sample"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return the exit code: 0, or 1 if nothing was found or something failed."""
    options = _parser().parse_args(arguments)
    home = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    name = "private-search-sample" if options.sample else "private-search"
    try:
        runtime = _runtime(options.runtime, options.model)
        with Library(
            options.library or home / name, runtime, dimensions=options.dimensions
        ) as library:
            if options.sample:
                library.add(*sample())
            return int(options.run(library, options))
    except (EmbeddingError, sqlite3.Error, OSError) as error:
        print(on_terminal(f"{type(error).__name__}: {error}"), file=sys.stderr)
    except KeyboardInterrupt:
        print("\nStopped. What was done is kept; the next run goes on from there.", file=sys.stderr)
    return 1


def sample() -> list[Source]:
    """Return the sources of the sample: all of it was written for this example."""
    pages = SAMPLE / "pages"
    return [
        Folder(SAMPLE / "files"),
        Mail(SAMPLE / "mail"),
        History(SAMPLE / "history" / "chrome.sqlite", pages / "chrome"),
        History(SAMPLE / "history" / "firefox.sqlite", pages / "firefox"),
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "private_search", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--library", type=Path, help="its folder (~/.local/share/private-search)")
    shared.add_argument("--sample", action="store_true", help="the sample, in a folder of its own")
    runtimes = ["auto", "bundled", "ollama", "onnx", "transformers"]
    shared.add_argument("--runtime", default="auto", choices=runtimes)
    shared.add_argument("--model", help="hub id, folder or server tag for --runtime")
    shared.add_argument("--dimensions", type=int, help="narrow index, searched in two steps")
    writer = argparse.ArgumentParser(add_help=False)
    said = "Ollama tag, .gguf file, or 'none'"
    writer.add_argument("--generator", default="gemma3:270m", help=said)

    index = commands.add_parser("index", parents=[shared], help="read what is new")
    index.add_argument("--files", type=_there, nargs="+", default=[], help="folders")
    index.add_argument("--mail", type=_there, nargs="+", default=[], help="mbox, Maildir, folders")
    index.add_argument("--history", type=_there, help="History of Chrome, places.sqlite of Firefox")
    index.add_argument("--pages", type=_there, help="a folder of saved pages, with --history")
    index.add_argument("--forget", nargs="+", default=[], help="sources to leave out from now on")
    index.add_argument("--watch", action="store_true", help="go on, whenever something changes")
    index.set_defaults(run=_index)

    ask = commands.add_parser("ask", parents=[shared, writer], help="answer a question")
    ask.add_argument("question")
    ask.add_argument("--kind", choices=["file", "mail", "page"])
    day = date.fromisoformat
    ask.add_argument("--after", type=day, metavar="DATE", help="2026-01-31, and later")
    ask.add_argument("--before", type=day, metavar="DATE", help="earlier than this day")
    ask.add_argument("--sender", default="", help="part of a name or address")
    ask.add_argument("--folder", default="")
    ask.add_argument("--site", default="")
    ask.add_argument("--limit", type=int, default=5, choices=range(1, 51), metavar="N")
    ask.add_argument("--weak", action="store_true", help="show passages that hardly fit, too")
    ask.set_defaults(run=_ask)

    status = commands.add_parser("status", parents=[shared], help="say what is indexed")
    status.add_argument("--units", action="store_true", help="name what was left out, and why")
    status.add_argument("--json", action="store_true")
    status.set_defaults(run=_status)

    serve = commands.add_parser("serve", parents=[shared, writer], help="a page, for you alone")
    serve.add_argument("--port", type=int, default=8765)
    serve.set_defaults(run=_serve)
    mcp = commands.add_parser("mcp", parents=[shared], help="tools for an assistant, over stdio")
    mcp.set_defaults(run=_mcp)
    return parser


def _there(text: str) -> Path:
    path = Path(text).expanduser().resolve()
    if not path.exists():
        raise argparse.ArgumentTypeError(on_terminal(f"there is no {path}"))
    return path


def _runtime(name: str, model: str | None) -> Runtime:
    if name == "bundled":
        return OnnxRuntime("bundled")
    if name == "onnx":
        return OnnxRuntime(model, precision="int8")
    if name != "auto":
        return open_runtime(name, model)
    on_disk = OnnxRuntime(model, precision="int8", offline=True)
    for runtime in (on_disk, OllamaRuntime(model, max_retries=0)):
        with suppress(EmbeddingError):
            source = runtime.identity.source
            print(f"Embedding with {source} on {runtime.identity.runtime}.", file=sys.stderr)
            return runtime
    if model is not None:
        raise SystemExit(f"--model {model} is neither on this disk nor on an Ollama server")
    print("Embedding with the small bundled demonstration model: neither EmbeddingGemma's weights "
          'nor Ollama were found (see README, "Real weights").', file=sys.stderr)  # fmt: skip
    return OnnxRuntime("bundled")


def _generator(name: str) -> Generator | None:
    generator = open_generator(name)
    if generator is None and name != "none":
        print(f"No answer is written: no running Ollama has {name}; for one, ollama pull {name}",
              file=sys.stderr)  # fmt: skip
    return generator


def _update(library: Library) -> bool:
    def show(progress: Progress) -> None:
        rate = progress.done / max(progress.seconds, 1e-9)
        print(f"\r{progress.step} {progress.done}/{progress.total}, {rate:.0f}/s, "
              f"{progress.seconds_left:.0f} s left  ", end="", file=sys.stderr)  # fmt: skip

    try:
        changes = library.update(show if sys.stderr.isatty() else lambda _: None)
    except CollectionLocked:
        print("Another process is indexing: what it has done so far counts.", file=sys.stderr)
        return False
    print(f"\r{changes.units} files, mailboxes and databases: {changes.changed} documents new or "
          f"changed, {changes.removed} gone, {changes.embedded} passages embedded.",
          file=sys.stderr)  # fmt: skip
    return True


def _index(library: Library, options: argparse.Namespace) -> int:
    for name in options.forget:
        library.forget(name)
    library.add(*map(Folder, options.files), *map(Mail, options.mail))
    if options.history:
        library.add(History(options.history, options.pages))
    updated = _update(library)
    _print_status(library)
    if options.watch:
        _watch(library)
    return 0 if updated else 1


def _watch(library: Library) -> None:
    from watchfiles import watch

    paths = {path for source in library.sources() for path in vars(source).values() if path}
    there = [path for path in paths if path.exists()]
    for path in paths.difference(there):
        print(on_terminal(f"Not watched, since it is not there: {path}"), file=sys.stderr)
    # A history's journal; not its folder, where a browser writes all the time.
    there += [journal for path in there if (journal := Path(f"{path}-wal")).exists()]
    for _ in watch(*there, debounce=3000, step=500, raise_interrupt=True) if there else ():
        _update(library)


def _ask(library: Library, options: argparse.Namespace) -> int:
    _update(library)
    after, before = start_of(options.after), start_of(options.before)
    filters = Filter(options.kind, after, before, options.sender, options.folder, options.site)
    results = Search(library).ask(options.question, filters, limit=options.limit)
    if not library.catalogue.count():
        print("Nothing is indexed: index --files FOLDER; status --units names what was left out.")
        return 1
    if not results.hits or not (results.answerable or options.weak):
        # Words alone may find nothing; meaning finds something in whatever passes the filters.
        print(NOTHING if results.hits else "Nothing passes these filters.")
        for hit in results.hits[:1]:
            print(f"Nearest, and hardly an answer: {on_terminal(hit.found.title)} "
                  "(--weak shows it).")  # fmt: skip
        return 1
    for number, hit in enumerate(results.hits, 1):
        _print_hit(number, hit)
    generator = _generator(options.generator)
    if generator is not None:
        print("Answer:", flush=True)
        for sentence in answered(generator, options.question, results.hits):
            print(f"  {sentence}", flush=True)
    return 0


def _print_hit(number: int, hit: Hit) -> None:
    found = shown(hit.found)
    facts = (found["kind"], found["date"][:10] or "no date", found["sender"])
    also = (f"the same: {other.address} {other.place}" for other in hit.also)
    print(on_terminal(f"[{number}] {found['title']} ({', '.join(filter(None, facts))})"))
    for line in (*hit.sentences, hit.where, *also):
        print(on_terminal(f"    {line}"))
    print(flush=True)


def _serve(library: Library, options: argparse.Namespace) -> int:
    from private_search.server import serve

    serve(_opener(library, options), _generator(options.generator), options.port)
    return 0


def _mcp(library: Library, options: argparse.Namespace) -> int:
    from private_search.mcp_server import server

    if options.sample:
        _update(library)
    server(_opener(library, options)).run()
    return 0


def _opener(library: Library, options: argparse.Namespace) -> Callable[[], Library]:
    """For threads: each has a library of its own, on one runtime."""
    folder, runtime = library.folder, library.embedder.runtime
    return lambda: Library(folder, runtime, dimensions=options.dimensions)


def _status(library: Library, options: argparse.Namespace) -> int:
    if options.json:
        print(json.dumps([asdict(each) for each in library.coverage()], indent=1))
    else:
        _print_status(library, units=options.units)
    return 0


def _print_status(library: Library, *, units: bool = False) -> None:
    for each in library.coverage():
        states = ", ".join(f"{count} {state}" for state, count in sorted(each.states.items()))
        why = "" if units or not each.units else " (why: status --units)"
        print(on_terminal(f"{each.source}: {states or 'not read yet'}; {each.documents} documents, "
                          f"{each.passages} passages{why}"))  # fmt: skip
        for unit in each.units if units else ():
            print(on_terminal(f"  {unit['state']}: {unit['unit']}: {unit['reason']}"))


if __name__ == "__main__":
    sys.exit(main())
