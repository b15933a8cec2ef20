"""The example's page in headless Chromium."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
EXAMPLE = ROOT / "examples" / "browser"
PLAYWRIGHT = EXAMPLE / "node_modules" / "playwright-core" / "index.mjs"
NODE = shutil.which("node")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")


def export(site: Path, *options: str) -> None:
    """Run the example's export."""
    done = subprocess.run(
        [sys.executable, EXAMPLE / "export.py", "--site", site, *options],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr


def visit(site: Path, profile: Path, questions: Sequence[str]) -> dict[str, Any]:
    """Serve a site, and ask its page; see ``open.mjs``, and ``host`` for the server's address."""
    sys.path.append(str(EXAMPLE))
    import serve

    with serve.server(site) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        job = {
            "playwright": str(PLAYWRIGHT),
            "chromium": CHROMIUM,
            "profile": str(profile),
            "url": f"http://127.0.0.1:{serving.server_port}/",
            "questions": list(questions),
        }
        assert NODE is not None
        done = subprocess.run(
            [NODE, Path(__file__).parent / "open.mjs"],
            input=json.dumps(job),
            capture_output=True,
            text=True,
        )
        serving.shutdown()
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    answer["host"] = f"127.0.0.1:{serving.server_port}"
    return answer
