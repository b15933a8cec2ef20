"""The command, as the README has it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from private_search.__main__ import main

HERE = ["--runtime", "bundled"]


def run(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    assert main([arguments[0], *HERE, *arguments[1:]]) == code
    return capsys.readouterr().out


def test_index_ask_status(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "bread.md").write_text("# Bread\n\nIt is done when the inside is at 96 °C.\x1b[2J\n")
    (notes / "photo.jpg").write_bytes(b"\xff\xd8")
    run(capsys, "index", "--files", str(notes))
    (notes / "tyres.md").write_text("# Tyres\n\nThe summer tyres are in rack C14.\n")

    told = run(capsys, "ask", "rack C14 tyres", "--generator", "none", "--weak")
    assert "[1] Tyres (file, " in told
    assert "rack C14" in told
    assert f"{notes}/tyres.md, line 3" in told
    assert "\x1b" not in told

    told = run(capsys, "ask", "tyres", "--kind", "mail", code=1)
    assert told == "Nothing passes these filters.\n"
    assert "(why: status --units)" in run(capsys, "status")
    assert "1 skipped; 2 documents" in run(capsys, "status")
    (report,) = json.loads(run(capsys, "status", "--json"))
    assert report["states"] == {"indexed": 2, "skipped": 1}
    assert "no reader for .jpg" in run(capsys, "status", "--units")


def test_an_empty_library_says_so(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    library = ["--library", str(tmp_path / "library")]
    assert run(capsys, "ask", "tyres", *library, code=1).startswith("Nothing is indexed: index --f")


@pytest.mark.parametrize("option", ["--files", "--mail", "--history", "--pages"])
def test_a_place_that_is_not_there_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, option: str
) -> None:
    with pytest.raises(SystemExit):
        main(["index", "--library", str(tmp_path / "library"), option, str(tmp_path / "no")])
    assert f"there is no {tmp_path}/no" in capsys.readouterr().err
    assert not (tmp_path / "library").exists()


def test_an_error_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code = main(["status", "--runtime", "onnx", "--model", str(tmp_path / "no"), "--library",
                 str(tmp_path / "a")])  # fmt: skip
    assert code in (0, 1)
    code = main(["ask", "x", "--runtime", "onnx", "--model", str(tmp_path / "no"), "--library",
                 str(tmp_path / "a")])  # fmt: skip
    assert code == 1
