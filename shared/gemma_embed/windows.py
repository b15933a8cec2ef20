"""Cutting a text that is too long for the model into parts that are not."""

from __future__ import annotations


def halves(text: str) -> tuple[str, str]:
    """Split a text in two near its middle, between words where there are words.

    Halving needs no tokenizer, only an answer to "does it fit", so windows are the same on every
    runtime, and of like length.

    Args:
        text: At least two characters.

    Returns:
        Two non-empty parts that joined are the text.
    """
    middle = len(text) // 2
    reach = len(text) // 4
    for distance in range(reach):
        for position in (middle - distance, middle + distance):
            if 0 < position < len(text) and text[position].isspace():
                return text[:position], text[position:]
    return text[:middle], text[middle:]
