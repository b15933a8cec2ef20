"""What may be shown of what a server said."""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Iterable
from urllib.parse import unquote

# Escapes that `_decoded` leaves, and rows of numbers, as of bytes or tokens.
_ESCAPES = re.compile(
    r"%[0-9a-f]{2}|&#?\w+;|\\+([ux][0-9a-f{]|N\{|[0-7]{2})|\ufffd"
    r"|((0x)?[0-9a-f]{1,15}[\W_]+){7}[0-9a-f]",
    re.IGNORECASE,
)
# Hex and base64. Paths, names and long words have the same characters, but readable parts.
_CODE = re.compile(r"[A-Za-z0-9+/=_-]{16,}")
_WORD = re.compile(r"[A-Z]?[a-z]*([A-Z][a-z]{2,})*\d{0,2}|[A-Z]{1,12}\d{0,2}|\d{1,6}[a-z]?")


def shown(said: str, texts: Iterable[str], secrets: Iterable[str]) -> str:
    """Return what may be shown of what a server said: short, printable, nothing that we sent.

    Nothing of it is shown if it contains something encoded, which may be what we sent.
    """
    # More is judged than shown: an echo that is cut off is harder to recognise.
    plain = " ".join(_printable(_tagless(said[:2000])).split())[:500]
    decoded = _decoded(plain)
    if _encoded(decoded):
        return ""
    sent = [(text, 12) for text in texts]
    sent += [(token, 6) for secret in secrets for token in secret.split()]
    return "" if any(_repeats(decoded, text, run) for text, run in sent) else plain[:200]


def _tagless(text: str) -> str:
    return re.sub(r"<[^<>]*>", " ", html.unescape(text))


def _printable(text: str) -> str:
    return "".join(mark if mark.isprintable() else " " for mark in text)


def _decoded(text: str) -> str:
    """Undo the escapes of JSON, URLs and HTML, however often they were applied."""
    for _ in range(5):
        before = text
        text = html.unescape(unquote(text))
        text = re.sub(r"\\+u([0-9a-fA-F]{4})", lambda match: chr(int(match[1], 16)), text)
        text = re.sub(r"\\+[\\/\"'abfnrtv]", " ", text)
        # JSON has two escapes for one character beyond the first 65536.
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        if text == before:
            break
    return text


def _encoded(text: str) -> bool:
    """Tell whether ``text`` has a part that may be something else in another form."""
    return bool(_ESCAPES.search(text)) or any(
        not _WORD.fullmatch(part)
        for code in _CODE.findall(text)
        for part in re.split(r"[/=_-]", code)
    )


def _repeats(said: str, sent: str, run: int) -> bool:
    """Tell whether ``said`` contains ``run`` characters of ``sent`` in a row, or all of it.

    Case, accents and blanks do not count, nor does what is cleaned away, nor punctuation, which
    separates the words of a list. ``sent`` is tried with its tags as well, since a tag that is cut
    off in ``said`` is not recognised there.
    """
    for squeezed in (_squeezed, _letters):
        echo = squeezed(said)
        for form in {squeezed(sent), squeezed(_tagless(sent)), squeezed(_decoded(sent))}:
            if len(form) <= run:
                # A word of one to three letters is in everything, and gives nothing away.
                if len(form) > 3 and form in echo:
                    return True
            elif any(echo[start : start + run] in form for start in range(len(echo) - run + 1)):
                return True
    return False


def _squeezed(text: str) -> str:
    return "".join(_printable(text).split()).casefold()


def _letters(text: str) -> str:
    return re.sub(r"[\W_]+", "", unicodedata.normalize("NFKD", text.casefold()))
