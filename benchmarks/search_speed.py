r"""Private search: how fast it reads, indexes, answers and finds that nothing changed.

    PYTHONPATH=tests:examples python benchmarks/search_speed.py [reading] [rescan] [scale]

    PYTHONPATH=tests:examples python benchmarks/search_speed.py scale --sizes 100000 \
        --folder scale --seconds 500             (again and again, until nothing is left)

``reading``: characters a second through parsing, cleaning and cutting, on one core, without a
model. ``rescan``: 20,000 files of which none changed. ``scale``: indexing and asking at 1,000 and
more passages, with vectors made of hashes, so that what is measured is everything but the model.
"""

from __future__ import annotations

import argparse
import random
import resource
import tempfile
import time
from collections.abc import Callable
from email.message import EmailMessage
from pathlib import Path

import numpy as np
from fakes import FakeRuntime

from private_search.chunks import chunks_of
from private_search.documents import Document, Source, Unit
from private_search.files import Folder
from private_search.library import Library, Progress
from private_search.mail import Mail
from private_search.search import Search

NOTES = Path(__file__).parent.parent / "examples" / "notes"


def paragraphs() -> list[str]:
    """Real paragraphs, to be mixed."""
    texts = [path.read_text("utf-8") for path in sorted(NOTES.glob("*.md"))]
    return [part for text in texts for part in text.split("\n\n") if len(part) > 80]


def written(folder: Path, files: int, length: int) -> None:
    """Write notes of so many paragraphs, no two alike."""
    chosen, parts = random.Random(1), paragraphs()
    for number in range(files):
        place = folder / f"{number // 200:03}"
        place.mkdir(parents=True, exist_ok=True)
        body = "\n\n".join(chosen.choices(parts, k=length))
        (place / f"{number:05}.md").write_text(f"# Note {number}\n\n{body}\n", "utf-8")


def mailbox(path: Path, messages: int) -> None:
    """Write a mailbox: quoted replies, signatures, one in four as HTML."""
    chosen, parts = random.Random(2), paragraphs()
    with path.open("wb") as opened:
        for number in range(messages):
            message = EmailMessage()
            message["From"], message["To"] = "Anna Lind <anna@example.org>", "b@example.org"
            message["Subject"], message["Message-ID"] = (
                f"Message {number}",
                f"<{number}@example.org>",
            )
            message["Date"] = "Tue, 03 Feb 2026 09:14:00 +0100"
            body = "\n\n".join(chosen.choices(parts, k=6))
            quoted = "\n".join(f"> {line}" for line in chosen.choice(parts).split("\n"))
            text = f"{body}\n\nOn Tue, 3 Feb 2026 at 09:30, B <b@example.org> wrote:\n{quoted}\n"
            if number % 4:
                message.set_content(f"{text}\n-- \nAnna Lind\nPhone 1\n")
            else:
                html = "".join(f"<p>{part}</p>" for part in body.split("\n\n"))
                message.set_content(f"<html><body>{html}</body></html>", subtype="html")
            opened.write(b"From a Tue Feb  3 09:14:00 2026\n" + bytes(message) + b"\n")


def read(source: Source) -> tuple[int, int]:
    """Read and cut a source; return characters and passages."""
    characters = passages = 0
    for unit in source.units():
        for document in source.read(unit) if isinstance(unit, Unit) else ():
            if isinstance(document, Document):
                characters += len(document.text)
                passages += sum(1 for _ in chunks_of(document))
    return characters, passages


def timed(work: Callable[[], object]) -> tuple[float, object]:
    """Return the seconds that it takes, and its result."""
    # Of this process: what others do on the machine is not measured.
    started = time.process_time()
    result = work()
    return time.process_time() - started, result


def reading(folder: Path) -> None:
    """Parse, clean and cut."""
    written(folder / "notes", 600, 8)
    mailbox(folder / "box.mbox", 600)
    for name, source in (("text", Folder(folder / "notes")), ("mail", Mail(folder / "box.mbox"))):
        read(source)
        seconds, (characters, passages) = min(timed(lambda: read(source)) for _ in range(3))  # noqa: B023
        print(f"{name}: {characters / seconds / 1e6:.2f} million characters/s, {passages} passages")


def rescan(folder: Path) -> None:
    """Look at 20,000 files of which none changed."""
    written(folder / "many", 20_000, 2)
    with Library(folder / "rescan", FakeRuntime()) as library:
        library.add(Folder(folder / "many"))
        first, _ = timed(library.update)
        seconds, changes = timed(library.update)
        print(f"20,000 files: first {first:.1f} s, again {seconds:.2f} s, {changes}; {memory()}")


def scale(folder: Path, size: int, seconds: float) -> None:
    """Index and search about so many passages, in five of each file.

    Args:
        folder: For notes and library. What is there already is gone on with.
        size: Passages.
        seconds: After which indexing stops, to be gone on with by the next run.
    """
    questions = [part[:60] for part in paragraphs()[:40]]
    if not (folder / "notes").exists():
        written(folder / "notes", size // 5, 23)
    until = time.monotonic() + seconds

    def watched(progress: Progress) -> None:
        if time.monotonic() > until:
            raise TimeoutError(f"{progress.step} {progress.done} of {progress.total}")

    with Library(folder / "library", FakeRuntime()) as library:
        library.add(Folder(folder / "notes"))
        started, before = time.process_time(), library.collection.count()
        try:
            library.update(watched)
        except TimeoutError as stopped:
            print(f"stopped after {seconds:.0f} s: {stopped}")
        spent, added = time.process_time() - started, library.collection.count() - before
        print(f"{added} passages indexed in {spent:.1f} s ({added / spent:.0f}/s); {memory()}")
        if time.monotonic() > until:
            return
        search = Search(library)
        calibration, _ = timed(lambda: search.ask("anything"))
        asked = [timed(lambda: search.ask(question))[0] for question in questions]  # noqa: B023
        status, _ = timed(library.coverage)
        again, _ = timed(library.update)
        next((folder / "notes").rglob("*.md")).unlink()
        deleted, changes = timed(library.update)
        passages = library.catalogue.count()
    middle, slow = np.percentile(asked, [50, 95]) * 1000
    print(
        f"{passages} passages: a question p50 {middle:.0f} ms, p95 {slow:.0f} ms, calibration "
        f"{calibration:.1f} s, status {1000 * status:.0f} ms, nothing new {again:.2f} s, one file "
        f"deleted {deleted:.2f} s ({changes.removed} removed); {memory()}, "
        f"{disk(folder / 'library'):.0f} MB on disk"
    )


def disk(folder: Path) -> float:
    """Return how many megabytes a folder takes."""
    return sum(path.stat().st_size for path in folder.rglob("*")) / 1e6


def memory() -> str:
    """Say how much this process has taken at most so far."""
    return f"peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB"


def main() -> None:
    """Run what the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=["reading", "rescan", "scale"])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--folder", type=Path, help="kept, for a scale that takes several runs")
    parser.add_argument("--seconds", type=float, default=3600, help="of indexing in one run")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        for part in options.parts:
            place = (options.folder or Path(temporary)) / part
            place.mkdir(parents=True, exist_ok=True)
            if part == "scale":
                for size in options.sizes:
                    scale(place / str(size), size, options.seconds)
            else:
                {"reading": reading, "rescan": rescan}[part](place)


if __name__ == "__main__":
    main()
