"""HTML into text: the main part of a page, or all that is visible of a mail."""

from __future__ import annotations

import logging
import re
from typing import Any

from private_search.documents import Unreadable
from private_search.text import cleaned

_BLOCK = re.compile(
    "p|div|br|tr|li|ul|ol|table|h[1-6]|pre|blockquote|section|article|header|footer|dt|dd|hr"
)
_UNSEEN = (
    "//script|//style|//head|//template|//noscript|//svg|//iframe|//object|//*[@hidden]"
    "|//*[contains(translate(@style,' ','') , 'display:none')]"
    "|//*[contains(translate(@style,' ','') , 'visibility:hidden')]"
    "|//*[contains(translate(@style,' ','') , 'font-size:0')]|//comment()"
)
_QUOTED = (
    "//blockquote|//*[contains(@class,'gmail_quote')]|//*[contains(@class,'moz-cite-prefix')]"
    "|//*[@id='divRplyFwdMsg']|//*[contains(@class,'gmail_signature')]"
)
_SAVED_FROM = re.compile(r"saved from url=\(\d+\)(\S+)|^\s*url:\s*(\S+)", re.MULTILINE)


def parsed(html: str) -> Any:
    """Parse a page.

    Raises:
        Unreadable: If there is nothing in it, or more than the parser takes.
    """
    from lxml import etree
    from lxml.html import HTMLParser, document_fromstring

    parser = HTMLParser()
    try:
        # A declaration of another encoding would be an error: the text is decoded already.
        tree = document_fromstring(re.sub(r"^\s*<\?xml[^>]*\?>", "", html) or " ", parser=parser)
    except (etree.ParserError, ValueError):
        tree = None
    if any(each.type_name == "ERR_RESOURCE_LIMIT" for each in parser.error_log):
        raise Unreadable("nested deeper than 255 elements")
    if tree is None:
        raise Unreadable("empty page", skipped=True)
    return tree


def page_title(tree: Any) -> str:
    """Return the page's title, or its first heading."""
    found = tree.xpath("//head/title|//meta[@property='og:title']/@content|//h1")
    return next(
        (str(getattr(each, "text_content", lambda each=each: each)()) for each in found), ""
    )


def page_address(html: str, tree: Any) -> str:
    """Return the address that a saved page came from, as browsers and SingleFile note it."""
    saved = _SAVED_FROM.search(html[:4000])
    if saved:
        return str(saved[1] or saved[2])
    stated = tree.xpath("//link[@rel='canonical']/@href|//meta[@property='og:url']/@content")
    return str(stated[0]) if stated else ""


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
    return max(text, seen_text(tree), key=len)


def mail_text(html: str) -> str:
    """Return the visible text of an HTML mail, without what it quotes."""
    tree = parsed(html)
    _drop(tree, f"{_UNSEEN}|{_QUOTED}")
    return seen_text(tree)


def seen_text(tree: Any) -> str:
    """Return the text of all elements, a line for a block."""
    parts: list[str] = []
    for element in tree.iter():
        if isinstance(element.tag, str) and _BLOCK.fullmatch(element.tag):
            parts.append("\n\n" if element.tag == "p" else "\n")
        parts.append(" ".join((element.text or "").split(" ")) if element.text else "")
        if element.tail:
            parts.append(element.tail)
    return cleaned(re.sub(r"[ \t]*\n[ \t]*", "\n", re.sub(r"[ \t\r\f]+", " ", "".join(parts))))


def _drop(tree: Any, path: str) -> None:
    for element in tree.xpath(path):
        if element.getparent() is not None:
            element.drop_tree()
