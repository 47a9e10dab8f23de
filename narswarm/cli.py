# SPDX-License-Identifier: GPL-3.0-or-later
"""What the four commands have in common: how they end, say errors, and show progress.

Every error is one line on standard error, `PROGRAM: subject: reason`, and an exit code of
`narswarm.errors.ExitCode`.  Modules that are slow to import are imported where they are needed,
as one of the commands runs for each build.
"""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, NoReturn, Self, TextIO, TypeVar

import click

from narswarm.errors import ExitCode, NarswarmError

_Decorated = TypeVar("_Decorated", bound=Callable[..., object])

_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_INTERVAL: Final = 0.1
"""Seconds between two drawings of a progress bar, at least."""

_WINDOW: Final = 5.0
"""Seconds over which the rate is taken, so that it follows what the network does."""

_SMALLEST_BAR: Final = 10
_LARGEST_BAR: Final = 40


def run(
    command: click.Command, argv: Sequence[str] | None = None, *, program: str | None = None
) -> NoReturn:
    """Run a command as a whole program and exit.

    A command exits with `ExitCode.OK`, or with the `ExitCode` that it returns.

    Args:
        command: the program's group or command.
        argv: its arguments, without the program's name; those of the process by default.
        program: what it is called in messages; by default, what it was started as.
    """
    name = program or _program()
    try:
        code = _invoke(command, list(sys.argv[1:] if argv is None else argv), name)
        sys.stdout.flush()
    except click.exceptions.Exit as error:
        code = error.exit_code
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (KeyboardInterrupt, click.Abort):
        code = ExitCode.INTERRUPTED
    except BrokenPipeError:
        code = ExitCode.FAILED
        _silence(sys.stdout)
    except NarswarmError as error:
        code = error.exit_code
        _complain(name, str(error))
    except OSError as error:
        code = ExitCode.FAILED
        reason = error.strerror or str(error)
        shown = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
        _complain(name, shown + reason)
    sys.exit(int(code))


def json_option(function: _Decorated) -> _Decorated:
    """Add `--json`, given to the command as `as_json`."""
    return click.option(
        "--json", "as_json", is_flag=True, help="Write JSON for programs to standard output."
    )(function)


def config_option(function: _Decorated) -> _Decorated:
    """Add `--config FILE`, given to the command as `config`: a `Path` or None."""
    return click.option(
        "--config",
        type=click.Path(path_type=Path, dir_okay=False),
        metavar="FILE",
        help="Read settings from FILE instead of /etc/narswarm/narswarm.toml.",
    )(function)


def version_option(function: _Decorated) -> _Decorated:
    """Add `--version`, which writes the program's name and version and exits."""
    return click.option(
        "--version",
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_show_version,
        help="Write the version and exit.",
    )(function)


def print_json(value: object) -> None:
    """Write a JSON document and a newline to standard output."""
    import json  # noqa: PLC0415 - most runs write none

    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def format_size(size: float) -> str:
    """Return a number of bytes for people: `0 B`, `1.5 KiB`, `20.0 GiB`."""
    if size < 1024:
        return f"{size:.0f} B"
    value = float(size)
    for unit in _UNITS[1:]:
        value /= 1024
        # What would be rounded up to 1024.0 of this unit is 1.0 of the next.
        if value < 1023.95:
            return f"{value:.1f} {unit}"
    return f"{value:.1f} {_UNITS[-1]}"


def format_duration(seconds: float) -> str:
    """Return a time span for people: `0:05`, `12:00`, `3:04:05`, `2 d 03 h`."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days} d {hour:02} h"
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


class Progress:
    """A progress line with rate and remaining time, on a terminal only.

    Used as a context manager: leaving it normally leaves a summary on the line, leaving it by an
    exception clears the line.  When the stream is no terminal, nothing is written.
    """

    def __init__(
        self,
        label: str,
        total: int | None,
        stream: TextIO | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        columns: Callable[[], int] | None = None,
    ) -> None:
        """Prepare a line.

        Args:
            label: what is going on.
            total: bytes that there will be, None if nobody knows.
            stream: where to draw; standard error by default.
            clock: seconds, for the rate.
            columns: the width of the terminal, asked at each drawing; the stream's own by default.
        """
        self._label = printable(label)
        self._total = total
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._columns = columns or self._terminal_columns
        self._terminal = self._stream.isatty()
        self._shown = 0
        self._done = 0
        self._start = self._drawn = clock()
        self._samples = deque([(self._start, 0)])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self._terminal:
            return
        if kind is None:
            elapsed = self._clock() - self._start
            parts = [format_size(self._done), f"in {format_duration(elapsed)}"]
            if elapsed > 0:
                parts.append(f"({format_size(self._done / elapsed)}/s)")
            self._draw(f"{self._label}  {' '.join(parts)}")
            self._stream.write("\n")
        elif self._shown:
            self._draw("")
            self._stream.write("\r")
        self._stream.flush()

    def update(self, done: int) -> None:
        """Say that `done` bytes of the whole have been done by now; cheap to call often."""
        self._done = done
        if not self._terminal:
            return
        now = self._clock()
        if now - self._drawn < _INTERVAL:
            return
        self._drawn = now
        while len(self._samples) > 1 and now - self._samples[0][0] > _WINDOW:
            self._samples.popleft()
        then, before = self._samples[0]
        self._samples.append((now, done))
        self._draw(self._line(max(0.0, (done - before) / (now - then)), self._columns()))
        self._stream.flush()

    def _line(self, rate: float, columns: int) -> str:
        """Return the line: label, bar, amount, rate, time; the bar takes the room that is left."""
        amount, end = format_size(self._done), f"  {format_size(rate)}/s"
        if not self._total:
            return f"{self._label}  {amount}{end}"
        share = min(1.0, self._done / self._total)
        if rate > 0:
            end += f"  {format_duration(max(0, self._total - self._done) / rate)}"
        end = f"{share:4.0%}  {amount}/{format_size(self._total)}{end}"
        room = min(_LARGEST_BAR, columns - 1 - len(self._label) - len(end) - 6)
        if room < _SMALLEST_BAR:
            return f"{self._label}  {end}"
        full = int(share * room)
        return f"{self._label}  [{'#' * full}{'.' * (room - full)}]  {end}"

    def _draw(self, line: str) -> None:
        """Put `line` where the last one was; the last column stays free so that nothing wraps."""
        line = line[: max(0, self._columns() - 1)]
        self._stream.write(f"\r{line}{' ' * (self._shown - len(line))}")
        self._shown = len(line)

    def _terminal_columns(self) -> int:
        try:
            return os.get_terminal_size(self._stream.fileno()).columns or 80
        except OSError:
            return 80


def printable(text: str) -> str:
    r"""Return `text` on one line, with control and other unprintable characters as `\x1b`.

    Names come from strangers; they mustn't steer a terminal.
    """
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else ascii(character)[1:-1] for character in text
    )


def _invoke(command: click.Command, arguments: list[str], name: str) -> int:
    """Run the command; its own `main` would hide interrupts and closed pipes from us."""
    variable = f"_{name}_COMPLETE".replace("-", "_").upper()
    instruction = os.environ.get(variable)
    if instruction:
        from click.shell_completion import shell_complete  # noqa: PLC0415 - for shells only

        return shell_complete(command, {}, name, variable, instruction)
    with command.make_context(name, arguments) as context:
        result = command.invoke(context)
    return result if isinstance(result, ExitCode) else ExitCode.OK


def _program() -> str:
    """Return what this process was started as, `python -m seeder` included."""
    path = Path(sys.argv[0])
    return path.parent.name if path.name == "__main__.py" else path.name


def _silence(stream: TextIO) -> None:
    """Let a stream whose reader is gone end nowhere, so that the flush at exit doesn't fail."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def _complain(name: str, message: str) -> None:
    click.echo(f"{name}: {printable(message)}", err=True)


def _show_version(context: click.Context, _option: click.Parameter, wanted: bool) -> None:
    if not wanted or context.resilient_parsing:
        return
    from importlib import metadata  # noqa: PLC0415 - slow, and for this option only

    try:
        version = metadata.version("narswarm")
    except metadata.PackageNotFoundError:
        version = "(not installed)"
    click.echo(f"{context.find_root().info_name} (narswarm) {version}")
    context.exit()
