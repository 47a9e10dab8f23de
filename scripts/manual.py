# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes man/ and completions/ of the text that the commands and settings have for `--help`.

    python scripts/manual.py [--check]

One page for each command, with its subcommands, in section 1; one of the settings file in section
5. With --check nothing is written, and the exit code says whether the pages are up to date.
"""

from __future__ import annotations

import dataclasses
import re
import sys
import typing
from collections.abc import Iterator, Mapping
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.completions import completions

HERE = Path(__file__).resolve().parents[1]
GROUPS = {"substituter": "substituter.commands"}
"""Where a command is, of programs that don't have it in `cli`."""

PROGRAMS = ("mkmeta", "tracker", "seeder", "substituter")
SETTINGS = {
    "tracker": ("tracker.settings", "Settings"),
    "seeder": ("seeder.settings", "Settings"),
    "substituter": ("substituter.settings", "SubstituterSettings"),
}
FILES = "/etc/narswarm/narswarm.toml"
_WIDTH = 1000


def text(words: str) -> str:
    """Text as roff takes it: no line is a request, and `-` stays what it is."""
    lines = words.replace("\\", "\\e").replace("-", "\\-").replace("`", "").splitlines()
    return "\n".join(f"\\&{line}" if line.startswith((".", "'")) else line for line in lines)


def paragraphs(words: str) -> Iterator[str]:
    """Requests and text of a docstring, its paragraphs set apart."""
    for number, paragraph in enumerate(re.split(r"\n\s*\n", words.strip())):
        if number:
            yield ".PP"
        yield text(" ".join(paragraph.split()))


def options(command: click.Command, context: click.Context) -> Iterator[str]:
    """The options of a command."""
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is None or not record[1] or "--help" in parameter.opts:
            continue
        yield from (".TP", f".B {text(record[0])}", text(" ".join(record[1].split())))


def usage(command: click.Command, context: click.Context) -> str:
    """How a command is called."""
    return (
        f".B {text(context.command_path)}\n{text(' '.join(command.collect_usage_pieces(context)))}"
    )


def commands(command: click.Command, context: click.Context) -> Iterator[str]:
    """A command without subcommands, or all of those below."""
    if not isinstance(command, click.Group):
        yield from (".SS " + text(context.command_path), usage(command, context), ".PP")
        yield from paragraphs(command.help or "")
        yield from options(command, context)
        return
    for name in command.list_commands(context):
        sub = command.get_command(context, name)
        if sub is not None and not sub.hidden:
            yield from commands(sub, click.Context(sub, info_name=name, parent=context))


def exit_codes() -> Iterator[str]:
    """The table of docs/exit-codes.md."""
    for row in (HERE / "docs/exit-codes.md").read_text().splitlines():
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        if len(cells) == 3 and cells[0].isdecimal():
            yield from (".TP", f".B {cells[0]}", text(cells[2]))


def header(name: str, section: int, what: str) -> Iterator[str]:
    """The first lines of a page."""
    release = version("narswarm")
    yield f'.TH {name.upper()} {section} "" "narswarm {release}" "narswarm"'
    yield from (".SH NAME", f"{text(name)} \\- {text(what)}")


def command_page(name: str) -> str:
    """The page of a command."""
    module = import_module(GROUPS.get(name, f"{name}.cli"))
    group = next(each for each in vars(module).values() if isinstance(each, click.Group))
    context = click.Context(group, info_name=name)
    lines = [*header(name, 1, (group.get_short_help_str(_WIDTH)).rstrip("."))]
    lines += [".SH SYNOPSIS", usage(group, context), ".SH DESCRIPTION"]
    lines += [*paragraphs(group.help or ""), ".SH OPTIONS", *options(group, context)]
    lines += [".SH COMMANDS", *commands(group, context)]
    lines += [".SH EXIT STATUS", *exit_codes()]
    if name in SETTINGS:
        lines += [".SH ENVIRONMENT", ".TP", f".B {text(f'NARSWARM_{name.upper()}_NAME')}"]
        lines += [text("Takes the place of the setting NAME of the settings file.")]
        lines += [".SH FILES", ".TP", f".I {text(FILES)}", text("Settings: narswarm.toml(5).")]
    others = [f"{other}(1)" for other in PROGRAMS if other != name]
    lines += [".SH SEE ALSO", text(", ".join([*others, "narswarm.toml(5), guix(1)"]))]
    return "\n".join(lines) + "\n"


def kind(annotation: object, unit: str) -> str:
    """What a setting's value looks like."""
    shown = str(annotation)
    if unit == "bytes":
        return 'bytes, or text such as "10 GiB"'
    if unit == "seconds":
        return 'seconds, or text such as "30 s"'
    for part, words in (
        ("tuple", "list of strings"),
        ("Mapping", "table"),
        ("bool", "true or false"),
        ("int", "number"),
        ("float", "number"),
        ("Path", "path"),
    ):
        if part in shown:
            return words
    return "string"


def default(value: Any) -> str:
    """A default as the file would say it."""
    if value is None or value in ("", (), {}):
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ", ".join(str(each) for each in value)
    return str(value)


def settings_page() -> str:
    """The page of the settings file."""
    lines = [*header("narswarm.toml", 5, "settings of narswarm's programs"), ".SH DESCRIPTION"]
    lines += [
        *paragraphs(
            f"A TOML file, by default {FILES}, with one table for each program. The environment "
            "variable NARSWARM_PROGRAM_NAME takes the place of a setting, and a flag of the "
            "command takes the place of both. A name that isn't listed here is an error."
        )
    ]
    for program, (module, name) in SETTINGS.items():
        cls = getattr(import_module(module), name)
        hints: Mapping[str, object] = typing.get_type_hints(cls)
        lines += [f".SH [{program}]"]
        for field in dataclasses.fields(cls):
            if "help" not in field.metadata:
                continue
            value = field.default
            if field.default_factory is not dataclasses.MISSING:
                value = field.default_factory()
            shown = kind(hints[field.name], field.metadata.get("unit", ""))
            lines += [".TP", f'.BR {text(field.name)} " ({text(shown)})"']
            lines += [text(field.metadata["help"]), ".br", text(f"Default: {default(value)}")]
    lines += [".SH SEE ALSO", "tracker(1), seeder(1), substituter(1)"]
    return "\n".join(lines) + "\n"


def pages() -> dict[Path, str]:
    """All pages and scripts by the files that they belong in."""
    found = {HERE / f"man/{name}.1": command_page(name) for name in PROGRAMS}
    found[HERE / "man/narswarm.toml.5"] = settings_page()
    for name in PROGRAMS:
        for path, script in completions(name).items():
            found[HERE / "completions" / path] = script
    return found


def main(arguments: list[str]) -> int:
    """Write the pages, or say which are out of date."""
    made = pages()
    stale = [path for path in made if not path.exists() or path.read_text() != made[path]]
    if arguments == ["--check"]:
        for path in stale:
            print(f"{path.relative_to(HERE)}: is out of date; run `make manual`", file=sys.stderr)
        return 1 if stale else 0
    for path in stale:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(made[path])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
