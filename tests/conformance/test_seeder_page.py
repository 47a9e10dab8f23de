# SPDX-License-Identifier: GPL-3.0-or-later
"""The seeder's page in Chromium: it renews itself under its own policy, and fits a phone."""

from __future__ import annotations

import json
import re
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from seeder.web import Page, WebServer, create_app
from tests import needs
from tests.ports import free_port
from tests.seeder.test_web import page

pytestmark = pytest.mark.conformance

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)


class Browser:
    """A browser, driven as the W3C's WebDriver says.

    Args:
        directory: for its profile.
    """

    def __init__(self, directory: Path) -> None:
        chromium = needs.program("chromium")
        driver = needs.program("chromedriver", "chromium-driver")
        self._driver = subprocess.Popen(
            [driver, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self._driver.stdout is not None
        port = next(
            match[1]
            for line in self._driver.stdout
            if (match := re.search(r"started successfully on port (\d+)", line))
        )
        self._base = f"http://127.0.0.1:{port}"
        options = {
            "binary": chromium,
            "args": [*FLAGS, f"--user-data-dir={directory}"],
            "mobileEmulation": {
                "deviceMetrics": {"width": 360, "height": 700, "pixelRatio": 1.0, "mobile": True}
            },
        }
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        session = self._ask("/session", {"capabilities": {"alwaysMatch": wanted}})
        self._base += f"/session/{session['sessionId']}"

    def close(self) -> None:
        """End it."""
        request = urllib.request.Request(self._base, method="DELETE")
        urllib.request.urlopen(request, timeout=120).close()
        self._driver.terminate()
        assert self._driver.stdout is not None
        with self._driver.stdout:
            self._driver.wait(120)

    def open(self, url: str) -> None:
        """Load a page."""
        self._ask("/url", {"url": url})

    def run(self, script: str) -> Any:
        """What a script returns."""
        return self._ask("/execute/sync", {"script": script, "args": []})

    def complaints(self) -> list[str]:
        """What the browser doesn't like about the page."""
        return [entry["message"] for entry in self._ask("/se/log", {"type": "browser"})]

    def _ask(self, path: str, body: dict[str, Any]) -> Any:
        request = urllib.request.Request(
            self._base + path,
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)["value"]


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    """A browser with a screen as small as a phone's."""
    made = Browser(tmp_path)
    yield made
    made.close()


def test_the_page_in_a_browser(browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    """It changes without being loaded again; nothing is refused, foreign, or wider than it."""
    monkeypatch.setattr("seeder.web.REFRESH", 0.1)
    often = threading.Event()
    asked = 0

    def now() -> Page:
        nonlocal asked
        asked += 1
        if asked == 4:
            often.set()
        return replace(page(), now=1000.0 + 60 * asked)

    address = f"127.0.0.1:{free_port()}"
    server = WebServer(create_app(now, lambda: b""), address)
    browser.open(f"http://{address}/")
    browser.run("window.mark = 1")
    assert often.wait(120)
    assert browser.run("return window.mark") == 1
    minutes = browser.run("return document.querySelector('header p').textContent")
    assert int(re.findall(r"for (\d+):00", " ".join(minutes.split()))[0]) > 1
    assert browser.run("return document.documentElement.scrollWidth <= window.innerWidth")
    assert browser.run("return window.innerWidth") == 360
    loaded = browser.run("return performance.getEntries().map(entry => entry.name)")
    assert {url.split("/")[2] for url in loaded if "//" in url} == {address}
    assert browser.complaints() == []
    server.close()
