"""Where one sentence ends and the next begins."""

import re


def sentences(text: str) -> list[str]:
    """Cut a text behind full stops, question and exclamation marks before a capital or a quote."""
    return re.split(r"(?<=[.!?])\s+(?=[A-Z\"'])", text)
