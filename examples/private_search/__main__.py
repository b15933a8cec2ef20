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
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from gemma_embed.errors import CollectionLocked, EmbeddingError
from gemma_embed.runtimes import OllamaRuntime, OnnxRuntime, Runtime, open_runtime
from private_search.answer import answered
from private_search.catalogue import Filter
from private_search.documents import Source
from private_search.files import Folder
from private_search.generators import open_generator
from private_search.history import History
from private_search.library import Library, Progress
from private_search.mail import Mail
from private_search.search import Hit, Search
from private_search.text import on_terminal

SAMPLE = Path(__file__).resolve().parent / "sample"
GENERATOR = "gemma3:270m"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return the exit code: 0, or 1 if nothing was found or something failed."""
    options = _parser().parse_args(arguments)
    try:
        with Library(_place(options), _runtime(options), dimensions=options.dimensions) as library:
            return int(options.run(library, options))
    except (EmbeddingError, sqlite3.Error, OSError) as error:
        print(on_terminal(f"{type(error).__name__}: {error}"), file=sys.stderr)
        return 1
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
    shared.add_argument("--runtime", default="auto",
                        choices=["auto", "bundled", "ollama", "onnx", "transformers"])  # fmt: skip
    shared.add_argument("--model", help="hub id, folder or server tag for --runtime")
    shared.add_argument("--dimensions", type=int, help="narrow index, searched in two steps")

    index = commands.add_parser("index", parents=[shared], help="read what is new")
    index.add_argument("--files", type=Path, nargs="+", default=[], help="folders")
    index.add_argument("--mail", type=Path, nargs="+", default=[], help="mbox, Maildir, folders")
    index.add_argument("--history", type=Path, help="History of Chrome, places.sqlite of Firefox")
    index.add_argument("--pages", type=Path, help="a folder of saved pages, with --history")
    index.add_argument("--forget", nargs="+", default=[], help="sources to leave out from now on")
    index.add_argument("--watch", action="store_true", help="go on, whenever something changes")
    index.set_defaults(run=_index)

    ask = commands.add_parser("ask", parents=[shared], help="answer a question")
    ask.add_argument("question")
    ask.add_argument("--kind", choices=["file", "mail", "page"])
    ask.add_argument("--after", type=_moment, metavar="DATE", help="2026-01-31, and later")
    ask.add_argument("--before", type=_moment, metavar="DATE")
    ask.add_argument("--sender", default="", help="part of a name or address")
    ask.add_argument("--folder", default="")
    ask.add_argument("--site", default="")
    ask.add_argument("--limit", type=int, default=5, choices=range(1, 51), metavar="N")
    ask.add_argument("--mode", choices=["hybrid", "words", "meaning"], default="hybrid")
    ask.add_argument("--weak", action="store_true", help="show passages that hardly fit, too")
    ask.add_argument("--generator", default=GENERATOR,
                     help="Ollama tag, .gguf file, or 'none'")  # fmt: skip
    ask.set_defaults(run=_ask)

    serve = commands.add_parser("serve", parents=[shared], help="a page, for this machine only")
    serve.add_argument("--port", type=int, default=8765)
    serve.add_argument("--generator", default=GENERATOR,
                       help="Ollama tag, .gguf file, or 'none'")  # fmt: skip
    serve.set_defaults(run=_serve)

    mcp = commands.add_parser("mcp", parents=[shared], help="tools for an assistant, over stdio")
    mcp.set_defaults(run=_mcp)

    status = commands.add_parser("status", parents=[shared], help="say what is indexed")
    status.add_argument("--units", action="store_true", help="name what was left out, and why")
    status.add_argument("--json", action="store_true")
    status.set_defaults(run=_status)
    return parser


def _place(options: argparse.Namespace) -> Path:
    home = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    name = "private-search-sample" if options.sample else "private-search"
    return options.library or home / name


def _moment(text: str) -> float:
    moment = datetime.fromisoformat(text)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _runtime(options: argparse.Namespace) -> Runtime:
    name, model = options.runtime, options.model
    if name == "bundled":
        return OnnxRuntime("bundled")
    if name == "onnx":
        return OnnxRuntime(model, precision="int8")
    if name != "auto":
        return open_runtime(name, model)
    for runtime in (
        OnnxRuntime(model, precision="int8", offline=True),
        OllamaRuntime(model, max_retries=0),
    ):
        try:
            source = runtime.identity.source
        except EmbeddingError:
            continue
        print(f"Embedding with {source} on {runtime.identity.runtime}.", file=sys.stderr)
        return runtime
    if model is not None:
        raise SystemExit(f"--model {model} is neither on this disk nor on an Ollama server")
    print("Embedding with the small bundled demonstration model: neither EmbeddingGemma's weights "
          'nor Ollama were found (see README, "Real weights").', file=sys.stderr)  # fmt: skip
    return OnnxRuntime("bundled")


def _update(library: Library) -> None:
    def show(progress: Progress) -> None:
        rate = progress.done / max(progress.seconds, 1e-9)
        print(f"\r{progress.step} {progress.done}/{progress.total}, {rate:.0f}/s, "
              f"{progress.seconds_left:.0f} s left  ", end="", file=sys.stderr)  # fmt: skip

    changes = library.update(show if sys.stderr.isatty() else lambda _: None)
    print(f"\r{changes.units} files, mailboxes and databases: {changes.changed} documents new or "
          f"changed, {changes.removed} gone, {changes.embedded} passages embedded.",
          file=sys.stderr)  # fmt: skip


def _index(library: Library, options: argparse.Namespace) -> int:
    for name in options.forget:
        library.forget(name)
    library.add(*(Folder(path.resolve()) for path in options.files))
    library.add(*(Mail(path.resolve()) for path in options.mail))
    if options.history:
        pages = options.pages and options.pages.resolve()
        library.add(History(options.history.resolve(), pages))
    if options.sample:
        library.add(*sample())
    _update(library)
    _print_status(library, units=False)
    if options.watch:
        _watch(library)
    return 0


def _watch(library: Library) -> None:
    from watchfiles import watch

    places: list[Path] = []
    for source in library.sources():
        if isinstance(source, History):
            # Not its folder, where a browser writes all the time.
            journal = source.database.with_name(f"{source.database.name}-wal")
            places += [source.database, journal, source.pages or source.database]
        else:
            places.append(source.root)  # type: ignore[attr-defined]
    there = [place for place in places if place.exists()]
    for place in set(places) - set(there):
        print(on_terminal(f"Not watched, since it is not there: {place}"), file=sys.stderr)
    for _ in watch(*there, debounce=3000, step=500, raise_interrupt=True) if there else ():
        try:
            _update(library)
        except CollectionLocked:
            print("Another process is indexing.", file=sys.stderr)


def _ask(library: Library, options: argparse.Namespace) -> int:
    if options.sample:
        library.add(*sample())
    try:
        _update(library)
    except CollectionLocked:
        print("Another process is indexing: what it has done so far is searched.", file=sys.stderr)
    filters = Filter(
        options.kind, options.after, options.before, options.sender, options.folder, options.site
    )
    results = Search(library).ask(options.question, filters, limit=options.limit, mode=options.mode)
    if not results.hits or not (results.answerable or options.weak):
        print("Not in your documents.")
        if results.hits:
            print(f"Nearest, and hardly an answer: {on_terminal(results.hits[0].found.title)} "
                  "(--weak shows it).")  # fmt: skip
        return 1
    for number, hit in enumerate(results.hits, 1):
        _print_hit(number, hit)
    generator = open_generator(options.generator)
    if generator is None:
        if options.generator != "none":
            print(
                f"No answer is written: no running Ollama has {options.generator}; "
                f"for one, ollama pull {options.generator}",
                file=sys.stderr,
            )
        return 0
    print("Answer:", flush=True)
    for sentence in answered(generator, options.question, results.hits):
        print(f"  {sentence}", flush=True)
    return 0


def _print_hit(number: int, hit: Hit) -> None:
    found = hit.found
    when = datetime.fromtimestamp(found.date, UTC).date().isoformat() if found.date else "no date"
    print(on_terminal(f"[{number}] {found.title} ({found.kind}, {when}"
                      f"{f', {found.sender}' if found.sender else ''})"))  # fmt: skip
    for sentence in hit.sentences:
        print(on_terminal(f"    {sentence}"))
    print(on_terminal(f"    {hit.where}"))
    for other in hit.also:
        print(on_terminal(f"    the same: {other.address} {other.place}"))
    print(flush=True)


def _serve(library: Library, options: argparse.Namespace) -> int:
    from private_search.server import serve

    if options.sample:
        library.add(*sample())
    serve(_opener(library, options), open_generator(options.generator), options.port)
    return 0


def _mcp(library: Library, options: argparse.Namespace) -> int:
    from private_search.mcp_server import server

    if options.sample:
        library.add(*sample())
        _update(library)
    library.close()
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


def _print_status(library: Library, *, units: bool) -> None:
    for each in library.coverage():
        states = ", ".join(f"{count} {state}" for state, count in sorted(each.states.items()))
        print(on_terminal(f"{each.source}: {states or 'not read yet'}; {each.documents} documents, "
                          f"{each.passages} passages"))  # fmt: skip
        for unit in each.units if units else ():
            print(on_terminal(f"  {unit['state']}: {unit['unit']}: {unit['reason']}"))


if __name__ == "__main__":
    sys.exit(main())
