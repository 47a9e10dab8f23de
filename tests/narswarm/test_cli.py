# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of `narswarm.cli`."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from importlib import metadata
from pathlib import Path

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from narswarm import errors
from narswarm.cli import (
    Progress,
    config_option,
    format_duration,
    format_size,
    json_option,
    print_json,
    printable,
    run,
    version_option,
)
from narswarm.errors import ExitCode, NarswarmError

ROOT = Path(__file__).parents[2]


def exit_of(command: click.Command, *arguments: str) -> int:
    """Run a command and return what it exits with."""
    with pytest.raises(SystemExit) as stop:
        run(command, arguments, program="seeder")
    assert isinstance(stop.value.code, int)
    return stop.value.code


def raising(error: BaseException) -> click.Command:
    """Return a command that fails."""

    @click.command()
    @json_option
    def command(*, as_json: bool) -> None:
        assert as_json in {True, False}
        raise error

    return command


@click.group()
@version_option
def group() -> None:
    """Do things."""


@group.command()
@json_option
@config_option
@click.argument("words", nargs=-1)
def show(words: tuple[str, ...], config: Path | None, *, as_json: bool) -> ExitCode | None:
    """Show the arguments."""
    if as_json:
        print_json({"words": list(words), "config": str(config)})
    else:
        click.echo(" ".join(words))
    return ExitCode.MISMATCH if "differ" in words else None


def concrete() -> list[type[NarswarmError]]:
    """Return all error classes of the base module."""
    return [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type)
        and kind.__module__ == errors.__name__
        and issubclass(kind, NarswarmError)
    ]


@pytest.mark.parametrize("kind", concrete(), ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("arguments", [[], ["--json"]])
def test_errors(
    capfd: pytest.CaptureFixture[str], kind: type[NarswarmError], arguments: list[str]
) -> None:
    """An error is one line on standard error, with --json too, and the exit code of its class."""
    code = exit_of(raising(kind("/some/file", "is wrong")), *arguments)
    assert code == kind.exit_code
    assert capfd.readouterr() == ("", "seeder: /some/file: is wrong\n")


def test_hostile_error(capfd: pytest.CaptureFixture[str]) -> None:
    """Names from strangers can't begin another line or steer the terminal."""
    error = NarswarmError("/gnu/store/x\x1b[2J\nseeder: fine", "is \udcff")
    assert exit_of(raising(error)) == ExitCode.FAILED
    expected = "seeder: /gnu/store/x\\x1b[2J\\nseeder: fine: is \\udcff\n"
    assert capfd.readouterr().err == expected


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (FileNotFoundError(2, "No such file or directory", "/x"), "/x: No such file or directory"),
        (PermissionError(13, "Permission denied", b"/\xff"), "/\\udcff: Permission denied"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (OSError("odd"), "odd"),
    ],
)
def test_system_errors(capfd: pytest.CaptureFixture[str], error: OSError, line: str) -> None:
    """An error of the system that nobody caught is a line, too."""
    assert exit_of(raising(error)) == ExitCode.FAILED
    assert capfd.readouterr() == ("", f"seeder: {line}\n")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), click.Abort()])
def test_interrupt(capfd: pytest.CaptureFixture[str], error: BaseException) -> None:
    """An interrupt ends the program without a word."""
    assert exit_of(raising(error)) == ExitCode.INTERRUPTED
    assert capfd.readouterr() == ("", "")


def test_other_exceptions_are_bugs() -> None:
    """What isn't an error for users keeps its traceback."""
    with pytest.raises(ZeroDivisionError):
        run(raising(ZeroDivisionError()), [], program="seeder")


def test_closed_pipe() -> None:
    """When the reader of our output goes away, nothing is said about it."""
    script = (
        "import click, sys; from narswarm.cli import run\n"
        "@click.command()\n"
        "def command():\n"
        "    for _ in range(100000): sys.stdout.write('a line\\n')\n"
        "run(command, [])"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == ExitCode.FAILED


def test_closed_pipe_within(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was still to be written when the reader went away is dropped without an error."""
    reading, writing = os.pipe()
    stream = os.fdopen(writing, "w")
    stream.write("text")
    os.close(reading)
    monkeypatch.setattr(sys, "stdout", stream)
    assert exit_of(raising(BrokenPipeError())) == ExitCode.FAILED
    stream.close()


def test_results(capfd: pytest.CaptureFixture[str]) -> None:
    """A command exits with 0, or with the exit code that it returns."""
    assert exit_of(group, "show", "a", "b") == 0
    assert capfd.readouterr() == ("a b\n", "")
    assert exit_of(group, "show", "differ") == ExitCode.MISMATCH
    assert capfd.readouterr() == ("differ\n", "")


def test_json(capfd: pytest.CaptureFixture[str]) -> None:
    """JSON is a document and a newline, without characters that a terminal may not have."""
    assert exit_of(group, "show", "--json", "--config", "/a", "é\x1b") == 0
    out = capfd.readouterr().out
    assert out.isascii()
    assert out.endswith("}\n")
    assert json.loads(out) == {"words": ["é\x1b"], "config": "/a"}


@pytest.mark.parametrize("arguments", [["--wrong"], ["wrong"], ["show", "--wrong"]])
def test_usage(capfd: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    """Wrong usage exits with 2 and shows how it should be."""
    assert exit_of(group, *arguments) == ExitCode.USAGE
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("Usage: seeder ")
    assert "\nError: " in err


def test_help(capfd: pytest.CaptureFixture[str]) -> None:
    """Help goes to standard output and exits with 0."""
    assert exit_of(group, "--help") == 0
    out, err = capfd.readouterr()
    assert out.startswith("Usage: seeder [OPTIONS] COMMAND [ARGS]...\n")
    assert err == ""


@pytest.mark.parametrize("installed", [True, False])
def test_version(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *, installed: bool
) -> None:
    """The version is that of the installed distribution."""

    def version(name: str) -> str:
        assert name == "narswarm"
        if not installed:
            raise metadata.PackageNotFoundError(name)
        return "1.2.3"

    monkeypatch.setattr(metadata, "version", version)
    assert exit_of(group, "--version") == 0
    shown = "1.2.3" if installed else "(not installed)"
    assert capfd.readouterr() == (f"seeder (narswarm) {shown}\n", "")


def test_completion(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Shells ask for completions by a variable with the program's name."""
    monkeypatch.setenv("_SEEDER_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", "seeder sh")
    monkeypatch.setenv("COMP_CWORD", "1")
    assert exit_of(group) == 0
    assert capfd.readouterr() == ("plain,show\n", "")


@pytest.mark.parametrize(
    ("started", "name"),
    [("/usr/bin/seeder", "seeder"), ("/x/seeder/__main__.py", "seeder"), ("tracker", "tracker")],
)
def test_program_name(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, started: str, name: str
) -> None:
    """A program is called what it was started as, and reads the process's arguments."""
    monkeypatch.setattr(sys, "argv", [started, "--json"])
    with pytest.raises(SystemExit):
        run(raising(NarswarmError("a", "b")))
    assert capfd.readouterr().err == f"{name}: a: b\n"


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (1024 * 1024 - 52, "1023.9 KiB"),
        (1024 * 1024 - 51, "1.0 MiB"),
        (1024 * 1024, "1.0 MiB"),
        (20 << 30, "20.0 GiB"),
        (1 << 60, "1024.0 PiB"),
        (0.4, "0 B"),
    ],
)
def test_format_size(size: float, text: str) -> None:
    """Sizes are shown in binary units, never as 1024 of one when the next will do."""
    assert format_size(size) == text


@given(st.integers(0, 1 << 59))
def test_format_size_width(size: int) -> None:
    """A size needs 10 columns at most."""
    assert re.fullmatch(r"(\d{1,4}|\d{1,4}\.\d) ([KMGTP]i)?B", format_size(size))
    assert len(format_size(size)) <= 10


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0:00"),
        (59.4, "0:59"),
        (59.6, "1:00"),
        (3599, "59:59"),
        (3600, "1:00:00"),
        (86399, "23:59:59"),
        (86400, "1 d 00 h"),
        (200000, "2 d 07 h"),
    ],
)
def test_format_duration(seconds: float, text: str) -> None:
    """Times are shown in minutes, hours or days."""
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é", "plain é"),
        ("", ""),
        ("a\nb\t\x7f", "a\\nb\\t\\x7f"),
        ("\u202e\udc80", "\\u202e\\udc80"),
        ("'\"\\\x00", "'\"\\\\x00"),
    ],
)
def test_printable(text: str, shown: str) -> None:
    """Only what can't be printed is changed."""
    assert printable(text) == shown


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        """Say so."""
        return True

    def line(self) -> str:
        """Return what somebody in front of it sees on the last line."""
        shown = ""
        for part in self.getvalue().split("\n")[-1].split("\r"):
            shown = part + shown[len(part) :]
        return shown.rstrip()


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


def test_progress_line() -> None:
    """The line has label, bar, share, amounts, rate and the time that is left."""
    terminal, clock = Terminal(), Clock()
    with Progress("item", 100 << 20, terminal, clock=clock, columns=lambda: 80) as progress:
        clock.now += 1
        progress.update(10 << 20)
        bar = "#" * 2 + "." * 25
        assert terminal.line() == f"item  [{bar}]   10%  10.0 MiB/100.0 MiB  10.0 MiB/s  0:09"
        assert len(terminal.line()) <= 79
        clock.now += 1
        progress.update(50 << 20)
        bar = "#" * 13 + "." * 14
        assert terminal.line() == f"item  [{bar}]   50%  50.0 MiB/100.0 MiB  25.0 MiB/s  0:02"
        clock.now += 2
        progress.update(100 << 20)
    assert terminal.getvalue().endswith("\n")
    last = terminal.getvalue().rstrip("\n").split("\r")[-1].rstrip()
    assert last == "item  100.0 MiB in 0:04 (25.0 MiB/s)"


def test_progress_without_total() -> None:
    """When nobody knows how much there will be, there's no bar and no time left."""
    terminal, clock = Terminal(), Clock()
    with Progress("item", None, terminal, clock=clock, columns=lambda: 80) as progress:
        clock.now += 2
        progress.update(1 << 20)
        assert terminal.line() == "item  1.0 MiB  512.0 KiB/s"


def test_progress_more_than_total() -> None:
    """More than was promised is shown as all of it."""
    terminal, clock = Terminal(), Clock()
    with Progress("item", 1000, terminal, clock=clock, columns=lambda: 80) as progress:
        clock.now += 1
        progress.update(3000)
        assert "]  100%  2.9 KiB/1000 B" in terminal.line()
        assert terminal.line().endswith("  0:00")


def test_progress_stalled() -> None:
    """Without progress in the last seconds there is no guess of the time left."""
    terminal, clock = Terminal(), Clock()
    with Progress("item", 1000, terminal, clock=clock, columns=lambda: 80) as progress:
        for _ in range(8):
            clock.now += 1
            progress.update(500)
        assert terminal.line().endswith("50%  500 B/1000 B  0 B/s")


@pytest.mark.parametrize("columns", [1, 5, 20, 40, 60, 80, 200])
def test_progress_width(columns: int) -> None:
    """No line reaches the last column, in however narrow a terminal."""
    terminal, clock = Terminal(), Clock()
    with Progress("a label", 1 << 40, terminal, clock=clock, columns=lambda: columns) as progress:
        for step in range(1, 20):
            clock.now += 1
            progress.update(step << 35)
    assert max(len(part) for part in re.split(r"[\r\n]", terminal.getvalue())) <= columns - 1
    if columns == 200:
        assert "[" + "#" * 20 in terminal.getvalue().replace(".", "#")


def test_progress_is_drawn_rarely() -> None:
    """The line is drawn ten times a second at most."""
    terminal, clock = Terminal(), Clock()
    progress = Progress("item", 1000, terminal, clock=clock, columns=lambda: 80)
    for step in range(1000):
        clock.now += 0.001
        progress.update(step)
    assert 8 <= terminal.getvalue().count("\r") <= 10


def test_progress_interrupted() -> None:
    """When an exception ends the work, the line is cleared for what is said about it."""
    terminal, clock = Terminal(), Clock()

    def work() -> None:
        with Progress("item", 1000, terminal, clock=clock, columns=lambda: 80) as progress:
            clock.now += 1
            progress.update(1)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert terminal.line() == ""
    assert terminal.getvalue().endswith("\r")
    assert "\n" not in terminal.getvalue()


def test_progress_interrupted_early() -> None:
    """Nothing is cleared when nothing was drawn."""
    terminal = Terminal()

    def work() -> None:
        with Progress("item", 1000, terminal):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert terminal.getvalue() == ""


def test_progress_without_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    """Nothing is written to what isn't a terminal, standard error by default."""
    clock = Clock()
    with Progress("item", 1000, clock=clock) as progress:
        clock.now += 1
        progress.update(500)
    assert capfd.readouterr() == ("", "")


def test_progress_in_no_time() -> None:
    """What takes no time has no rate."""
    terminal, clock = Terminal(), Clock()
    with Progress("item", 10, terminal, clock=clock, columns=lambda: 80) as progress:
        progress.update(10)
    assert terminal.getvalue() == "\ritem  10 B in 0:00\n"


def test_progress_hostile_label() -> None:
    """A label can't steer the terminal."""
    terminal = Terminal()
    with Progress("a\x1b[2Jb\n", None, terminal, columns=lambda: 80):
        pass
    assert "a\\x1b[2Jb\\n" in terminal.getvalue()


def test_progress_asks_the_terminal() -> None:
    """The width is that of the stream's terminal, and 80 where it can't be asked."""
    clock = Clock()
    ours, theirs = pty.openpty()
    with open(theirs, "w", encoding="utf-8") as stream:
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 50, 0, 0))
        with Progress("x" * 200, None, stream, clock=clock):
            clock.now += 1
    shown = os.read(ours, 1000).decode()
    os.close(ours)
    assert len(shown.strip("\r\n")) == 49
    terminal = Terminal()
    with Progress("x" * 200, None, terminal, clock=clock):
        clock.now += 1
    assert len(terminal.getvalue().strip("\r\n")) == 79


def test_start_is_light() -> None:
    """Importing the commands' base loads none of the slow modules that few runs need."""
    script = (
        "import sys, narswarm.cli, narswarm.settings\n"
        "slow = {'json', 'importlib.metadata', 'tomllib', 'asyncio', 'ssl', 'http.client',"
        " 'libtorrent', 'flask', 'cryptography', 'zstandard', 'sqlite3'}\n"
        "print(sorted(slow & set(sys.modules)))"
    )
    found = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, check=True, cwd=ROOT, text=True
    )
    assert found.stdout == "[]\n"
