# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of substituter.report."""

from __future__ import annotations

import threading

import pytest

from substituter import report
from substituter.report import Report, Transfer

DEST = "/gnu/store/5qz5dk6nl8x0ks3cxcjdb8h97phh4b5f-lab-app"
URL = "bittorrent://ab/lab-app"


class Screen:
    """Collects what is written and lets a test wait for a line."""

    def __init__(self) -> None:
        self.text = ""
        self._changed = threading.Condition()

    def __call__(self, text: str) -> None:
        """Write."""
        with self._changed:
            self.text += text
            self._changed.notify_all()

    def wait_for(self, text: str) -> None:
        """Wait until something was written."""
        with self._changed:
            assert self._changed.wait_for(lambda: text in self.text, 120), self.text


def test_trace_lines_are_those_that_clients_parse() -> None:
    """With an extended trace: started, progress as bytes arrive, a last progress, succeeded."""
    screen, done = Screen(), [0]
    with Report(DEST, "lab-app", trace=True, columns=79, write=screen) as shown:
        shown.source(Transfer(URL, 411, lambda: done[0]))
        screen.wait_for(f"@ download-progress {DEST} {URL} 411 0\n")
        done[0] = 100
        screen.wait_for(f"@ download-progress {DEST} {URL} 411 100\n")
        shown.succeeded()
    assert screen.text.startswith(f"@ download-started {DEST} {URL} 411\n")
    assert screen.text.endswith(
        f"@ download-progress {DEST} {URL} 411 411\n@ download-succeeded {DEST} {URL} 411\n\n"
    )


def test_an_unknown_size_is_a_dash() -> None:
    """Clients take `-` for a size that nobody knows."""
    screen = Screen()
    with Report(DEST, "lab-app", trace=True, columns=79, write=screen) as shown:
        shown.source(Transfer(URL, None, lambda: 5))
        screen.wait_for(f"@ download-progress {DEST} {URL} - 5\n")
    assert f"@ download-started {DEST} {URL} -\n" in screen.text


def test_something_is_written_although_nothing_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon kills a silent helper, so the last line is repeated."""
    monkeypatch.setattr(report, "HEARTBEAT", 0.2)
    screen = Screen()
    line = f"@ download-progress {DEST} {URL} 411 0\n"
    with Report(DEST, "lab-app", trace=True, columns=79, write=screen) as shown:
        shown.source(Transfer(URL, 411, lambda: 0))
        screen.wait_for(line * 2)


def test_a_report_before_any_source_is_known_is_not_silent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also the search for peers keeps the daemon's timer at bay."""
    monkeypatch.setattr(report, "HEARTBEAT", 0.2)
    screen = Screen()
    with Report(DEST, "lab-app", trace=True, columns=79, write=screen):
        screen.wait_for("bittorrent://search/lab-app - 0\n")


@pytest.mark.parametrize("columns", [20, 40, 79, 200])
def test_text_for_people_fits_the_terminal(columns: int) -> None:
    """Without a trace there is one bar, redrawn in place and never wider than the terminal."""
    screen, done = Screen(), [0]
    with Report(DEST, "lab-app", trace=False, columns=columns, write=screen) as shown:
        shown.source(Transfer(URL, 100 << 20, lambda: done[0]))
        done[0] = 50 << 20
        screen.wait_for("50.0MiB"[: columns - 10])
        shown.succeeded()
    assert screen.text.startswith(f"Downloading {URL}...\n")
    bars = screen.text.partition("\n")[2].split("\r\x1b[K")
    assert all(len(bar.rstrip("\n")) <= columns for bar in bars)
    assert screen.text.endswith("\n\n")


def test_nothing_is_written_after_the_end() -> None:
    """The reply comes after the last line, and the daemon wants nothing beside it."""
    screen = Screen()
    with Report(DEST, "lab-app", trace=True, columns=79, write=screen) as shown:
        shown.source(Transfer(URL, 411, lambda: 0))
    assert not any(thread.name == "report" for thread in threading.enumerate())


def test_a_note_is_shown_once() -> None:
    """An item whose sources fail alike says so once."""
    screen = Screen()
    with Report(DEST, "lab-app", trace=True, columns=79, write=screen) as shown:
        shown.note("x: is gone")
        shown.note("x: is gone")
    assert screen.text.count("substituter: x: is gone\n") == 1


def test_a_note_is_one_line() -> None:
    """What went wrong is told beside the bar."""
    screen = Screen()
    with Report(DEST, "lab-app", trace=True, columns=79, write=screen) as shown:
        shown.note("x: is gone")
    assert "substituter: x: is gone\n" in screen.text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("x: is gone", "x: is gone"),
        ("ü: größer", "ü: größer"),
        ("a\n@ download-succeeded /x y 1", r"a\n@ download-succeeded /x y 1"),
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("\udcff\u2028\x9b", r"\udcff\u2028\x9b"),
    ],
)
def test_strangers_forge_no_lines(capfd: pytest.CaptureFixture[str], text: str, shown: str) -> None:
    """Messages quote names and answers of others: control characters in them are spelled out."""
    screen = Screen()
    with Report(DEST, "lab-app", trace=True, columns=79, write=screen) as report_:
        report_.note(text)
    report.warn(text)
    assert capfd.readouterr().err == f"substituter: {shown}\n"
    assert f"substituter: {shown}\n" in screen.text


def test_the_source_is_named_by_what_people_call_it() -> None:
    """In a trace behind the item's name, without spaces; a server's URL says it already."""
    screen = Screen()
    with Report(DEST, "lab-app", trace=True, columns=79, write=screen) as shown:
        shown.source(Transfer(URL, 411, lambda: 0, lambda: "swarm, 7 peers"))
        shown.source(Transfer("http://h/nar/x", 411, lambda: 0, lambda: "h"))
    assert f"@ download-started {DEST} {URL},swarm,7-peers 411\n" in screen.text
    assert f"@ download-started {DEST} http://h/nar/x 411\n" in screen.text


@pytest.mark.parametrize(
    ("columns", "line"),
    [
        (100, f" lab-app  swarm, 7 peers  50.0MiB  25.0MiB/s 00:02 [{'#' * 20}{' ' * 21}] 50.0%"),
        (60, " lab-app  50.0MiB  25.0MiB/s 00:02 [########         ] 50.0%"),
        (30, " lab-app  50.0MiB  50.0%"),
    ],
)
def test_the_bar_is_as_guix_draws_it(columns: int, line: str) -> None:
    """Size, rate, time and share; the source where there is room."""
    screen, now = Screen(), [0.0]
    shown = Report(
        DEST, "lab-app", trace=False, columns=columns, write=screen, clock=lambda: now[0]
    )
    done = [0]
    shown.source(Transfer(URL, 100 << 20, lambda: done[0], lambda: "swarm, 7 peers"))
    now[0], done[0] = 2.0, 50 << 20
    shown._show(done[0])
    assert screen.text.endswith(f"\r\x1b[K{line}")
