"""Where one sentence ends and the next begins."""

import re


def sentences(text: str) -> list[str]:
    """Split a text after full stops, question and exclamation marks before a capital or a quote."""
    return re.split(r"(?<=[.!?])\s+(?=[A-Z\"'])", text)
