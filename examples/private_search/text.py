"""Bytes into clean text: encodings, invisible characters, encoded data, tracking parameters."""

from __future__ import annotations

import re
import unicodedata
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit, urlunsplit

TITLE_LENGTH = 200
# Controls, zero-width and direction marks, halves of characters, tags: no reader sees them, a model
# does. The joiners U+200C and U+200D stay: Persian, Hindi and emoji need them.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)
_ENCODED = re.compile(
    r"(?:data:[\w/+.;-]+,)?(?=[A-Za-z+/]{0,60}\d)[A-Za-z0-9+/]{64,}(?:\s+[A-Za-z0-9+/]{24,})*={0,2}"
)
_ADDRESS = re.compile(r"https?://[^\s<>\"')\]]+")
_TRACKING = re.compile(
    r"(utm_\w+|mtm_\w+|pk_\w+|mc_[ce]id|\w{0,4}clid|mkt_tok|igshid|_hs\w+|ref(_\w+)?)$"
)
_BLANK_LINES = re.compile(r"\n[ \t]*(?:\n[ \t]*){2,}")
_ACCENTS, _WORD = re.compile("[\u0300-\u036f]"), re.compile(r"\w+")
_LONGEST_ADDRESS = 160


def decoded(data: bytes, declared: str | None = None) -> tuple[str, str]:
    """Return text, and a remark if its encoding had to be guessed.

    Args:
        data: In the declared encoding, or UTF-8, or one that its byte order mark names.
        declared: An encoding's name, which may be wrong.
    """
    for name in filter(None, (declared, "utf-8-sig")):
        with suppress(LookupError, ValueError):
            return data.decode(name), ""
    from charset_normalizer import from_bytes

    best = from_bytes(data[:65536]).best()
    name = best.encoding if best else "cp1252"
    remark = "" if best and best.bom else f"not UTF-8: read as {name}"
    return data.decode(name, errors="replace"), remark


def visible(text: str) -> str:
    """Return the text with plain line ends and without invisible characters; lines stay lines."""
    return _INVISIBLE.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))


def cleaned(text: str) -> str:
    """Return visible text without encoded data, tracking parameters and runs of empty lines."""
    text = visible(text).replace("\xa0", " ")
    if "://" in text:
        text = _ADDRESS.sub(lambda found: plain_address(found[0]), text)
    text = _ENCODED.sub(" ", text)
    return _BLANK_LINES.sub("\n\n", text).strip()


def plain_address(address: str, longest: int = _LONGEST_ADDRESS) -> str:
    """Return an address without passwords, fragments and tracking parameters."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return address[:longest]
    query = "&".join(part for part in parts.query.split("&")
                     if not _TRACKING.match(part.partition("=")[0].lower()))  # fmt: skip
    host = parts.netloc.rpartition("@")[2]
    plain = urlunsplit((parts.scheme, host, parts.path, query, ""))
    # What is longer still carries somebody's state.
    return plain if len(plain) <= longest else urlunsplit((parts.scheme, host, "", "", ""))


def title_from(*candidates: str | None) -> str:
    """Return the first candidate that says something, on one line, of bounded length."""
    for candidate in candidates:
        title = " ".join(visible(candidate or "").split())
        if title:
            return title if len(title) <= TITLE_LENGTH else title[: TITLE_LENGTH - 1] + "…"
    return "Untitled"


def seconds_of(moment: object) -> float | None:
    """Return a date, or a text that says one as ISO 8601 or mails do, in seconds since 1970."""
    for parsed in (datetime.fromisoformat, parsedate_to_datetime):
        with suppress(ValueError, TypeError, OverflowError):
            found = parsed(str(moment))
            return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    return None


def on_terminal(text: str) -> str:
    """Return text of others as it may be printed: one line, in which nothing moves the cursor."""
    return " ".join(_INVISIBLE.sub("", text).splitlines())


def folded(text: str) -> list[str]:
    """Return the words of a text as FTS5 has them, once each: small letters, no accents."""
    plain = text.lower()
    if not plain.isascii():
        plain = _ACCENTS.sub("", unicodedata.normalize("NFKD", plain))
    return list(dict.fromkeys(_WORD.findall(plain)))
