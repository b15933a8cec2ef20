"""The packages of the wheel, and the modules that each import loads."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import editables
import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = {"gemma_embed", "gemma_fast", "langchain_gemma_embed", "llamaindex_gemma_embed"}
HEAVY = {"torch", "transformers", "ollama", "httpx", "chromadb", "sentence_transformers", "tqdm"}
HEAVY |= {"onnx", "onnxruntime", "tokenizers"}
FRAMEWORKS = {"langchain_core", "llama_index", "pydantic"}


def run(*command: str | Path, cwd: Path = ROOT, **environment: str) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel built from it."""
    folder = tmp_path_factory.mktemp("dist")
    # No isolation, so nothing is downloaded; hatchling is part of the test extra.
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT)
    return folder


def test_the_wheel_has_exactly_four_packages(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == PACKAGES
    assert all(f"{package}/py.typed" in names for package in PACKAGES)
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_bundled_model_takes_20_mb_of_the_wheel(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        parts = [each for each in archive.infolist() if "/bundled/" in each.filename]
    assert any(each.filename.endswith("model.safetensors") for each in parts)
    assert sum(each.compress_size for each in parts) <= 20e6


def test_the_sdist_can_be_tested(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for name in ("tests/checkpoints.py", "examples/notes", "pyproject.toml", "LICENSE"):
        assert any(found.startswith(name) for found in names), name


def test_the_sdist_has_every_document_that_is_linked(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    pages = {path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md")}
    assert pages
    assert names >= pages | {"CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "README.md"}
    assert names >= {"training/README.md", "training/MODEL_CARD.md"}


def test_the_metadata_links_the_project(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith("METADATA"))
        metadata = archive.read(name).decode()
    labels = re.findall(r"^Project-URL: (\w+), https://", metadata, re.MULTILINE)
    assert {"Homepage", "Documentation", "Issues", "Changelog"} <= set(labels)


def top_level(python: Path) -> set[str]:
    """Importable names of this project in an environment, from another folder."""
    code = (
        "import importlib.util as u\n"
        "names = ['gemma_embed', 'gemma_fast', 'langchain_gemma_embed', 'llamaindex_gemma_embed',"
        " 'shared', 'tests', 'examples', 'benchmarks', 'training', 'fakes', 'checkpoints']\n"
        "print(*(n for n in names if u.find_spec(n)))"
    )
    return set(run(python, "-c", code, cwd=Path(python.anchor)).split())


@pytest.mark.parametrize("kind", ["wheel", "sdist", "editable"])
def test_an_installation_adds_exactly_four_names(built: Path, tmp_path: Path, kind: str) -> None:
    venv.create(tmp_path / "env", with_pip=False, symlinks=True)
    env = tmp_path / "env"
    (site,) = env.glob("lib/python*/site-packages")
    what = {"wheel": "*.whl", "sdist": "*.tar.gz"}
    target = next(built.glob(what[kind])) if kind in what else ROOT
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    if kind == "editable":
        options.append("--editable")
        # What an editable install would also download; here nothing is downloaded.
        shutil.copytree(Path(editables.__file__).parent, site / "editables")
    here = sysconfig.get_path("purelib")
    pip = [sys.executable, "-m", "pip", "--python", env, "install"]
    run(*pip, *options, target, PYTHONPATH=here)
    assert top_level(env / "bin" / "python") == PACKAGES
    assert (site / "gemma_embed").is_dir() == (kind != "editable")


@pytest.mark.parametrize(
    ("package", "unwanted"),
    [
        ("gemma_embed", HEAVY | FRAMEWORKS),
        ("gemma_embed.runtimes", HEAVY | FRAMEWORKS),
        ("gemma_fast.weights", HEAVY | FRAMEWORKS | {"gemma_embed"}),
        ("gemma_fast.graph", HEAVY | FRAMEWORKS | {"gemma_embed"}),
        ("gemma_fast.onnx_forward", HEAVY | FRAMEWORKS | {"gemma_embed"}),
        ("gemma_fast.bpe", HEAVY | FRAMEWORKS | {"gemma_embed"}),
        ("gemma_fast.packed", {"transformers", "onnxruntime", "gemma_embed"}),
        ("langchain_gemma_embed", HEAVY - {"httpx"} | {"llama_index"}),
        ("llamaindex_gemma_embed", HEAVY - {"httpx", "tqdm"} | {"langchain_core"}),
    ],
)
def test_an_import_loads_nothing_heavy(package: str, unwanted: set[str]) -> None:
    code = f"import sys, {package}; print(*sys.modules)"
    loaded = {name.partition(".")[0] for name in run(sys.executable, "-c", code).split()}
    assert package.partition(".")[0] in loaded
    assert not loaded & unwanted


def test_constructing_loads_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from gemma_embed import Embedder\n"
        "Embedder('transformers').embed([]); Embedder('onnx').embed([])\n"
        "Embedder('ollama', dimensions=128).embed([])\n"
        "print(*sys.modules)"
    )
    loaded = {name.partition(".")[0] for name in run(sys.executable, "-c", code).split()}
    assert not loaded & (HEAVY | FRAMEWORKS)


def test_the_core_needs_numpy_only(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith("METADATA"))
        metadata = archive.read(name).decode()
    required = [line for line in metadata.splitlines() if line.startswith("Requires-Dist:")]
    assert [line for line in required if "extra ==" not in line] == ["Requires-Dist: numpy>=2"]
