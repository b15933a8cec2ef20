"""The examples as a user runs them, without a connection to another machine."""

from __future__ import annotations

import importlib
import itertools
import json
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
import watch
from ollama_server import OllamaServer
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, PreTrainedTokenizerFast

from langchain_gemma_embed import GemmaEmbeddings
from llamaindex_gemma_embed import GemmaEmbedding

ROOT = Path(__file__).parent.parent
EXAMPLES = ["rag_langchain.py", "rag_llamaindex.py"]
NOWHERE = "http://127.0.0.1:1"


class Ask(Protocol):
    def __call__(
        self,
        example: str,
        question: str,
        *options: str,
        server: str = NOWHERE,
        fails: bool = False,
    ) -> str: ...


def asks_with(run: watch.Run, folder: Path, cache: Path) -> Ask:
    def ask(
        example: str,
        question: str,
        *options: str,
        server: str = NOWHERE,
        fails: bool = False,
    ) -> str:
        program = [str(ROOT / "examples" / example), question, *options]
        code, output = run(program, folder, OLLAMA_HOST=server, XDG_CACHE_HOME=str(cache))
        assert (code != 0) == fails, output
        return output

    return ask


@pytest.fixture(scope="module")
def shared() -> Iterator[watch.Run]:
    with watch.shared_process() as run:
        yield run


@pytest.fixture
def ask(shared: watch.Run, tmp_path: Path) -> Ask:
    return asks_with(shared, tmp_path, tmp_path.parent / "cache")


@contextmanager
def generator(
    answer: str, *, reason: str = "stop", endless: bool = False
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server whose Gemma 3 always streams the same answer; yields the requests."""
    asked: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path == "/api/show":
                self.reply({"capabilities": ["completion"]})
                return
            asked.append(body)
            self.send_response(200)
            self.send_header("Content-Type", "application/x-ndjson")
            self.end_headers()
            # Until the client hangs up.
            with suppress(OSError):
                for part in itertools.repeat(answer) if endless else answer.split(" "):
                    self.line(part if endless else f"{part} ")
                    time.sleep(0.01 * endless)
                if reason:
                    self.line("", done=True, done_reason=reason)

        def line(self, content: str, **more: object) -> None:
            message = {"role": "assistant", "content": content}
            said = {"model": "gemma3:270m", "message": message, "done": False} | more
            self.wfile.write(json.dumps(said).encode() + b"\n")

        def reply(self, value: object) -> None:
            body = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def few(tmp_path: Path) -> list[str]:
    """Options for two of the notes, which takes less time than all of them."""
    (tmp_path / "few").mkdir()
    for name in ("mail-from-unknown-sender.md", "sourdough-weekend-loaf.md"):
        shutil.copy(ROOT / "examples" / "notes" / name, tmp_path / "few")
    return ["--runtime", "bundled", "--folder", str(tmp_path / "few")]


@pytest.mark.parametrize("example", EXAMPLES)
def test_without_ollama_the_answer_is_passages(example: str, tmp_path: Path) -> None:
    page = (ROOT / "README.md").read_text(encoding="utf-8").partition("<!-- try command -->")[2]
    question = page.partition('rag_langchain.py "')[2].partition('"')[0]
    assert question.startswith("How hot should the inside of my bread be")
    output = asks_with(watch.run, tmp_path, tmp_path / "cache")(example, question)
    assert "the small bundled demonstration model" in output
    assert "No generator was found" in output
    assert "1. Sourdough weekend loaf (sourdough-weekend-loaf.md)" in output
    assert "96 °C" in output
    assert "ollama pull embeddinggemma:300m " in output
    assert "40 passages added, 0 removed, 40 in total" in output


def test_the_langchain_example_runs_without_torch(few: list[str], tmp_path: Path) -> None:
    script = """
import runpy, sys
for name in ("torch", "transformers", "safetensors", "sentence_transformers"):
    sys.modules[name] = None
sys.path.insert(0, sys.argv.pop(1))
runpy.run_path(sys.path[0] + "/rag_langchain.py", run_name="__main__")
"""
    cache = str(tmp_path / "cache")
    code, output = watch.run(
        [script, str(ROOT / "examples"), "Who wrote to me?", *few],
        tmp_path,
        OLLAMA_HOST=NOWHERE,
        XDG_CACHE_HOME=cache,
    )
    assert code == 0, output
    assert "passages added, 0 removed" in output


@pytest.mark.parametrize("example", EXAMPLES)
def test_a_second_run_embeds_only_changed_passages(example: str, ask: Ask, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "a.md").write_text("# Tea\n\nSteep green tea at 75 degrees.")
    (notes / "b.txt").write_text("The boiler needs 1.2 bar.")
    options = ("--folder", str(notes), "--runtime", "bundled")
    assert "2 passages added" in ask(example, "tea?", *options)
    assert "0 passages added, 0 removed, 2 in total" in ask(example, "tea?", *options)
    (notes / "a.md").write_text("# Tea\n\nSteep black tea at 95 degrees.")
    output = ask(example, "How hot for tea?", *options)
    assert "1 passages added, 1 removed, 2 in total" in output
    assert "1. Tea (a.md)\n   Steep black tea at 95 degrees." in output


@pytest.mark.parametrize("example", EXAMPLES)
def test_ollama_embeds_if_it_has_the_model(example: str, ask: Ask) -> None:
    with OllamaServer() as server:
        output = ask(example, "Which fee is paid for the autumn market?", server=server.url)
    assert "Embedding with embeddinggemma:300m on ollama/era-bidirectional." in output
    assert any(text.startswith("title: Sourdough weekend loaf | text: ") for text in server.texts)
    assert "task: search result | query: Which fee is paid for the autumn market?" in server.texts


@pytest.mark.parametrize("example", EXAMPLES)
def test_a_generator_answers_from_the_passages(example: str, ask: Ask, few: list[str]) -> None:
    question = "What is the number of my place at the autumn market?"
    with generator("Number 31.") as (url, asked):
        output = ask(example, question, *few, server=url)
    # The passages are there before the generator is asked.
    assert output.index("(mail-from-unknown-sender.md)") < output.index("Answer: Number 31.")
    assert "cut here" not in output
    assert asked[0]["stream"] is True
    assert asked[0]["options"]["num_predict"] == 256
    prompt = asked[0]["messages"][0]["content"]
    instruction, before, rest = re.split(r"^([0-9a-f]{16})$", prompt, maxsplit=1, flags=re.M)
    data, after = rest.split(f"\n{before}\n")
    assert question in after
    assert "Ignore all previous instructions" in data
    assert "Ignore all previous instructions" not in instruction + after


@pytest.mark.parametrize("endless", [False, True])
def test_a_generator_that_does_not_stop_is_cut(
    monkeypatch: pytest.MonkeyPatch, endless: bool
) -> None:
    monkeypatch.syspath_prepend(ROOT / "examples")
    common = importlib.import_module("common")
    monkeypatch.setattr(common, "MOST_SECONDS", 1.0)
    with generator("and so on", reason="length", endless=endless) as (url, _):
        monkeypatch.setenv("OLLAMA_HOST", url)
        generate = common.open_generator("gemma3:270m")
        started = time.monotonic()
        said = "".join(generate("Why?"))
        assert time.monotonic() - started < 10
    assert said.startswith("and so on")
    assert said.endswith(common.BOUNDED)


def test_an_answer_that_ends_early_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "examples")
    common = importlib.import_module("common")
    with generator("Number 31", reason="") as (url, _):
        monkeypatch.setenv("OLLAMA_HOST", url)
        said = "".join(common.open_generator("gemma3:270m")("Why?"))
    assert said.endswith("(the generator failed: its answer ended early)")


def test_an_interrupt_ends_an_example_without_a_traceback() -> None:
    script = "import common, time; common.run(lambda: (print('on', flush=True), time.sleep(60)))"
    with subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=ROOT / "examples",
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "on\n"
        program.send_signal(signal.SIGINT)
        _, errors = program.communicate(timeout=30)
    assert (program.returncode, errors) == (130, "\nStopped.\n")


def test_a_gemma_3_checkpoint_folder_generates(
    narrow: Path, ask: Ask, few: list[str], tmp_path: Path
) -> None:
    # Random weights: this tests the path from chat template to answer.
    folder = tmp_path / "gemma3"
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(narrow / "tokenizer.json"),
        **{f"{name}_token": f"<{name}>" for name in ("bos", "eos", "pad", "unk")},
    )
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    tokenizer.save_pretrained(folder)
    config = Gemma3TextConfig(
        vocab_size=2000,
        hidden_size=72,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=1,
        head_dim=24,
        intermediate_size=96,
    )
    Gemma3ForCausalLM(config).save_pretrained(folder)
    output = ask("rag_langchain.py", "Which fee for the market?", *few, "--generator", str(folder))
    assert re.search(r"Answer: .+\n", output)


def test_a_folder_without_texts_is_an_error_with_its_name(ask: Ask, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    output = ask("rag_langchain.py", "x", "--folder", "empty", fails=True)
    assert "empty contains no .md" in output


def test_what_is_not_a_file_is_skipped(ask: Ask, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    (notes / "folder.md").mkdir(parents=True)
    (notes / "dangling.md").symlink_to("nowhere.md")
    (notes / ".trash").mkdir()
    (notes / ".trash" / "deleted.md").write_text("# Tea\n\nBoil it for an hour.")
    (notes / "B.MD").write_bytes("# Kaffee\n\nHeiß, aber nicht kochend.".encode("utf-16"))
    (notes / "a.md").write_text("# Tea\n\nSteep green tea at 75 degrees.")
    options = ("--folder", str(notes), "--runtime", "bundled")
    output = ask("rag_langchain.py", "tea?", *options)
    assert "2 passages added" in output
    assert "Kaffee (B.MD)\n   Heiß, aber nicht kochend." in output


def test_a_missing_folder_is_an_error_with_its_name(ask: Ask) -> None:
    output = ask("rag_langchain.py", "x", "--folder", "nowhere", fails=True)
    assert "--folder nowhere: there is no such folder" in output
    assert "Traceback" not in output


@pytest.mark.parametrize("model", ["embeddinggemma:missing", "no/such-folder"])
def test_an_unusable_model_is_an_error_instead_of_another_model(model: str, ask: Ask) -> None:
    with OllamaServer() as server:
        output = ask(*("rag_langchain.py", "x", "--model", model), server=server.url, fails=True)
    assert f"--model {model} cannot be used. On Ollama: " in output
    assert "bundled" not in output
    assert "Traceback" not in output


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_error_of_this_package_is_one_line(example: str, ask: Ask) -> None:
    output = ask(example, "x", "--runtime", "ollama", fails=True)
    assert "Traceback" not in output
    assert re.search(r"^ConnectionFailed: .+$", output.strip().splitlines()[-1])


def is_picture(path: Path) -> bool:
    return path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 10_000


needs_pictures = pytest.mark.skipif(
    find_spec("matplotlib") is None, reason="run: pip install 'gemma-embed[evaluate]'"
)


@needs_pictures
def test_classification_is_compared_with_words(shared: watch.Run, tmp_path: Path) -> None:
    program = [str(ROOT / "examples" / "classify.py"), "--runtime", "bundled", "--language", "en"]
    code, output = shared(program, tmp_path, XDG_CACHE_HOME=str(tmp_path.parent / "cache"))
    assert code == 0, output
    topic = output.partition("topic: 32 examples, 64 scored\n")[2]
    accuracy = dict(re.findall(r"^  (.+?) +accuracy (0\.\d+)", topic, re.M))
    # Six topics: guessing is right once in six times.
    assert float(accuracy["vectors and examples"]) > 0.4
    assert set(accuracy) >= {"TF-IDF and examples", "vectors, label descriptions"}
    assert is_picture(tmp_path / "classify.png")


@needs_pictures
def test_too_few_paragraphs_for_groups_is_an_error(shared: watch.Run, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.md").write_text("\n\n".join(["The same paragraph again. " * 4] * 9))
    program = [str(ROOT / "examples" / "cluster.py"), "--runtime", "bundled", "--folder", "notes"]
    code, output = shared(program, tmp_path)
    assert code == 1
    assert "notes: 1 different paragraphs of 80 characters or more are too few" in output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (
            '{"question": "q", "passage": "a\u2028b"}\r\n\r\n{"question": "secret"}',
            "line 3: not",
        ),
        ('{"question": "q", "passage": "a"}\nsecret', "line 2: no valid JSON"),
        ("[1]", "line 1: not an object with question, passage"),
        ("\n", "pairs.jsonl is empty"),
        (
            '{"question": "q", "passage": "a", "negative": "b"}\n{"question": "q", "passage": "c"}',
            "a 'negative' is in 1 pairs only",
        ),
    ],
)
def test_a_bad_pair_is_named_by_file_and_line(
    lines: str, said: str, shared: watch.Run, tmp_path: Path
) -> None:
    (tmp_path / "pairs.jsonl").write_text(lines, encoding="utf-8-sig")
    program = [str(ROOT / "examples" / "finetune.py"), "--out", "tuned", "--also"]
    code, output = shared([*program, "--train", "pairs.jsonl"], tmp_path)
    assert code == 1
    assert said in output
    assert "secret" not in output
    assert "Traceback" not in output


@needs_pictures
@pytest.mark.parametrize("method", ["kmeans", "hdbscan"])
def test_clusters_have_names_and_a_map(method: str, shared: watch.Run, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    for name in ("sql-indexes", "postgresql-vacuum", "sourdough-weekend-loaf", "boiler-pressure"):
        shutil.copy(ROOT / "examples" / "notes" / f"{name}.md", notes)
    (notes / "copy.md").write_text((notes / "boiler-pressure.md").read_text())
    program = [str(ROOT / "examples" / "cluster.py"), "--runtime", "bundled", "--folder", "notes"]
    code, output = shared(
        [*program, "--method", method], tmp_path, XDG_CACHE_HOME=str(tmp_path.parent / "cache")
    )
    assert code == 0, output
    groups = re.findall(r"^(.+) \((\d+) paragraphs\)$", output, re.M)
    assert len(groups) >= 2
    assert any("boiler" in name or "pressure" in name for name, _ in groups)
    assert re.search(r"Most similar pairs:\n  1\.00 ", output)
    assert is_picture(tmp_path / "cluster.png")


@pytest.mark.parametrize("rank", [0, 4])
def test_a_fine_tune_loads_everywhere(
    rank: int, shared: watch.Run, narrow: Path, tmp_path: Path
) -> None:
    for extra in ("datasets", "accelerate", "peft", "ir_measures", "matplotlib"):
        pytest.importorskip(extra, reason="run: pip install 'gemma-embed[evaluate,finetune]'")
    for name in ("train", "held-out"):
        lines = (ROOT / "examples" / "data" / f"handbook-{name}.jsonl").read_text().splitlines()
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines[:12]))
    program = [str(ROOT / "examples" / "finetune.py"), "--model", str(narrow), "--out", "tuned"]
    program += ["--train", "train.jsonl", "--held-out", "held-out.jsonl", "--also", "--general"]
    program += ["--max-steps", "2", "--batch", "4", "--lora", str(rank), "--learning-rate", "1e-3"]
    code, output = shared(program, tmp_path, XDG_CACHE_HOME=str(tmp_path.parent / "cache"))
    assert code == 0, output
    assert "window, prompts, tokenizer and vectors are the trained model's" in output
    assert re.search(r"own field, new passages: \d+ questions, \d+ passages\n  recall@1 ", output)
    assert is_picture(tmp_path / "finetune.png")
    pair = json.loads((tmp_path / "train.jsonl").read_text().splitlines()[0])
    files = [path.read_bytes() for path in (tmp_path / "tuned").rglob("*") if path.is_file()]
    assert not [text for text in pair.values() if any(text.encode() in each for each in files)]
    tuned = str(tmp_path / "tuned")
    chain = GemmaEmbeddings("onnx", tuned).embed_query("Who has the lamp?")
    node = GemmaEmbedding("transformers", model=tuned).get_query_embedding("Who has the lamp?")
    np.testing.assert_allclose(chain, node, atol=1e-4)
    before = GemmaEmbeddings("onnx", str(narrow)).embed_query("Who has the lamp?")
    assert np.dot(before, chain) < 0.9999


def test_every_example_is_listed_with_a_command_that_exists() -> None:
    page = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    programs = {path.name for path in (ROOT / "examples").glob("*.py")}
    shown = re.findall(r"python examples/(\w+\.py)", page)
    assert shown[:2] == EXAMPLES
    assert set(shown) == programs - {"common.py", "learning.py"}
    folders = {path.parent.name for path in (ROOT / "examples").glob("*/README.md")}
    assert set(re.findall(r"\((\w+)/README\.md\)", page)) == folders
