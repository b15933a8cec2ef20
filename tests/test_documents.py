"""The documents: their code runs as pasted, and their links have a target.

The expected output of a block of Python is in its comments that begin with ``# ->``.
"""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest
import watch
from ollama_model import ServedModel
from ollama_server import OllamaServer

ROOT = Path(__file__).parent.parent
PAGES = [
    "README.md",
    *(path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs").glob("*.md"))),
    *("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"),
    *("examples/README.md", "training/README.md", "training/MODEL_CARD.md"),
]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
URL = PROJECT["urls"]["Homepage"]

FENCED = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
PRINTED = re.compile(r"^# -> (.*\n)", re.MULTILINE)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)|<(https?://[^>\s]+)>")

# Every block has its own names and folder, as in a new file. A page's blocks share a process,
# because importing the frameworks takes most of the time.
RUN = """
import contextlib, io, json, os, sys

for line, code, expected in json.loads(sys.argv[1]):
    os.mkdir(f"line-{line}")
    os.chdir(f"line-{line}")
    printed = io.StringIO()
    compiled = compile("\\n" * line + code, sys.argv[2], "exec")
    with contextlib.redirect_stdout(printed):
        exec(compiled, {"__name__": "__main__"})
    assert printed.getvalue() == expected, (line, printed.getvalue(), expected)
    os.chdir("..")
"""


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


# That of docs/stores.md needs other packages: tests/stores runs it.
WITH_CODE = [page for page in PAGES if "```python" in text_of(page) and page != "docs/stores.md"]


@pytest.mark.parametrize("page", WITH_CODE)
def test_the_code_of_a_page_runs_as_pasted(page: str, tmp_path: Path) -> None:
    text = text_of(page)
    blocks = [
        (text.count("\n", 0, found.start(1)), found[1], "".join(PRINTED.findall(found[1])))
        for found in FENCED.finditer(text)
    ]
    assert len(blocks) == text.count("```python")
    second = ServedModel("embeddinggemma-2:270m-bf16-text", "unverified", digest="2" * 64)
    with OllamaServer([ServedModel(), second], version="0.40.2") as server:
        code, output = watch.run(
            [RUN, json.dumps(blocks), page],
            tmp_path,
            OLLAMA_HOST=server.url,
            XDG_CACHE_HOME=str(tmp_path / "cache"),
        )
    assert code == 0, output


def anchors(page: Path) -> set[str]:
    """GitHub's anchors of a page's headings."""
    code = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
    prose = code.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_have_a_target(page: str) -> None:
    for found in LINK.finditer(text_of(page)):
        link = found[1] or found[2]
        for start in (f"{URL}/blob/main/", f"{URL}/tree/main/"):
            if link.startswith(start):
                target = ROOT / link.removeprefix(start).partition("#")[0]
                break
        else:
            if link.startswith("http"):
                continue
            assert page != "README.md", f"{link} is dead on PyPI"
            name = link.partition("#")[0]
            target = (ROOT / page).parent / name if name else ROOT / page
        assert target.exists(), link
        anchor = link.partition("#")[2]
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", [*PAGES, "Makefile"])
def test_named_files_exist(page: str) -> None:
    for name in re.findall(r"(?:tests|benchmarks|examples)/[\w./-]*\w|test_\w+\.py", text_of(page)):
        assert (ROOT / name).exists() or list((ROOT / "tests").rglob(name)), name


def test_the_projects_urls_are_of_one_repository() -> None:
    assert all(url.startswith(URL) for url in PROJECT["urls"].values())
    for url in PROJECT["urls"].values():
        path = re.sub(r"^/(blob|tree)/main/", "", url.removeprefix(URL))
        assert not path or path == "/issues" or (ROOT / path).exists(), url
