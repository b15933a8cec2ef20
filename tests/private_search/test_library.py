"""The library follows the disk: what is new, what changed, what is gone, and after a kill."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest
from fakes import FakeRuntime

from gemma_embed.errors import CollectionDamaged, ConfigurationError, ServerFailed
from gemma_embed.runtimes import Batch, TooLong
from private_search.catalogue import Filter
from private_search.files import Folder
from private_search.library import Library, Progress
from private_search.mail import Mail


def titles(library: Library) -> list[str]:
    return sorted(found.title for found in library.catalogue.passages())


def rows(library: Library) -> set[str]:
    return set(library.collection.get()["ids"])


def numbers(library: Library) -> set[str]:
    return {str(found.number) for found in library.catalogue.passages()}


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    folder = tmp_path / "notes"
    folder.mkdir()
    for name in ("bread", "router", "cat"):
        (folder / f"{name}.md").write_text(f"# The {name}\n\nWhat there is to say of the {name}.")
    return folder


def test_it_follows_the_disk(opened, notes: Path) -> None:
    library = opened(Folder(notes))
    first = library.update()
    assert (first.changed, first.removed, first.embedded) == (3, 0, 3)
    again = library.update()
    assert (again.units, again.changed, again.removed, again.embedded) == (3, 0, 0, 0)

    (notes / "cat.md").unlink()
    (notes / "bread.md").write_text("# The bread\n\nIt is done at 96 degrees.")
    (notes / "new.txt").write_text("Something new.")
    change = library.update()
    assert (change.changed, change.removed, change.embedded) == (2, 1, 2)
    assert titles(library) == ["The bread", "The router", "new"]
    assert rows(library) == numbers(library)
    assert not library.catalogue.matching('"cat"', Filter(), 5)
    assert library.catalogue.matching('"96"', Filter(), 5)


class FailsOnCats(FakeRuntime):
    """A server that breaks down on one text, until it is repaired."""

    repaired = False

    def embed(self, texts: Sequence[str], *, truncate: bool = False) -> Iterator[Batch | TooLong]:
        for row, text in enumerate(texts):
            if "cat" in text and not self.repaired:
                raise ServerFailed("the server failed", index=row)
        yield from super().embed(texts, truncate=truncate)


def test_what_cannot_be_embedded_is_reported_and_tried_again(tmp_path: Path, notes: Path) -> None:
    runtime = FailsOnCats()
    with Library(tmp_path / "library", runtime) as library:
        library.add(Folder(notes))
        for _ in range(2):
            library.update()
            (coverage,) = library.coverage()
            assert coverage.states == {"indexed": 2, "failed": 1}
            (told,) = coverage.units
            assert told["unit"].endswith("cat.md")
            assert told["reason"].startswith("not embedded: ")
            assert "say of" not in told["reason"]
            assert len(rows(library)) == 2
        runtime.repaired = True
        library.update()
        assert library.coverage()[0].states == {"indexed": 3}
        assert rows(library) == numbers(library)
        assert len(rows(library)) == 3
        assert library.update().changed == 0


def test_a_source_that_is_forgotten_leaves(opened, notes: Path) -> None:
    library = opened(Folder(notes))
    library.update()
    library.forget(str(notes))
    assert library.update().removed == 3
    assert rows(library) == set()


def test_only_a_source_can_be_forgotten(opened, notes: Path) -> None:
    library = opened(Folder(notes))
    with pytest.raises(ConfigurationError, match="no source"):
        library.forget("notes")


@pytest.mark.parametrize("forgotten", [False, True])
def test_a_folder_that_turns_out_to_be_mail_is_read_as_mail(
    opened, tmp_path: Path, forgotten: bool
) -> None:
    boxes = tmp_path / "boxes"
    boxes.mkdir()
    (boxes / "Inbox").write_text("From a Mon Jan 1 00:00:00 2026\nSubject: One\n\nBody\n")
    library = opened(Folder(boxes))
    library.update()
    if forgotten:
        library.forget(str(boxes))
    library.add(Mail(boxes))
    library.update()
    (found,) = library.catalogue.passages()
    assert (found.kind, found.title) == ("mail", "One")
    assert rows(library) == numbers(library)
    library.add(Mail(boxes))
    assert library.update().changed == 0


def test_a_folder_that_is_not_there_keeps_nothing_and_says_so(opened, notes: Path) -> None:
    library = opened(Folder(notes / "none"))
    library.update()
    (report,) = library.coverage()
    assert report.states == {"failed": 1}
    assert "No such file" in report.units[0]["reason"]


def test_only_new_mails_of_a_mailbox_are_embedded(opened, tmp_path: Path) -> None:
    head = "From a Mon Jan 1 00:00:00 2026\nFrom: a@b.c\n"
    mail = head + "Subject: {0}\nMessage-ID: <{0}@b.c>\n\nBody {0}\n\n"
    box = tmp_path / "box.mbox"
    box.write_text("".join(map(mail.format, ("one", "two"))))
    library = opened(Mail(box))
    assert library.update().embedded == 2
    box.write_text("".join(map(mail.format, ("two", "three"))))
    change = library.update()
    assert (change.changed, change.removed, change.embedded) == (1, 1, 1)
    assert titles(library) == ["three", "two"]


def test_coverage_names_what_is_left_out_and_why(opened, notes: Path) -> None:
    (notes / "picture.png").write_bytes(b"\x89PNG")
    (notes / "empty.md").write_text("")
    (notes / "broken.pdf").write_bytes(b"%PDF-1.4 nothing")
    library = opened(Folder(notes))
    library.update()
    (report,) = library.coverage()
    assert report.states == {"indexed": 3, "skipped": 2, "failed": 1}
    assert (report.documents, report.passages) == (3, 3)
    told = {Path(unit["unit"]).name: (unit["state"], unit["reason"]) for unit in report.units}
    assert told["picture.png"] == ("skipped", "no reader for .png")
    assert told["empty.md"] == ("skipped", "empty")
    assert told["broken.pdf"][0] == "failed"
    (notes / "empty.md").write_text("Not any more.")
    library.update()
    assert library.coverage()[0].states["indexed"] == 4


def test_a_file_that_cannot_be_opened_is_tried_again(
    opened, notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library, read = opened(Folder(notes)), Path.read_bytes

    def refused(path: Path) -> bytes:
        if path.name == "cat.md":
            raise PermissionError(13, "Permission denied")
        return read(path)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", refused)
        library.update()
    assert library.coverage()[0].states == {"indexed": 2, "failed": 1}
    assert library.coverage()[0].units[0]["reason"] == "Permission denied"
    assert library.update().changed == 1
    assert library.coverage()[0].states == {"indexed": 3}


def test_progress_counts_to_the_end(opened, notes: Path) -> None:
    seen: list[Progress] = []
    opened(Folder(notes)).update(seen.append)
    last = {each.step: (each.done, each.total) for each in seen}
    assert last == {"reading": (3, 3), "embedding": (3, 3)}


def test_another_model_takes_over_and_nothing_deleted_stays(opened, notes: Path) -> None:
    library = opened(Folder(notes))
    library.update()
    (notes / "cat.md").unlink()
    library = opened(dimensions=256)
    assert library.update().embedded == 2
    assert rows(library) == numbers(library)
    assert [generation.current for generation in library.vectors.generations()] == [True]


# Dies at a point of its work that its arguments name, as a kill does: nothing is cleaned up.
KILLED = """
import os, sys
from pathlib import Path
from fakes import FakeRuntime
from private_search import library
from private_search.files import Folder

library._STEP = 8
folder, notes, step, done = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
opened = library.Library(folder, FakeRuntime())
opened.add(Folder(notes))
opened.update(lambda progress: os._exit(9) if (progress.step, progress.done) >= (step, done)
              and progress.step == step else None)
"""


@pytest.mark.parametrize(("step", "done"), [("reading", 20), ("embedding", 16)])
def test_after_a_kill_it_goes_on(tmp_path: Path, step: str, done: int) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    for number in range(40):
        (notes / f"{number:02}.txt").write_text(f"Note {number}")
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, tmp_path / "library", notes, step, str(done)],
        env={"PYTHONPATH": ":".join(sys.path)},
        check=False,
    )
    assert killed.returncode == 9
    runtime = FakeRuntime()
    with Library(tmp_path / "library", runtime) as library:
        change = library.update()
        assert change.units == 40
        assert rows(library) == numbers(library)
        assert library.catalogue.count() == 40
        if step == "reading":
            # The file that it was at is read again.
            assert change.changed == 40 - 19
        else:
            # Each text as a document once in all: what was computed is in the store.
            assert change.changed == 0
            assert len([text for text in runtime.texts if "Note" in text]) <= 40 - 16 + 8
        assert library.update().embedded == 0


# Dies while Chroma writes its vector files, which are not as its mark says they were.
HALF_WRITTEN = """
import os, sys
from pathlib import Path
from chromadb import Collection
from fakes import FakeRuntime
from private_search.library import Library

def upsert(*arguments, original=Collection.upsert, **more):
    original(*arguments, **more)
    (mark,) = Path(sys.argv[1]).glob("chroma/*.unfinished")
    mark.write_text("other files")
    os._exit(9)

Collection.upsert = upsert
Library(Path(sys.argv[1]), FakeRuntime()).update()
"""


def test_a_collection_that_a_kill_left_half_written_is_filled_from_the_store(
    tmp_path: Path, notes: Path
) -> None:
    with Library(tmp_path / "library", FakeRuntime()) as library:
        library.add(Folder(notes))
        library.update()
    (notes / "bread.md").write_text("# The bread\n\nIt is done at 96 degrees.")
    (notes / "cat.md").unlink()
    killed = subprocess.run(
        [sys.executable, "-c", HALF_WRITTEN, tmp_path / "library"],
        env={"PYTHONPATH": ":".join(sys.path)},
        check=False,
    )
    assert killed.returncode == 9
    runtime, seen = FakeRuntime(), list[Progress]()
    with Library(tmp_path / "library", runtime) as library:
        with pytest.raises(CollectionDamaged):
            library.vectors.open()
        assert library.update(seen.append).embedded == 2
        assert [(each.done, each.total) for each in seen] == [(2, 2)]
        assert rows(library) == numbers(library)
        assert library.update().embedded == 0
    assert not [text for text in runtime.texts if "bread" in text or "router" in text]


def test_a_collection_that_was_deleted_is_filled_from_the_store(
    tmp_path: Path, notes: Path
) -> None:
    with Library(tmp_path / "library", FakeRuntime()) as library:
        library.add(Folder(notes))
        library.update()
    shutil.rmtree(tmp_path / "library" / "chroma")
    runtime = FakeRuntime()
    with Library(tmp_path / "library", runtime) as library:
        assert library.update().embedded == 3
        assert rows(library) == numbers(library)
    assert not [text for text in runtime.texts if "What there is to say" in text]


def test_a_library_that_stays_open_fills_a_collection_that_another_model_replaced(
    tmp_path: Path, notes: Path
) -> None:
    folder = tmp_path / "library"
    with Library(folder, FakeRuntime()) as open_all_the_time:
        open_all_the_time.add(Folder(notes))
        open_all_the_time.update()
        with Library(folder, FakeRuntime(), dimensions=256) as other:
            assert other.update().embedded == 3
        assert open_all_the_time.update().embedded == 3
        assert rows(open_all_the_time) == numbers(open_all_the_time)
        assert open_all_the_time.update().embedded == 0


def test_what_comes_back_after_its_vectors_left_gets_them_again(opened, notes: Path) -> None:
    library = opened(Folder(notes))
    library.update()
    documents = [found.document for found in library.catalogue.passages()]
    # A kill after this leaves vectors gone, and documents that are about to go.
    library.catalogue.db.execute("DELETE FROM units")
    library.catalogue.db.commit()
    assert titles(library) == []
    assert library.vectors.remove(documents) == 3
    assert library.update().embedded == 3
    assert rows(library) == numbers(library)


def test_an_index_of_another_version_is_refused(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "catalogue.sqlite")) as old:
        old.execute("CREATE TABLE units (number INTEGER PRIMARY KEY, source TEXT, key TEXT)")
    with pytest.raises(ConfigurationError, match="index again"):
        Library(tmp_path, FakeRuntime())


def test_a_library_opens_while_another_one_is_written(tmp_path: Path) -> None:
    with Library(tmp_path, FakeRuntime()) as writing:
        writing.catalogue.db.execute("INSERT INTO settings VALUES ('a', 'b')")
        # It would wait 30 seconds, and fail.
        Library(tmp_path, FakeRuntime()).close()


def test_questions_write_while_a_source_is_looked_at(
    opened, notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library, units = opened(Folder(notes), Folder(notes.parent)), Folder.units

    def looking(folder: Folder):
        with closing(sqlite3.connect(library.folder / "catalogue.sqlite", timeout=0)) as other:
            other.execute("INSERT OR REPLACE INTO settings VALUES ('calibration', '')")
            other.commit()
        return units(folder)

    monkeypatch.setattr(Folder, "units", looking)
    library.update()
    (notes / "cat.md").unlink()
    assert library.update().removed == 2


def test_the_folder_is_for_nobody_else(opened) -> None:
    assert opened().folder.stat().st_mode & 0o077 == 0


def test_the_sample_is_covered(shelf: Library) -> None:
    files, *_, mail = shelf.coverage()
    assert files.states == {"indexed": 27}
    assert mail.documents == 49
    assert json.dumps(files.units)
