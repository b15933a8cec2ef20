"""The page end to end in headless Chromium: sources, question, answer, filters, map, originals."""

# ruff: noqa: E402 - imports that an extra is needed for

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from private_search.__main__ import SAMPLE
from private_search.library import Library

HOW = "needs Chromium and its driver: apt-get install chromium chromium-driver; then make browser"
pytest.importorskip("selenium", reason=HOW)
pytest.importorskip("starlette", reason=HOW)
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium")
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason=HOW),
    # Selenium leaves sockets of its driver to the collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

import uvicorn
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from private_search.server import Desk, application

SECRET = "a-secret"
POISON = (
    '<img src="http://127.0.0.1:1/x" onerror="document.title=1"><script>document.title=2</script>'
)
go_on = threading.Event()


def write(prompt: str) -> Iterator[str]:
    yield "The night ferry leaves at 20:45 [1]. See "
    # The passages and the first sentence are on the page before the last one is written.
    assert go_on.wait(20)
    yield f"[more](http://127.0.0.1:1/?q=secret) {POISON} [9]. "


@pytest.fixture
def address(tmp_path: Path, bundled) -> Iterator[str]:
    desk = Desk(lambda: Library(tmp_path / "library", bundled), write)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
        config = uvicorn.Config(application(desk, port, SECRET), log_level="error", lifespan="off",
                                ws="none", timeout_graceful_shutdown=1)  # fmt: skip
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        yield f"http://127.0.0.1:{port}/?secret={SECRET}"
        server.should_exit = True
        thread.join()
    desk.close()


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (
        "headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run",
        "disable-background-networking", "disable-component-update", "disable-sync",
        f"user-data-dir={tmp_path / 'profile'}", "window-size=1280,860",
    ):  # fmt: skip
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options, Service(DRIVER))
    yield browser
    browser.quit()


def until(true: Callable[[], object], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def test_a_person_uses_it(address: str, browser: webdriver.Chrome, tmp_path: Path) -> None:
    def one(selector: str):
        return browser.find_element(By.CSS_SELECTOR, selector)

    def text(selector: str = "body") -> str:
        return one(selector).text

    notes = tmp_path / "notes"
    shutil.copytree(SAMPLE / "files" / "travel", notes)
    (notes / "poison.md").write_text(f"# Ferry {POISON}\n\nThe ferry to nowhere. {POISON}")
    (notes / "ship.zip").write_bytes(b"PK")
    go_on.clear()

    # The secret leaves the address.
    browser.get(address)
    assert "secret" not in browser.current_url
    until(lambda: "No sources yet" in text("#status"))

    # A source, what is indexed of it, and what is not.
    one("#tab-sources").click()
    one("#add [name=path]").send_keys(str(tmp_path / "missing"), Keys.ENTER)
    until(lambda: "there is no" in text("#add-error"))
    one("#add [name=path]").clear()
    one("#add [name=path]").send_keys(str(notes), Keys.ENTER)
    until(lambda: "3 documents" in text("#status"))
    until(lambda: "3 indexed" in text("#coverage"))
    one("#coverage summary").click()
    assert "no reader for .zip" in text("#coverage")

    # A question: passages and the first sentence while the rest is being written.
    one("#tab-search").click()
    one("#question").send_keys("When does the night ferry leave?", Keys.ENTER)
    until(lambda: "The night ferry leaves at 20:45." in text("#answer"))
    marks = browser.find_elements(By.CSS_SELECTOR, "#hit-1 mark")
    assert any("20:45" in mark.text for mark in marks)
    assert "Writing" in text("#answer")
    go_on.set()
    until(lambda: "Writing" not in text("#answer"))
    assert "(not in the passages)" in text("#answer")
    assert "http" not in text("#answer")
    one("#answer .cite").click()
    assert "cited" in one("#hit-1").get_attribute("class")

    # Mark-up of others is text, in the list and in the passage.
    until(lambda: POISON in text("#hits"))
    assert not browser.find_elements(By.CSS_SELECTOR, "main img, main script, dialog img")
    assert browser.title == "Private search"

    # Filters.
    one("#kinds span.mail").click()
    one("#question").send_keys(Keys.ENTER)
    until(lambda: "Nothing was found" in text("#answer"))
    browser.find_elements(By.CSS_SELECTOR, "#kinds span")[0].click()
    one("#more summary").click()
    browser.execute_script("document.forms.ask.elements.before.value = '1990-01-01'")
    one("#question").send_keys(Keys.ENTER)
    until(lambda: "Nothing was found" in text("#answer"))
    browser.execute_script("document.forms.ask.elements.before.value = ''")
    one("#question").send_keys(Keys.ENTER)
    until(lambda: browser.find_elements(By.ID, "hit-1"))

    # The map: hover names a passage, click opens it, the question has its place.
    one("#tab-map").click()
    until(lambda: len(browser.find_elements(By.CSS_SELECTOR, "#chart button")) == 3)
    assert "Your question" in text("#legend")
    assert one("#chart .asked").is_displayed()
    actions = webdriver.ActionChains(browser).move_to_element(one("#chart button"))
    actions.perform()
    until(lambda: text("#tip") == one("#chart button").get_attribute("title"))
    named = text("#tip")
    actions.click().perform()
    until(lambda: one("#passage").is_displayed())
    assert text("#passage-title") == named

    # The policy refused nothing, nothing failed but the path that was wrong on purpose.
    severe = [entry["message"] for entry in browser.get_log("browser")]
    assert all("400 (Bad Request)" in message for message in severe), severe

    # The original opens in a tab of its own, as text.
    one("#passage a").click()
    until(lambda: len(browser.window_handles) == 2)
    browser.switch_to.window(browser.window_handles[1])
    until(lambda: browser.execute_script("return document.contentType") == "text/plain")

    # Nothing went elsewhere.
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {event["params"]["request"]["url"] for event in events
             if event["method"] == "Network.requestWillBeSent"}  # fmt: skip
    home = address.partition("?")[0]
    assert any(re.fullmatch(f"{home}[^/]{{16}}/api/ask", url) for url in asked)
    # The browser's own new tab is made of data: and chrome: addresses.
    assert [
        url for url in asked if re.match("(http|ws)s?:", url) and not url.startswith(home)
    ] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_it_fits_and_can_be_read(address, browser, scheme: str, width: int) -> None:
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False},
    )
    browser.get(address)
    for name in ("search", "map", "sources"):
        browser.find_element(By.ID, f"tab-{name}").click()
        shown, there = browser.execute_script(
            "return [document.documentElement.scrollWidth, innerWidth]"
        )
        assert shown <= there, name
    ratios = browser.execute_script(
        """
        const numbers = (colour) => colour.match(/[\\d.]+/g).slice(0, 3).map(Number);
        const light = (colour) => numbers(colour).map((part) => part / 255)
          .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
          .reduce((sum, part, row) => sum + part * [0.2126, 0.7152, 0.0722][row], 0);
        const contrast = (one, other) => {
          const [low, high] = [light(one), light(other)].sort((a, b) => a - b);
          return (high + 0.05) / (low + 0.05);
        };
        const style = (selector) => getComputedStyle(document.querySelector(selector));
        const ground = style("body").backgroundColor;
        return [contrast(style("body").color, ground), contrast(style("#hint").color, ground),
          contrast(style(".primary").color, style(".primary").backgroundColor)];
        """
    )
    # WCAG 2.2, 1.4.3.
    assert min(ratios) >= 4.5, ratios
