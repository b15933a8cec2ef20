"""HTML into text: the main part of a page, or all that is visible of a mail."""

from __future__ import annotations

import logging
import re
from typing import Any

from private_search.documents import Unreadable
from private_search.text import cleaned, decoded

# What blocks begin with; others with a new line.
_BEGINNINGS = {"p": "\n\n", "td": " ", "th": " "}
_UNSEEN = (
    "//script|//style|//head|//template|//noscript|//svg|//iframe|//object|//*[@hidden]|//comment()"
    "|//*[re:test(@style, '(display *: *none|visibility *: *hidden|font-size *: *0"
    "(?![.\\d]*[1-9]))', 'i')]"
)
_QUOTED = (
    "//blockquote|//*[contains(@class,'gmail_quote')]|//*[contains(@class,'moz-cite-prefix')]"
    "|//*[@id='divRplyFwdMsg']|//*[contains(@class,'gmail_signature')]"
)
_TITLE = "//head/title|//meta[@property='og:title']/@content|//h1"
_ADDRESS = "//link[@rel='canonical']/@href|//meta[@property='og:url']/@content"
_SAVED_FROM = re.compile(r"saved from url=\(\d+\)(\S+)|^\s*url:\s*(\S+)", re.MULTILINE)


def parsed(html: str) -> Any:
    """Parse a page.

    Raises:
        Unreadable: If it has more than the parser takes.
    """
    from lxml.html import HTMLParser, document_fromstring

    # Bytes, since text that declares an encoding is an error.
    parser = HTMLParser(encoding="utf-8")
    tree = document_fromstring(f"<html>{html}".encode(errors="replace"), parser=parser)
    if any(each.type_name == "ERR_RESOURCE_LIMIT" for each in parser.error_log):
        raise Unreadable("nested deeper than 255 elements")
    return tree


def read_page(data: bytes) -> tuple[str, str, str, str]:
    """Read a page of the web.

    Returns:
        Its title, or first heading; the address that it was saved from, as browsers and SingleFile
        note it; its main text; and a remark if its encoding had to be guessed.
    """
    html, note = decoded(data)
    tree = parsed(html)
    title = str(tree.xpath(f"string({_TITLE})"))
    saved = _SAVED_FROM.search(html[:4000])
    address = str(saved[1] or saved[2] if saved else tree.xpath(f"string({_ADDRESS})"))
    return title, address, main_text(tree), note


def main_text(tree: Any) -> str:
    """Return a page's main text without menus and advertisements, with headings marked by #."""
    import trafilatura

    logging.getLogger("trafilatura").setLevel(logging.CRITICAL)
    _drop(tree, _UNSEEN)
    found = trafilatura.extract(
        tree, output_format="markdown", include_comments=False, favor_recall=True
    )
    text = cleaned((found or "").replace("**", ""))
    if len(text) > 200:
        return text
    # It takes short pages, and those of other scripts, for menus.
    _drop(tree, "//nav|//header|//footer|//aside|//form|//button")
    return max(text, _seen_text(tree), key=len)


def mail_text(html: str) -> str:
    """Return the visible text of an HTML mail, without what it quotes."""
    tree = parsed(html)
    _drop(tree, f"{_UNSEEN}|{_QUOTED}")
    return _seen_text(tree)


def _seen_text(tree: Any) -> str:
    """Return the text of all elements, a line for a block."""
    from lxml.html.defs import block_tags

    for element in tree.iter(*block_tags, "br", "section", "article", "header", "footer"):
        element.text = _BEGINNINGS.get(element.tag, "\n") + (element.text or "")
        if element.tag != "br" and (element.tail or "").strip():
            element.tail = f"\n{element.tail}"
    text = re.sub(r"[ \t\r\f]+", " ", tree.text_content())
    return cleaned(re.sub(r" *\n *", "\n", text))


def _drop(tree: Any, path: str) -> None:
    for element in tree.xpath(path, namespaces={"re": "http://exslt.org/regular-expressions"}):
        if element.getparent() is not None:
            element.drop_tree()
