"""Mailboxes: mbox files, Maildir folders, single .eml files, and folders of all of them."""

from __future__ import annotations

import hashlib
import mailbox
import math
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from email import message_from_bytes
from email.errors import HeaderParseError
from email.header import decode_header, make_header
from email.message import Message
from email.utils import getaddresses, parsedate_to_datetime
from pathlib import Path

from private_search.documents import Document, Skipped, Unit, Unreadable, guarded, stamp_of
from private_search.files import shown_path, walked
from private_search.text import cleaned, decoded, title_from, visible
from private_search.webpage import mail_text

# The signature's mark (RFC 3676, 4.3), and what telephones add.
_SIGNATURE = re.compile(
    r"^(-- ?|_{20,}|(Sent from|Gesendet von|Envoyé (de|depuis)|Enviado desde|Inviato da|Verzonden "
    r"vanaf) (my|mein\w*|mon|mi|mijn)\b.{0,40})$",
    re.MULTILINE,
)
_WROTE = r"(wrote|writes|schrieb|a écrit|escribió|ha scritto|schreef|skrev|napsal|pisze|napisał\w*)"
# The end of "On Monday, Anna wrote:" before a quotation, and how such lines begin.
_ATTRIBUTION = re.compile(
    r"\b(?:wrote|writes|schrieb|a écrit|escribió|ha scritto|schreef|skrev|napsal|napisał)\b"
    r"[^\n]{0,80}:[ \t]*\n(?=\s*>|\s*\Z)"
)
_STARTS = re.compile(r"[ \t]*(On|Am|Le|El|Il|Op|Den|Dne|W dniu)\b")
_QUOTED = re.compile(r"^[ \t]?>.*\n?", re.MULTILINE)
# What Outlook puts above the mail that is answered. A forwarded one is kept: it is the message.
_ORIGINAL = re.compile(
    r"^(-{3,} ?(Original Message|Ursprüngliche Nachricht|Message d'origine|Mensaje original|"
    r"Messaggio originale) ?-{3,}"
    r"|(From|Von|De|Da): .+\n(Sent|Gesendet|Envoyé|Enviado|Inviato|Date|Datum): .+)$",
    re.MULTILINE | re.IGNORECASE,
)
_FORWARD = re.compile(r"^\s*(fwd?|wg|tr|rv|doorst)\s*:", re.IGNORECASE)
_REPLY = re.compile(r"^((re|aw|sv|antw|rép|rif|vs)(\[\d+\])?\s*:\s*)+", re.IGNORECASE)
_MARK = re.compile(rb"^From ")
_DELETED = re.compile(r"[\da-f]{3}[89a-f]", re.IGNORECASE)
_LONGEST_HEADER = 10_000


@dataclass(frozen=True)
class Mail:
    """A mailbox, or a folder with mailboxes and .eml files."""

    root: Path

    @property
    def name(self) -> str:
        """The path."""
        return shown_path(self.root)

    def units(self) -> Iterator[Unit | Skipped]:
        """List mailboxes, and the messages that are files of their own."""
        if self.root.is_file():
            yield Unit(self.name, self.root, stamp_of(self.root))
            return
        # A mailbox of any size is read message by message.
        for unit in walked(self.root, lambda path: _in_maildir(path) or _is_mail(path), math.inf):
            if isinstance(unit, Unit) and _in_maildir(unit.path):
                # A message that is read gets another name: `new/1` becomes `cur/1:2,S`.
                folder = unit.path.parent.parent
                key = shown_path(folder / unit.path.name.partition(":")[0])
                unit = Unit(key, unit.path, unit.stamp.rpartition("-")[2])
            yield unit

    def read(self, unit: Unit) -> Iterator[Document | Skipped]:
        """Read the messages."""
        if _in_maildir(unit.path):
            folder = unit.path.parent.parent.name.lstrip(".")
        else:
            folder = unit.path.stem if _is_mbox(unit.path) else unit.path.parent.name
        seen: set[str] = set()
        for number, raw in enumerate(_messages(unit.path), 1):
            try:
                with guarded():
                    document = _document(message_from_bytes(raw), raw, self.name, unit, folder)
                if document.id in seen:
                    # Another message may have its id, by mistake or to hide behind it.
                    document = replace(document, id=f"{document.id}#{_digest(raw)}")
                if document.id not in seen:
                    seen.add(document.id)
                    yield document
            except Unreadable as error:
                yield Skipped(f"{unit.key} message {number}", str(error), failed=not error.skipped)


def _messages(path: Path) -> Iterator[bytes]:
    if _in_maildir(path) or not _is_mbox(path):
        yield path.read_bytes()
        return
    box = mailbox.mbox(path, create=False)
    try:
        for key in box.keys():  # noqa: SIM118 - iterating a mailbox parses its messages
            yield box.get_bytes(key)
    finally:
        box.close()


def _digest(raw: bytes) -> str:
    return hashlib.blake2b(raw, digest_size=8).hexdigest()


def _document(message: Message, raw: bytes, source: str, unit: Unit, folder: str) -> Document:
    # Thunderbird only marks what was deleted, until it compacts the folder.
    if _DELETED.fullmatch(_header(message, "X-Mozilla-Status")):
        raise Unreadable("a deleted message", skipped=True)
    subject = _header(message, "Subject")
    text = _body(message, forwarded=bool(_FORWARD.match(subject)))
    title = title_from(_REPLY.sub("", subject))
    if not text and not subject:
        raise Unreadable("a message without text", skipped=True)
    named = _header(message, "Message-ID").strip("<> ")
    place = named or _digest(raw)
    return Document(
        id=f"mail:{source}:{unit.key}#{place}",
        kind="mail",
        title=title,
        text=text or title,
        address=unit.key if _in_maildir(unit.path) else shown_path(unit.path),
        date=_sent(message),
        place=place,
        sender=_people(message, "From"),
        recipients=_people(message, "To", "Cc"),
        labels=_header(message, "X-Gmail-Labels") or _header(message, "Keywords"),
        folder=folder,
    )


def _body(message: Message, *, forwarded: bool) -> str:
    plain: list[str] = []
    pages: list[str] = []
    for part in message.walk():
        kind = part.get_content_type()
        attached = part.get_content_disposition() == "attachment"
        if attached or part.is_multipart() or kind not in ("text/plain", "text/html"):
            continue
        data = part.get_payload(decode=True)
        if isinstance(data, bytes):
            (plain if kind == "text/plain" else pages).append(_decoded(data, part))
    text = own_words("\n\n".join(plain), forwarded=forwarded)
    if len(text) < 20 and pages:
        text = max(text, own_words(mail_text("\n".join(pages)), forwarded=forwarded), key=len)
    return text


def _decoded(data: bytes, part: Message) -> str:
    try:
        return data.decode(part.get_content_charset() or "utf-8")
    except (LookupError, ValueError):
        return decoded(data)[0]


def own_words(text: str, *, forwarded: bool = False) -> str:
    """Return what the sender wrote: no quoted replies, no signature. Never less than something.

    Args:
        text: A message's text.
        forwarded: Whether what stands under "Original Message" is the message.
    """
    text = visible(text)
    own = _QUOTED.sub("", _without_attributions(text)) if ">" in text else text
    if not forwarded and (original := _ORIGINAL.search(own)):
        own = own[: original.start()]
    if signature := _SIGNATURE.search(own):
        # In a forwarded mail more follows than a signature.
        rest = own[signature.end() :]
        own = own[: signature.start()] if not forwarded or len(rest) < 300 else own
    return cleaned(own) or cleaned(text)


def _without_attributions(text: str) -> str:
    parts, position = [], 0
    for found in _ATTRIBUTION.finditer(text):
        start = text.rfind("\n", 0, found.start()) + 1
        # Mail programs wrap them.
        for _ in range(2):
            before = text.rfind("\n", 0, max(start - 1, 0)) + 1
            if start and not _STARTS.match(text, start) and text[before : start - 1].strip():
                start = before
        parts.append(text[position : max(start, position)])
        position = found.end()
    return "".join([*parts, text[position:]])


def _header(message: Message, name: str) -> str:
    # Long ones are lists of thousands of recipients, or hostile: parsers take quadratic time.
    raw = text = str(message.get(name, ""))[:_LONGEST_HEADER]
    if "=?" in raw:
        with suppress(LookupError, ValueError, HeaderParseError):
            text = str(make_header(decode_header(raw)))
    return " ".join(visible(text).encode(errors="replace").decode().split())


def _people(message: Message, *names: str) -> str:
    people = getaddresses([_header(message, name) for name in names])
    return ", ".join(f"{name} <{address.lower()}>" if name else address.lower()
                     for name, address in people if address)  # fmt: skip


def _sent(message: Message) -> float | None:
    try:
        return parsedate_to_datetime(_header(message, "Date")).timestamp()
    except (ValueError, TypeError, OverflowError, OSError):
        return None


def _in_maildir(path: Path) -> bool:
    return path.parent.name in ("cur", "new") and (path.parent.parent / "tmp").is_dir()


def _is_mail(path: Path) -> bool:
    return path.suffix.lower() in (".eml", ".mbox") or (not path.suffix and _is_mbox(path))


def _is_mbox(path: Path) -> bool:
    if path.suffix.lower() in (".mbox", ".eml"):
        return path.suffix.lower() == ".mbox"
    try:
        with path.open("rb") as opened:
            return bool(_MARK.match(opened.read(5)))
    except OSError:
        return False
