"""Mailboxes: mbox files, Maildir folders, single .eml files, and folders of all of them."""

from __future__ import annotations

import hashlib
import mailbox
import re
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from email import message_from_bytes
from email.errors import HeaderParseError
from email.header import decode_header, make_header
from email.message import Message
from functools import partial
from pathlib import Path

from private_search.documents import Document, Skipped, Source, Unit, Unreadable, read_part, walked
from private_search.text import cleaned, decoded, seconds_of, title_from, visible
from private_search.webpage import mail_text

_QUOTATION = re.compile(r"(?:^[ \t]?>.*\n?)+", re.MULTILINE)
# "On Monday, Anna wrote:" before a quotation. Mail programs wrap it to three lines.
_ATTRIBUTION = re.compile(
    r"^([ \t]*(On|Am|Le|El|Il|Op|Den|Dne|W dniu)\b.*\n(.*\S.*\n)?)?"
    r".*\b(wrote|writes|schrieb|a écrit|escribió|ha scritto|schreef|skrev|napsal|napisał)\b"
    r".{0,80}:\s*\Z",
    re.MULTILINE,
)
# What ends the sender's words: the signature's mark (RFC 3676, 4.3), what telephones add, and what
# Outlook puts above the mail that is answered.
_END = re.compile(
    r"^(-- ?|_{20,}|(Sent from|Gesendet von|Envoyé (de|depuis)|Enviado desde|Inviato da|Verzonden "
    r"vanaf) (my|mein\w*|mon|mi|mijn)\b.{0,40}"
    r"|-{3,} ?(Original Message|Ursprüngliche Nachricht|Message d'origine|Mensaje original|"
    r"Messaggio originale) ?-{3,}"
    r"|(From|Von|De|Da) ?: .+\n(Sent|Gesendet|Envoyé|Enviado|Inviato|Date|Datum) ?: .+)$",
    re.MULTILINE | re.IGNORECASE,
)
_FORWARD = re.compile(r"(fwd?|wg|tr|rv|doorst)\s*:", re.IGNORECASE)
_REPLY = re.compile(r"^((re|aw|sv|antw|rép|rif|vs)(\[\d+\])?\s*:\s*)+", re.IGNORECASE)
_DELETED = re.compile(r"[\da-f]{3}[89a-f]", re.IGNORECASE)
_LONGEST_HEADER = 10_000


class Mail(Source):
    """A mailbox, or a folder with mailboxes and .eml files."""

    def units(self) -> Iterator[Unit | Skipped]:
        """List mailboxes, and the messages that are files of their own."""
        for unit in walked(self.root, lambda path: "" if _kind(path) else "no mail"):
            if isinstance(unit, Unit) and _kind(unit.path) == "maildir":
                # A message that is read gets another name: `new/1` becomes `cur/1:2,S`.
                path = Path(unit.key)
                key = str(path.parent.parent / path.name.partition(":")[0])
                yield Unit(key, unit.path, unit.stamp.rpartition("-")[2])
            else:
                yield unit

    def read(self, unit: Unit) -> Iterator[Document | Skipped]:
        """Read the messages."""
        path = Path(unit.key)
        folder = path.stem if _kind(unit.path) == "mbox" else path.parent.name.lstrip(".")
        seen: set[str] = set()
        for number, raw in enumerate(_messages(unit.path), 1):
            read = partial(self._document, unit, folder, raw, seen)
            yield read_part(f"{unit.key} message {number}", read)

    def _document(self, unit: Unit, folder: str, raw: bytes, seen: set[str]) -> Document:
        message = message_from_bytes(raw)
        # Thunderbird only marks what was deleted, until it compacts the folder.
        if _DELETED.fullmatch(_header(message, "X-Mozilla-Status")):
            raise Unreadable("a deleted message", skipped=True)
        subject = _header(message, "Subject")
        # What is forwarded is the message, whoever wrote it.
        text = _body(message, cleaned if _FORWARD.match(subject) else own_words)
        if not text and not subject:
            raise Unreadable("a message without text", skipped=True)
        title = title_from(_REPLY.sub("", subject))
        digest = hashlib.blake2b(raw, digest_size=8).hexdigest()
        place = _header(message, "Message-ID").strip("<> ") or digest
        if place in seen:
            # Another message may have its id, by mistake or to hide behind it.
            place = f"{place}#{digest}"
        seen.add(place)
        return Document(
            id=f"mail:{self.name}:{unit.key}#{place}",
            kind="mail",
            title=title,
            text=text or title,
            address=unit.key,
            date=seconds_of(_header(message, "Date")),
            place=place,
            sender=_header(message, "From").replace('"', ""),
            recipients=", ".join(filter(None, (_header(message, "To"), _header(message, "Cc")))),
            labels=_header(message, "X-Gmail-Labels") or _header(message, "Keywords"),
            folder=folder,
        )


def _kind(path: Path) -> str:
    """Return what a file is: eml, mbox, maildir (a message in one), or nothing for no mail."""
    if path.parent.name in ("cur", "new") and (path.parent.parent / "tmp").is_dir():
        return "maildir"
    if path.suffix.lower() in (".eml", ".mbox"):
        return path.suffix.lower().removeprefix(".")
    with path.open("rb") as opened:
        return "mbox" if opened.read(5) == b"From " else ""


def _messages(path: Path) -> Iterator[bytes]:
    if _kind(path) != "mbox":
        yield path.read_bytes()
        return
    with closing(mailbox.mbox(path, create=False)) as box:
        for key in box.keys():  # noqa: SIM118 - iterating a mailbox parses its messages
            yield box.get_bytes(key)


def _body(message: Message, own: Callable[[str], str]) -> str:
    texts: dict[str, list[str]] = {"text/plain": [], "text/html": []}
    for part in message.walk():
        kind = part.get_content_type()
        if kind in texts and part.get_content_disposition() != "attachment":
            data = part.get_payload(decode=True)
            texts[kind].append(decoded(data, part.get_content_charset())[0])
    text = own("\n\n".join(texts["text/plain"]))
    if len(text) < 20 and texts["text/html"]:
        text = max(text, own(mail_text("\n".join(texts["text/html"]))), key=len)
    return text


def own_words(text: str) -> str:
    """Return what the sender wrote: no quoted replies, no signature. Never less than something."""
    text = visible(text)
    own = "".join(map(_without_attribution, _QUOTATION.split(text)))
    if end := _END.search(own):
        own = own[: end.start()]
    return cleaned(own) or cleaned(text)


def _without_attribution(text: str) -> str:
    found = _ATTRIBUTION.search(text, max(0, len(text) - 400))
    return text[: found.start()] if found else text


def _header(message: Message, name: str) -> str:
    # Long ones are lists of thousands of recipients, or hostile: parsers take quadratic time.
    raw = text = str(message.get(name, ""))[:_LONGEST_HEADER]
    if "=?" in raw:
        with suppress(LookupError, ValueError, HeaderParseError):
            text = str(make_header(decode_header(raw)))
    return " ".join(visible(text).split())
