"""What each source reads, and what it says of the rest."""

from __future__ import annotations

import gzip
import mailbox
import os
import shutil
import sqlite3
from email.message import EmailMessage
from pathlib import Path

import pytest
from pypdf import PdfWriter

from private_search.__main__ import SAMPLE, sample
from private_search.chunks import chunks_of
from private_search.documents import Document, Skipped, Source, Unit, Unreadable
from private_search.files import Folder
from private_search.history import History
from private_search.mail import Mail, own_words


def documents(source: Source) -> dict[str, Document]:
    """A source's documents, by the last part of their ids."""
    found: dict[str, Document] = {}
    for unit in source.units():
        if isinstance(unit, Unit):
            for item in source.read(unit):
                if isinstance(item, Document):
                    assert item.title
                    assert item.text
                    assert item.id not in found
                    found[item.id.replace("#", "/").rpartition("/")[2]] = item
    return found


def reasons(source: Source) -> dict[str, str]:
    return {
        unit.key.rpartition("/")[2]: unit.reason
        for unit in source.units()
        if isinstance(unit, Skipped)
    }


def read_one(folder: Path, name: str, data: bytes) -> Document:
    (folder / name).write_bytes(data)
    (found,) = documents(Folder(folder)).values()
    return found


def test_a_folder_named_like_a_file_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "x.org").mkdir()
    (tmp_path / "x.org" / "a.md").write_text("text")
    assert list(documents(Folder(tmp_path))) == ["a.md"]


def test_a_broken_link_is_skipped_and_said(tmp_path: Path) -> None:
    (tmp_path / "TZ.txt").symlink_to("/nowhere")
    assert reasons(Folder(tmp_path)) == {"TZ.txt": "a broken link"}


def test_a_link_to_a_folder_above_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("text")
    (tmp_path / "loop").symlink_to(tmp_path)
    assert list(documents(Folder(tmp_path))) == ["a.md"]
    assert reasons(Folder(tmp_path)) == {"loop": "a link to a folder"}


def test_a_name_that_is_not_utf8_is_shown_with_escapes(tmp_path: Path) -> None:
    with open(os.path.join(os.fsencode(tmp_path), b"caf\xe9.md"), "w") as opened:  # noqa: PTH118, PTH123
        opened.write("text")
    (found,) = documents(Folder(tmp_path)).values()
    assert found.id.endswith(r"caf\xe9.md")
    found.title.encode()


def test_a_heading_alone_is_the_text(tmp_path: Path) -> None:
    found = read_one(tmp_path, "key.md", b"# The spare key is under the blue pot\n")
    assert "blue pot" in found.text


def test_suffixes_count_in_capitals(tmp_path: Path) -> None:
    assert read_one(tmp_path, "ROUTER.MD", b"# Router\n\nIts light blinks.").title == "Router"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32", "latin-1", "cp1252"])
def test_encodings(tmp_path: Path, encoding: str) -> None:
    text = "# Müll\n\nDie Säcke für Grünschnitt hängen im Flur, Größe 90 Liter. Schlüssel am Haken."
    found = read_one(tmp_path, "a.md", text.encode(encoding))
    assert (found.title, found.text) == ("Müll", text.partition("\n\n")[2])
    assert bool(found.note) == (encoding in ("latin-1", "cp1252"))


def test_compressed_files_are_what_is_in_them(tmp_path: Path) -> None:
    (tmp_path / "picture.png.gz").write_bytes(b"")
    news = read_one(tmp_path, "NEWS.md.GZ", gzip.compress(b"# News\n\nA new gauge."))
    assert (news.title, news.text) == ("News", "A new gauge.")
    assert reasons(Folder(tmp_path))["picture.png.gz"] == "no reader for .png"
    # As logs are continued.
    log = gzip.compress(b"One.\n") + gzip.compress(b"Two.\n")
    (tmp_path / "logs").mkdir()
    assert read_one(tmp_path / "logs", "a.log.gz", log).text == "One.\nTwo."


def test_a_title_has_a_bounded_length(tmp_path: Path) -> None:
    assert len(read_one(tmp_path, "a.md", b"# " + b"long " * 3200 + b"\n\ntext").title) == 200


def test_front_matter_is_taken_off_and_used(tmp_path: Path) -> None:
    data = b"---\ntitle: Bread\ntags: [a, b]\ndate: 2026-01-02\n---\n\nFlour and water.\n"
    found = read_one(tmp_path, "a.md", data)
    assert (found.title, found.text, found.labels, found.line) == (
        "Bread", "Flour and water.", "a, b", 7,
    )  # fmt: skip
    assert found.date == 1767312000


def test_front_matter_that_is_no_yaml_gives_its_title(tmp_path: Path) -> None:
    found = read_one(tmp_path, "a.md", b"---\ntitle: a: b: c\n---\nText.\n")
    assert (found.title, found.text) == ("a: b: c", "Text.")


def test_front_matter_that_is_no_yaml_gives_the_rest_too(tmp_path: Path) -> None:
    data = b"---\ntitle: a: b\ndate: 2026-01-02\ntags: [x, y]\n---\nText.\n"
    found = read_one(tmp_path, "a.md", data)
    assert (found.title, found.date, found.labels) == ("a: b", 1767312000, "x, y")


def test_hidden_folders_are_skipped(tmp_path: Path) -> None:
    (tmp_path / ".trash").mkdir()
    (tmp_path / ".trash" / "old.md").write_text("deleted")
    assert not documents(Folder(tmp_path))
    assert reasons(Folder(tmp_path)) == {".trash": "hidden, or not a person's own"}


@pytest.mark.parametrize(
    ("name", "data"),
    [("a.pdf", b"%PDF-1.4 nothing"), ("a.docx", b"PK nothing"), ("a.txt", b"a\0b"), ("a.md", b"")],
)
def test_damage_is_a_reason_and_no_crash(tmp_path: Path, name: str, data: bytes) -> None:
    with pytest.raises(Unreadable):
        read_one(tmp_path, name, data)


def test_the_samples_files() -> None:
    found = documents(sample()[0])
    assert found["warranty-washer.pdf"].pages[0] == 0
    assert len(found["warranty-washer.pdf"].pages) == 3
    assert "# The boats" in found["glossary-la-digue.docx"].text
    assert "Home" not in found["dishwasher.html"].text
    assert found["utf16.txt"].text.startswith("Postcode of the cabin")
    assert "Müllabfuhr" in found["latin1.txt"].text
    assert found["heating.txt"].folder == "files/house"


def test_pages_are_counted_from_the_first_also_if_it_has_no_text(tmp_path: Path) -> None:
    pdf = PdfWriter(SAMPLE / "files" / "house" / "warranty-washer.pdf")
    pdf.insert_blank_page(index=0)
    pdf.write(tmp_path / "a.pdf")
    (found,) = documents(Folder(tmp_path)).values()
    assert next(chunks_of(found)).place == "page 2"


def test_a_folder_whose_name_is_not_utf8_is_a_place_that_can_be_stored(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), b"caf\xe9")))  # noqa: PTH118
    folder.mkdir()
    (folder / "a.md").write_text("text")
    (found,) = documents(Folder(tmp_path)).values()
    assert found.folder.encode() == f"{tmp_path.name}/caf\\xe9".encode()


def test_html_keeps_its_order_and_its_cells_apart(tmp_path: Path) -> None:
    page = (
        "<table><tr><td>Boiler</td><td>240 euros</td></tr></table><div>One <b>two</b> three.</div>"
        "Four.<p style='font-size:0.9em'>Five.</p><p style='font-size: 0px'>Six.</p>"
        "<p style='DISPLAY : none'>Seven.</p>"
    )
    text = "Boiler 240 euros\nOne two three.\nFour.\n\nFive."
    (tmp_path / "a.eml").write_text(f"Content-Type: text/html\n\n{page}")
    (found,) = documents(Mail(tmp_path)).values()
    assert found.text == text


def test_the_samples_mail() -> None:
    found = documents(sample()[1])
    assert len(found) == 49
    reply = found["roof-reply@example.org"]
    assert reply.title == "Offer for your roof, no. 2026-0417"
    assert reply.sender == "Jon Sandvik <jon.sandvik@example.org>"
    assert reply.text.endswith("zinc lasts forty years.")
    assert "Phone" not in found["roof-offer@example.org"].text
    recall = found["car-recall@example.org"].text
    assert recall.startswith("Dear customer")
    assert "browser" not in recall
    assert "utm_" not in found["library-fine@example.org"].text
    assert found["ja-reader@example.org"].sender.startswith("佐藤 恵 <")
    assert "2 184 euros" in found["fw-contract@example.org"].text
    assert "PDF" not in found["insurance-bike@example.org"].text
    assert found["school-trip@example.org"].address.endswith("school-trip.eml")


def test_a_maildir_message_keeps_its_id_when_it_is_read(tmp_path: Path) -> None:
    box = mailbox.Maildir(tmp_path / "box")
    message = EmailMessage()
    message["Subject"], message["From"] = "Hello", "A <a@example.org>"
    message.set_content("A message.")
    key = box.add(message)
    before = list(Mail(tmp_path).units())
    changed = box[key]
    changed.set_subdir("cur")
    changed.add_flag("S")
    box[key] = changed
    assert [unit.key for unit in Mail(tmp_path).units()] == [unit.key for unit in before]
    (found,) = documents(Mail(tmp_path)).values()
    assert (found.folder, found.text) == ("box", "A message.")


def test_a_mailbox_of_any_name_is_one(tmp_path: Path) -> None:
    (tmp_path / "2026-January.txt").write_text("From a\nSubject: Hello\n\nThe text.\n")
    (tmp_path / "notes.txt").write_text("No mail.")
    (found,) = documents(Mail(tmp_path)).values()
    assert (found.text, found.folder) == ("The text.", "2026-January")
    assert reasons(Mail(tmp_path)) == {"notes.txt": "no mail"}


def test_what_is_forwarded_is_the_message(tmp_path: Path) -> None:
    body = "-----Original Message-----\nFrom: C\n\n> The key is under the pot.\n"
    (tmp_path / "a.eml").write_text(f"Subject: Fwd: key\n\nFor you.\n\n{body}")
    (found,) = documents(Mail(tmp_path)).values()
    assert "under the pot" in found.text


def test_a_mail_with_an_empty_page_is_its_subject(tmp_path: Path) -> None:
    (tmp_path / "a.eml").write_text("Subject: At ten?\nContent-Type: text/html\n\n")
    (found,) = documents(Mail(tmp_path)).values()
    assert found.text == "At ten?"


@pytest.mark.parametrize(
    ("text", "own"),
    [
        ("Yes.\nAnna wrote:\n> Come?\n", "Yes."),
        ("Hello\n> On 22 Aug, A <a@b.c> wrote:\n>\n> Hi!\n", "Hello"),
        ("Oui.\n\nDe : A\nEnvoyé : lundi\nÀ : B\n\nTexte", "Oui."),
        ("Yes.\n\nOn Mon, 3 Feb 2025 at 10:12, A <a@b.c>\nwrote:\n> Come?\n", "Yes."),
        ("> Come?\n\nYes.\n\n> When?\n\nAt ten.\n", "Yes.\n\nAt ten."),
        ("Ja.\n\nAm 3. Februar schrieb A:\n> Kommst du?\n", "Ja."),
        ("Oui.\n\n-----Message d'origine-----\nDe : A\nTexte", "Oui."),
        ("Si.\n\nVon: A\nGesendet: Montag\nAn: B\n\nText", "Si."),
        ("Hello.\n\n-- \nA. B.\nPhone 1", "Hello."),
        ("Hello.\n\nSent from my telephone", "Hello."),
        ("She wrote: the list:\n- a\n- b\n", "She wrote: the list:\n- a\n- b"),
        ("> all of it\n> is quoted\n", "> all of it\n> is quoted"),
    ],
)
def test_own_words(text: str, own: str) -> None:
    assert own_words(text) == own


def test_the_samples_pages() -> None:
    chrome, firefox = map(documents, sample()[2:])
    page = chrome["hand-plane" if "hand-plane" in chrome else "sharpen-hand-plane"]
    assert page.site == "woodwise.example"
    assert page.date == 1771100100
    assert page.text.startswith("# How to sharpen")
    assert "Cookie" not in page.text
    assert firefox["pegs-slip"].date == 1768762800
    assert chrome["freiburg"].note.endswith("only title and address")
    assert chrome["search?q=scan+slides+freiburg"].site == "maps.example"
    assert "苔" in chrome["koke"].text
    assert "Log in" not in chrome["koke"].text


def test_a_history_that_the_browser_holds_is_read(tmp_path: Path) -> None:
    path = tmp_path / "History"
    shutil.copy(SAMPLE / "history" / "chrome.sqlite", path)
    browser = sqlite3.connect(path, isolation_level=None)
    browser.execute("PRAGMA locking_mode = EXCLUSIVE")
    browser.execute("BEGIN EXCLUSIVE")
    assert len(documents(History(path))) == 16
    browser.close()


def test_a_visit_in_the_journal_is_read(tmp_path: Path) -> None:
    path = tmp_path / "places.sqlite"
    shutil.copy(SAMPLE / "history" / "firefox.sqlite", path)
    browser = sqlite3.connect(path)
    browser.execute("PRAGMA journal_mode = WAL")
    (before,) = History(path).units()
    browser.execute(
        "INSERT INTO moz_places (url, title, visit_count, last_visit_date) "
        "VALUES ('https://u:p@new.example/a?utm_source=x', 'New', 1, 1780000000000000)"
    )
    browser.commit()
    (after,) = History(path).units()
    assert before != after
    assert documents(History(path))["a"].address == "https://new.example/a"
    browser.close()


def test_another_database_is_refused(tmp_path: Path) -> None:
    sqlite3.connect(tmp_path / "a.sqlite").execute("CREATE TABLE a (b)").connection.close()
    with pytest.raises(Unreadable, match="neither"):
        documents(History(tmp_path / "a.sqlite"))
    (tmp_path / "b.sqlite").write_text("no database at all" * 100)
    with pytest.raises(Unreadable, match="not a history"):
        documents(History(tmp_path / "b.sqlite"))
