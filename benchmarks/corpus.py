"""1,067 texts in 22 languages, from packages of documents that anyone can download.

None of them is part of this project; they are written to one file, which ``precision.py`` reads. 50
texts a language of at most 2,500 characters: pages of GNOME's help, sayings, and messages of Django
where GNOME has no translation. Ten more are paragraphs of many languages together, up to 6,000
characters, which rounding harms most.

Run: apt-get download gnome-user-docs fortunes fortunes-{cs,de,es,it,pl,ru,zh}
     pip download --no-deps django
     python benchmarks/corpus.py FOLDER OUTPUT     the folder holds these .deb and .whl files
"""

from __future__ import annotations

import argparse
import gettext
import io
import json
import random
import re
import subprocess
import tempfile
import zipfile
from pathlib import Path
from xml.etree import ElementTree

HELP = ("C", "cs", "de", "el", "es", "fi", "fr", "hi", "hu", "ja", "ko", "nl", "pl", "pt_BR", "ru")
HELP += ("ta", "vi", "zh_CN")
MESSAGES = ("ar", "fa", "he", "th")
SAYINGS = {"C": "", "cs": "cs", "de": "de", "es": "es", "pl": "pl", "ru": "ru", "zh_CN": "zh"}
EACH = 50
MIXED = 10


def help_pages(root: Path, language: str) -> list[list[str]]:
    """Return the paragraphs of the pages of GNOME's help."""
    pages = []
    for path in sorted((root / "usr/share/help" / language).rglob("*.page")):
        page = ElementTree.parse(path).getroot()
        for info in [*page.iter("{http://projectmallard.org/1.0/}info")]:
            info.clear()
        parts = (" ".join("".join(part.itertext()).split()) for part in _paragraphs(page))
        pages.append([part for part in parts if part])
    return pages


def _paragraphs(page: ElementTree.Element) -> list[ElementTree.Element]:
    return [part for part in page.iter() if part.tag.endswith(("}p", "}title"))]


def sayings(root: Path, package: str) -> list[str]:
    """Return the entries of one package of sayings."""
    with tempfile.TemporaryDirectory() as folder:
        (deb,) = root.glob(f"fortunes{'-' if package else ''}{package}_*.deb")
        subprocess.run(["dpkg-deb", "-x", deb, folder], check=True)
        files = sorted(Path(folder).rglob("games/fortunes/**/*"))
        texts = [path.read_text("utf-8", "ignore") for path in files if _is_text(path)]
    # Colours of a terminal are no text.
    entries = re.split(r"\n%\n", re.sub(r"\x1b\[[0-9;]*m|.\x08", "", "\n%\n".join(texts)))
    return [entry.strip() for entry in entries if entry.strip()]


def _is_text(path: Path) -> bool:
    return path.is_file() and not path.is_symlink() and path.suffix not in (".dat", ".u8")


def messages(root: Path, language: str, source: random.Random) -> list[str]:
    """Return messages of Django, some on a line of their own in each text."""
    (wheel,) = root.glob("django-*.whl")
    found: list[str] = []
    with zipfile.ZipFile(wheel) as files:
        for name in sorted(files.namelist()):
            if f"/locale/{language}/LC_MESSAGES/django.mo" in name:
                catalog = gettext.GNUTranslations(io.BytesIO(files.read(name)))
                found += [text for key, text in catalog._catalog.items() if key and text]
    source.shuffle(found)
    texts = []
    while found:
        count = source.choice((1, 3, 10, 30))
        texts.append("\n".join(found[:count]))
        del found[:count]
    return texts


def build(root: Path) -> list[dict[str, str]]:
    """Choose the texts: the same ones each time."""
    source = random.Random(0)
    texts: list[dict[str, str]] = []
    paragraphs: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        (deb,) = root.glob("gnome-user-docs_*.deb")
        subprocess.run(["dpkg-deb", "-x", deb, folder], check=True)
        # What is not translated yet.
        english = {part for page in help_pages(Path(folder), "C") for part in page}
        for language in (*HELP, *MESSAGES):
            if language in MESSAGES:
                chosen = messages(root, language, source)
            else:
                pages = help_pages(Path(folder), language)
                if language != "C":
                    pages = [[part for part in page if part not in english] for page in pages]
                paragraphs += [part for page in pages for part in page]
                chosen = ["\n\n".join(page) for page in pages if page]
            source.shuffle(chosen)
            if language in SAYINGS:
                spoken = sayings(root, SAYINGS[language])
                chosen = chosen[: EACH // 2] + source.sample(spoken, EACH - EACH // 2)
            for text in chosen[:EACH]:
                cut = source.choice((100, 300, 800, 2500))
                texts.append({"language": language, "text": text[:cut]})
    return texts + [
        {"language": "mixed", "text": "\n\n".join(source.sample(paragraphs, 8 + 6 * number))[:6000]}
        for number in range(MIXED)
    ]


def main() -> None:
    """Write the texts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("output", type=Path)
    options = parser.parse_args()
    texts = build(options.folder)
    options.output.write_text("".join(json.dumps(text) + "\n" for text in texts))
    print(f"{len(texts)} texts in {len({text['language'] for text in texts})} languages")


if __name__ == "__main__":
    main()
