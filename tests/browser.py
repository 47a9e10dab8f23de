# SPDX-License-Identifier: GPL-3.0-or-later
"""A real Chromium for tests of pages, steered through ChromeDriver (W3C WebDriver)."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from tests import needs
from tests.processes import DEADLINE, end

_ELEMENT: Final = "element-6066-11e4-a52e-4f735466cecf"
"""The key under which WebDriver names an element."""

_FLAGS: Final = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--no-proxy-server",
    "--hide-scrollbars",
)


class CommandError(Exception):
    """The browser couldn't do what it was told."""


class Browser:
    """A window of a browser.

    Args:
        port: of ChromeDriver on loopback.
        options: capabilities of Chromium beside its flags.
    """

    def __init__(self, port: int, options: dict[str, Any]) -> None:
        self._port = port
        capabilities = {
            "browserName": "chrome",
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL"},
        }
        made = self._command("POST", "/session", {"capabilities": {"alwaysMatch": capabilities}})
        self._session = f"/session/{made['sessionId']}"

    def _command(self, method: str, path: str, content: dict[str, Any] | None = None) -> Any:
        """One command."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=2 * DEADLINE)
        try:
            body = json.dumps(content or {}) if method == "POST" else None
            connection.request(method, path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            value = json.loads(response.read())["value"]
        finally:
            connection.close()
        if response.status != 200:
            raise CommandError(value)
        return value

    def open(self, url: str) -> None:
        """Go to a page and wait until it has loaded."""
        self._command("POST", f"{self._session}/url", {"url": url})

    @property
    def url(self) -> str:
        """Where it is."""
        return str(self._command("GET", f"{self._session}/url"))

    @property
    def title(self) -> str:
        """The title of the page."""
        return str(self._command("GET", f"{self._session}/title"))

    def run(self, script: str, *arguments: Any) -> Any:
        """Run a function's body of JavaScript in the page; what it returns."""
        content = {"script": script, "args": list(arguments)}
        return self._command("POST", f"{self._session}/execute/sync", content)

    def until(self, script: str, wanted: object, *arguments: Any) -> bool:
        """Run a function's body until it returns what is wanted; whether it did in time."""
        give_up = time.monotonic() + DEADLINE
        while time.monotonic() < give_up:
            with contextlib.suppress(CommandError):  # a page that is being left answers nothing
                if self.run(script, *arguments) == wanted:
                    return True
        return False

    def find(self, selector: str) -> dict[str, str]:
        """An element, which `run` takes as an argument."""
        content = {"using": "css selector", "value": selector}
        found = self._command("POST", f"{self._session}/element", content)
        return {_ELEMENT: found[_ELEMENT]}

    def text(self, selector: str) -> str:
        """What a person reads in an element."""
        element = self.find(selector)[_ELEMENT]
        return str(self._command("GET", f"{self._session}/element/{element}/text"))

    def follow(self, act: Callable[[], None]) -> None:
        """Do something that opens another page, and wait until that has loaded."""
        self.run("document.documentElement.dataset.left = ''")
        act()
        arrived = (
            "return document.readyState === 'complete'"
            " && document.documentElement.dataset.left === undefined"
        )
        assert self.until(arrived, True), "no other page was opened"

    def click(self, selector: str) -> None:
        """Click an element where a person would."""
        element = self.find(selector)[_ELEMENT]
        self._command("POST", f"{self._session}/element/{element}/click")

    def type(self, selector: str, keys: str) -> None:
        r"""Type into an element; `\ue007` is the key Enter."""
        element = self.find(selector)[_ELEMENT]
        self._command("POST", f"{self._session}/element/{element}/value", {"text": keys})

    def press(self, key: str) -> None:
        r"""Press a key wherever the focus is; `\ue004` is Tab, `\ue007` Enter."""
        actions = [{"type": kind, "value": key} for kind in ("keyDown", "keyUp")]
        source = {"type": "key", "id": "keyboard", "actions": actions}
        self._command("POST", f"{self._session}/actions", {"actions": [source]})

    def devtools(self, command: str, **parameters: Any) -> Any:
        """One command of the DevTools protocol, such as `Emulation.setEmulatedMedia`."""
        content = {"cmd": command, "params": parameters}
        return self._command("POST", f"{self._session}/goog/cdp/execute", content)

    def resize(self, width: int, height: int, *, mobile: bool = False) -> None:
        """Have a page of this size, in CSS pixels."""
        self.devtools(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=mobile,
        )

    def prefer(self, scheme: str) -> None:
        """Be of somebody who prefers `light` or `dark`."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.devtools("Emulation.setEmulatedMedia", features=features)

    def screenshot(self, path: Path | None = None, *, whole: bool = False) -> bytes:
        """A picture (PNG) of what is seen, or of the whole page.

        Args:
            path: where to write it as well.
            whole: with what would have to be scrolled to.
        """
        taken = self.devtools("Page.captureScreenshot", captureBeyondViewport=whole)
        png = base64.b64decode(taken["data"])
        if path is not None:
            path.write_bytes(png)
        return png

    def messages(self) -> list[str]:
        """What the console said since the last time: errors, violated policies, failed loads."""
        entries = self._command("POST", f"{self._session}/se/log", {"type": "browser"})
        return [entry["message"] for entry in entries]

    def close(self) -> None:
        """End the browser."""
        self._command("DELETE", self._session)


@contextlib.contextmanager
def browser(*, scripts: bool = True) -> Iterator[Browser]:
    """A Chromium with a new profile.

    Args:
        scripts: whether it runs JavaScript of pages.
    """
    chromium = needs.program("chromium")
    driver = needs.program("chromedriver", "chromium-driver")
    with (
        tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True) as directory,
        _running([driver, "--port=0", f"--log-path={directory}/log"]) as port,
    ):
        options: dict[str, Any] = {
            "binary": chromium,
            "args": [*_FLAGS, f"--user-data-dir={directory}/profile"],
        }
        if not scripts:
            options["prefs"] = {"profile.managed_default_content_settings.javascript": 2}
        window = Browser(port, options)
        try:
            yield window
        finally:
            window.close()


@contextlib.contextmanager
def _running(command: list[str]) -> Iterator[int]:
    """A ChromeDriver; the port that it says it listens on."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        text=True,
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            _, found, port = line.strip().rstrip(".").rpartition("successfully on port ")
            if found:
                yield int(port)
                return
        raise AssertionError("chromedriver ended")
    finally:
        end(process)
