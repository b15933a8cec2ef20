"""Files, mails and histories that somebody else made to stop or mislead the reader."""

from __future__ import annotations

import gzip
import os
import sqlite3
import time
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

import pytest

from gemma_embed.chroma.lock import locked
from gemma_embed.errors import CollectionLocked
from private_search.catalogue import Filter
from private_search.chunks import chunks_of, estimated_tokens
from private_search.documents import Document, Skipped, Source, Unit, Unreadable, stamp_of
from private_search.files import Folder
from private_search.history import History
from private_search.library import Library
from private_search.mail import Mail
from private_search.search import Search, _sentences_of
from private_search.text import on_terminal

HEAD = b"From: a@b.c\nSubject: Hello\n"
BOMB = b"a: &a [x, x, x, x, x, x, x, x, x, x]\n" + b"".join(
    b"%c: &%c [%s]\n" % (letter, letter, b", ".join([b"*%c" % (letter - 1)] * 10))
    for letter in b"bcdefghij"
)


def read(source: Source) -> list[Document | Skipped]:
    found: list[Document | Skipped] = []
    for unit in source.units():
        found += source.read(unit) if isinstance(unit, Unit) else [unit]
    return found


@pytest.mark.parametrize(
    "mail",
    [
        b"Subject: =?utf-8?b?a?=\n\nThe text.\n",
        *(
            HEAD + b"Content-Type: text/plain; charset=%s\n\nThe text.\n" % charset
            for charset in (b"undefined", b"punycode", b"idna", b"zlib", b'"a\0b"')
        ),
        HEAD + b"Content-Type: text/plain; charset=unicode_escape\n\nThe text. \\ud800\n",
        b"Subject: " + b"=?utf-8?q?a?= " * 20000 + b"\n\nThe text.\n",
        HEAD + b"Date: Mon, 1 Jan 99999 00:00:00 +0000\n\nThe text.\n",
    ],
)
def test_a_malformed_mail_is_read(tmp_path: Path, mail: bytes) -> None:
    (tmp_path / "a.eml").write_bytes(mail)
    (found,) = read(Mail(tmp_path))
    assert isinstance(found, Document)
    assert "The text." in found.text.encode().decode()


def test_a_mail_that_no_parser_takes_leaves_the_others(tmp_path: Path) -> None:
    deep = b"From x\n" + HEAD + b"Content-Type: message/rfc822\n\n" * 3000
    (tmp_path / "a.mbox").write_bytes(deep + b"\nFrom x\n" + HEAD + b"\nThe text.\n")
    damaged, found = read(Mail(tmp_path))
    assert isinstance(damaged, Skipped)
    assert (damaged.failed, damaged.reason) == (True, "damaged: RecursionError")
    assert found.text == "The text."


def test_a_mail_cannot_hide_behind_anothers_id(tmp_path: Path) -> None:
    mail = b"From x\nMessage-ID: <1@x>\nSubject: a\n\n%s\n\n"
    (tmp_path / "a.mbox").write_bytes(mail % b"One." + mail % b"Two." + mail % b"One.")
    found = read(Mail(tmp_path))
    assert [each.text for each in found][:2] == ["One.", "Two."]
    assert len({each.id for each in found}) == len(found)


def test_what_thunderbird_deleted_is_not_read(tmp_path: Path) -> None:
    mail = b"From x\nX-Mozilla-Status: %s\nSubject: a\n\n%s\n\n"
    (tmp_path / "a.mbox").write_bytes(mail % (b"0009", b"Gone.") + mail % (b"0001", b"There."))
    gone, there = read(Mail(tmp_path))
    assert isinstance(gone, Skipped)
    assert there.text == "There."


def test_a_large_mailbox_is_read(tmp_path: Path) -> None:
    with (tmp_path / "a.mbox").open("wb") as box:
        box.truncate(60_000_000)
    (unit,) = Mail(tmp_path).units()
    assert isinstance(unit, Unit)


@pytest.mark.parametrize("name", ["title", "tags"])
def test_front_matter_that_explodes_is_no_title(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.md").write_bytes(b"---\n%s%s: *j\n---\nThe text." % (BOMB, name.encode()))
    (found,) = read(Folder(tmp_path))
    assert (found.title, found.labels, found.text) == ("a", "", "The text.")


@pytest.mark.parametrize("front", ['tags: "\\ud800a"', 'title: "\\ud800a"'])
def test_halves_of_characters_in_front_matter_stop_nothing(opened, tmp_path: Path, front) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "a.md").write_text(f"---\n{front}\n---\n# A\n\nThe text.")
    (notes / "b.md").write_text(f"---\n{front}\n---\n")
    (notes / "c.md").write_text("The other text.")
    library = opened(Folder(notes))
    library.update()
    assert "The other text." in [found.text for found in library.catalogue.passages()]
    assert library.coverage()[0].documents >= 2


def test_long_front_matter_costs_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_bytes(b"---\n" + b"a: [1, 2, 3]\n" * 100_000 + b"---\nThe text.")
    (found,) = read(Folder(tmp_path))
    assert found.text == "The text."


def test_a_word_document_that_unpacks_without_end_is_not_read(tmp_path: Path) -> None:
    with ZipFile(tmp_path / "a.docx", "w", ZIP_DEFLATED, compresslevel=1) as made:
        made.writestr("word/document.xml", bytes(51_000_000))
    with pytest.raises(Unreadable, match="unpacked"):
        read(Folder(tmp_path))


def test_a_compressed_text_that_unpacks_without_end_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"a " * 30_000_000))
    with pytest.raises(Unreadable, match="larger than 50 MB unpacked"):
        read(Folder(tmp_path))


@pytest.mark.parametrize(
    "wrong",
    [gzip.compress(b"Text.")[:-9], gzip.compress(b"Text.") + b"!"],
    ids=["cut short", "something after it"],
)
def test_half_of_a_compressed_text_is_not_taken_for_it(tmp_path: Path, wrong: bytes) -> None:
    (tmp_path / "a.log.gz").write_bytes(wrong)
    with pytest.raises(Unreadable, match="damaged"):
        read(Folder(tmp_path))


@pytest.mark.parametrize("part", ["a", "1", "漢", ";", "word\xa0"])
def test_a_megabyte_without_a_space_is_cut(part: str) -> None:
    text = (part * 10**6)[: 10**6]
    document = Document(id="x", kind="file", title="x", text=text, address="x")
    started = time.process_time()
    chunks = list(chunks_of(document))
    assert time.process_time() - started < 2
    assert sum(len(chunk.text) for chunk in chunks) >= 10**6
    assert max(estimated_tokens(chunk.text) for chunk in chunks) <= 512


@pytest.mark.parametrize("depth", [300, 100_000])
def test_a_page_that_the_parser_gives_up_is_failed(tmp_path: Path, depth: int) -> None:
    (tmp_path / "deep.html").write_text("<div>" * depth + "The text.")
    with pytest.raises(Unreadable, match="nested deeper") as raised:
        read(Folder(tmp_path))
    assert not raised.value.skipped


def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "key.txt").write_text("secret")
    (folder / "a.txt").symlink_to(tmp_path / "key.txt")
    (found,) = read(Folder(folder))
    assert found.reason == "a link out of the folder"


def history(path: Path, *rows: tuple[object, ...]) -> History:
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE urls (url, title, last_visit_time, visit_count, hidden)")
        db.executemany("INSERT INTO urls VALUES (?, CAST(? AS TEXT), ?, 1, 0)", rows)
    db.close()
    return History(path)


def test_one_row_of_a_history_does_not_hide_the_others(tmp_path: Path) -> None:
    source = history(
        tmp_path / "History",
        ("http://[bad", "x", 13e15),
        ("https://a.example/", b"\xff broken", 13e15),
        ("https://b.example/", "b", 9e18),
        (None, "c", 13e15),
    )
    found = [each for each in read(source) if isinstance(each, Document)]
    assert {each.site for each in found} == {"a.example", "b.example"}
    assert [each.date for each in found if each.site == "b.example"] == [None]


def test_visits_are_told_apart_and_dated_by_the_last_one(tmp_path: Path) -> None:
    long = "https://a.example/" + 300 * "x"
    source = history(
        tmp_path / "History",
        (f"{long}1?p&reference=5&id=", "One", 13.2e15),
        (f"{long}1?p&reference=5&id=#part", "One", 13.1e15),
        (f"{long}2", "Two", 13e15),
    )
    two, one = sorted(read(source), key=lambda each: each.date)
    assert (one.address, two.address) == (f"{long}1?p&reference=5&id=", f"{long}2")
    assert one.date == 13.2e9 - 11_644_473_600


def test_the_same_page_in_two_browsers_is_lost_with_neither(opened, tmp_path: Path) -> None:
    row = ("https://a.example/", "The boiler", 13e15)
    first, second = (history(tmp_path / name, row) for name in ("one", "two"))
    library = opened(first, second)
    library.update()
    library.forget(second.name)
    library.update()
    assert [each.title for each in library.catalogue.passages()] == ["The boiler"]


def test_a_folder_within_another_is_forgotten_alone(opened, tmp_path: Path) -> None:
    (tmp_path / "all" / "some").mkdir(parents=True)
    (tmp_path / "all" / "some" / "a.txt").write_text("text")
    library = opened(Folder(tmp_path / "all"), Folder(tmp_path / "all" / "some"))
    library.update()
    library.forget(str(tmp_path / "all" / "some"))
    library.update()
    assert library.catalogue.count() == 1


def test_a_file_replaced_by_one_of_the_same_size_and_time_has_another_stamp(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one")
    before, stat = stamp_of(path), path.stat()
    (tmp_path / "b.txt").write_text("two")
    (tmp_path / "b.txt").replace(path)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_mtime_ns == stat.st_mtime_ns
    assert stamp_of(path) != before


def test_two_updates_at_once_are_refused(opened) -> None:
    library = opened()
    with locked(library.folder, 0), pytest.raises(CollectionLocked):
        library.update()


def test_deleted_words_leave_the_catalogues_file(opened, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "a.txt").write_text("kept words")
    (notes / "b.txt").write_text("xylophonic words")
    library = opened(Folder(notes))
    library.update()
    path = library.folder / "catalogue.sqlite"
    library.catalogue.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert b"xylophonic" in path.read_bytes()
    (notes / "b.txt").unlink()
    library.update()
    library.catalogue.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert b"xylophonic" not in path.read_bytes()


@pytest.mark.parametrize(
    "question",
    ['"', 'roof" OR title:"x', "NEAR(a b) AND NOT *", "a\0b", "_", "^-:(){}", "²", " ".join(
        f"word{number}" for number in range(2000))],
)  # fmt: skip
def test_no_question_is_a_query(shelf: Library, question: str) -> None:
    search = Search(shelf)
    assert isinstance(search._by_words(search.weights(question), Filter()), list)


def test_more_senders_than_a_statement_has_variables(opened) -> None:
    catalogue = opened().catalogue
    catalogue.db.executemany(
        "INSERT INTO documents (id, sender) VALUES (?, ?)",
        ((str(number), f"{number}@example.org") for number in range(40_000)),
    )
    assert catalogue.matching('"x"', Filter(sender="example"), 5) == []
    assert catalogue.by_number([10**30, 5]) == {}


def test_one_line_on_a_terminal() -> None:
    assert on_terminal("a\n[1] b\x1b[2J\u2028c\x9b") == "a [1] b[2J c"


def test_a_heading_is_no_answer() -> None:
    assert _sentences_of("# The bread\n\nIt is done. At 96 °C.") == ["It is done.", "At 96 °C."]
    assert _sentences_of("## The key is under the pot") == ["## The key is under the pot"]
