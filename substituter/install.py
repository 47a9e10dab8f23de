# SPDX-License-Identifier: GPL-3.0-or-later
"""Puts the substituter in guix-daemon's way, and takes it away again without a trace.

Guix's extension does it, and a drop-in of systemd with the daemon's environment; where the daemon
takes `GUIX`, a launcher does it faster. What was in their place is kept in a record, so that the
way back gives exactly that, byte for byte; and what somebody has changed since is left to them.
"""

from __future__ import annotations

import base64
import contextlib
import difflib
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from narswarm.errors import InvalidInputError, NarswarmError, NotFoundError, SettingsError
from narswarm.files import write_atomically
from substituter import launcher
from substituter.doctor import EXTENSION

DIRECTORY: Final = Path("usr/local/lib/narswarm/guix/extensions")
DROP_IN: Final = Path("etc/systemd/system/guix-daemon.service.d/narswarm.conf")
RECORD: Final = Path("var/lib/narswarm/substituter-install.json")
UNIT: Final = "guix-daemon.service"

_UNITS: Final = tuple(
    Path(each) for each in ("etc/systemd/system", "usr/lib/systemd/system", "lib/systemd/system")
)
_SETS_PATH: Final = re.compile(r"""^Environment=.*?GUIX_EXTENSIONS_PATH=([^"'\s]*)""", re.MULTILINE)
_MAX_FILE: Final = 1 << 20
_DROP_IN: Final = """\
# Written by `substituter install`; `substituter uninstall` takes it away.
[Service]
"""


class Before(NamedTuple):
    """What was at a file's place."""

    content: bytes
    mode: int
    uid: int
    gid: int


class Change(NamedTuple):
    """A file that is written.

    Attributes:
        path: below the root.
        content: what it gets.
        before: what is there now, None for nothing.
        mode: its permissions.
    """

    path: Path
    content: bytes
    before: Before | None
    mode: int = 0o644


class Installed(NamedTuple):
    """A file that was written.

    Attributes:
        path: below the root.
        sha256: of what was written, in hexadecimal.
        before: what was there.
    """

    path: Path
    sha256: str
    before: Before | None


class Record(NamedTuple):
    """What was done: files, and directories that were made for them, outer ones first."""

    files: tuple[Installed, ...] = ()
    directories: tuple[Path, ...] = ()


def kind(root: Path) -> str:
    """What starts services in a system: `guix-system`, `systemd`, `shepherd` or `other`."""
    release = _text(root / "etc/os-release")
    if os.path.lexists(root / "run/current-system") or re.search(
        r"^ID=guix$", release, re.MULTILINE
    ):
        return "guix-system"
    if any(os.path.lexists(root / directory / UNIT) for directory in _UNITS):
        return "systemd"
    return "shepherd" if os.path.lexists(root / "run/shepherd") else "other"


def plan(
    root: Path, program: Path, *, extension_only: bool = False, policy: str | None = None
) -> tuple[list[Change], list[str]]:
    """What would be written, and what somebody should know about it.

    Args:
        root: of the system.
        program: the substituter, as guix-daemon will find it.
        extension_only: whether to leave `GUIX` alone where it could be used.
        policy: goes before that of the settings.

    Raises:
        SettingsError: the program's name can't stand in a unit.
        NarswarmError: a file's place isn't one that may be written.
    """
    if not launcher.PLAIN.fullmatch(str(program)) or not program.is_absolute():
        raise SettingsError("--program", f"expected a plain absolute path, got {program}")
    theirs, notes = _other_extensions(root)
    directories = [f"/{DIRECTORY}", *theirs]
    variables = [
        f"GUIX_EXTENSIONS_PATH={':'.join(dict.fromkeys(directories))}",
        *_variables(program, policy),
    ]
    wanted = [(DIRECTORY / EXTENSION.name, EXTENSION.read_bytes(), 0o644)]
    texts = [_text(file) for file in _unit_files(root)]
    guix = None if extension_only else launcher.real_guix(root, texts)
    if guix is not None:
        wanted.append((launcher.LAUNCHER, launcher.text(program, guix), launcher.MODE))
        variables.append(f"GUIX=/{launcher.LAUNCHER}")
    drop_in = _DROP_IN + "".join(f"Environment={each}\n" for each in variables)
    wanted.append((DROP_IN, drop_in.encode(), 0o644))
    changes = []
    for path, content, mode in wanted:
        _require_inside(root, path)
        before = _look(root / path)
        runs = before is not None and before.mode & mode & 0o111 == mode & 0o111
        if before is None or before.content != content or not runs:
            changes.append(Change(path, content, before, mode))
    return changes, notes


def diff(changes: Iterable[Change]) -> Iterator[str]:
    """The changes as lines of a unified diff."""
    for change in changes:
        old = change.before.content if change.before else b""
        yield from difflib.unified_diff(
            old.decode(errors="replace").splitlines(),
            change.content.decode().splitlines(),
            f"/{change.path}" if change.before else "/dev/null",
            f"/{change.path}",
            lineterm="",
        )


def apply(root: Path, changes: Sequence[Change]) -> None:
    """Write the files. What is done is on record before, so that it can be undone at any moment.

    Raises:
        InvalidInputError: the record of an earlier time can't be read.
        OSError: as the file system says.
    """
    record = load(root)
    files = {each.path: each for each in record.files}
    directories = dict.fromkeys(record.directories)
    for change in changes:
        digest = hashlib.sha256(change.content).hexdigest()
        before = change.before
        known = files.get(change.path)
        if known and before and hashlib.sha256(before.content).hexdigest() == known.sha256:
            before = known.before  # what is there is ours, of another version
        files[change.path] = Installed(change.path, digest, before)
    for path in (*files, RECORD):
        for parent in reversed(path.parents):
            if not (root / parent).exists():
                directories[parent] = None
    _make(root, RECORD.parent)
    _save(root, Record(tuple(files.values()), tuple(directories)))
    for change in changes:
        _make(root, change.path.parent)
        write_atomically(root / change.path, change.content, mode=change.mode, durable=True)


def undo(root: Path, record: Record, *, force: bool = False) -> list[str]:
    """Give back what was there.

    Args:
        root: of the system.
        record: what was done.
        force: whether files that somebody has changed since go, too.

    Returns:
        A line about each file that is left as it is.

    Raises:
        OSError: as the file system says.
    """
    left: list[Installed] = []
    notes = []
    for each in reversed(record.files):
        _require_inside(root, each.path)
        now = _look(root / each.path)
        if now == each.before:
            continue  # it never came to be written, or somebody was faster
        if now is None:
            notes.append(f"/{each.path}: was removed; what was there before isn't put back")
        elif hashlib.sha256(now.content).hexdigest() != each.sha256 and not force:
            notes.append(f"/{each.path}: was changed since, and is left there")
            left.append(each)
        elif each.before is None:
            (root / each.path).unlink()
        else:
            _restore(root / each.path, each.before)
    if left:
        _save(root, record._replace(files=tuple(reversed(left))))
        return notes
    (root / RECORD).unlink(missing_ok=True)
    for directory in reversed(record.directories):
        with contextlib.suppress(OSError):  # others have put something there
            (root / directory).rmdir()
    return notes


def load(root: Path) -> Record:
    """What was done before; nothing, where there is no record.

    Raises:
        InvalidInputError: the record isn't one.
    """
    file = root / RECORD
    try:
        data = json.loads(file.read_bytes())
        files = [_installed(each) for each in data["files"]]
        return Record(tuple(files), tuple(Path(each) for each in data["directories"]))
    except FileNotFoundError:
        return Record()
    except OSError as error:
        raise NotFoundError(file, error.strerror or str(error)) from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InvalidInputError(file, "is not a record of an installation") from error


def snippet(system: str, program: Path, policy: str | None = None) -> str:
    """What somebody has to write themselves where files of ours wouldn't count."""
    variables = [f"GUIX_EXTENSIONS_PATH={EXTENSION.parent}", *_variables(program, policy)]
    if system == "guix-system":
        quoted = f"\n{' ' * 15}".join(f'"{each}"' for each in variables)
        return f"""\
(modify-services %base-services        ; or %desktop-services: what your services begin with
  (guix-service-type config =>
    (guix-configuration
      (inherit config)
      (environment
        (cons* {quoted}
               (guix-configuration-environment config))))))
"""
    if system == "shepherd":
        quoted = f"\n{' ' * 7}".join(f'"{each}"' for each in variables)
        return f"""\
#:environment-variables
(cons* {quoted}
       (default-environment-variables))
"""
    return "".join(f"{each}\n" for each in variables)


def _variables(program: Path, policy: str | None) -> list[str]:
    """What guix-daemon's helpers find in their environment."""
    named = [f"NARSWARM_SUBSTITUTER={program}"]
    return [*named, f"NARSWARM_SUBSTITUTER_POLICY={policy}"] if policy else named


def _make(root: Path, directory: Path) -> None:
    """Make a directory that everybody may enter, whatever the umask."""
    for each in (*reversed(directory.parents), directory):
        if not (root / each).exists():
            (root / each).mkdir()
            (root / each).chmod(0o755)


def _other_extensions(root: Path) -> tuple[list[str], list[str]]:
    """Directories that units name as GUIX_EXTENSIONS_PATH, and files that will hide ours."""
    found: list[str] = []
    notes = []
    for file in reversed(_unit_files(root)):
        match = _SETS_PATH.search(_text(file))
        if match is None:
            continue
        found += [each for each in match[1].split(":") if each and launcher.PLAIN.fullmatch(each)]
        if file.name != UNIT and file.name > DROP_IN.name:
            notes.append(
                f"/{file.relative_to(root)}: sets GUIX_EXTENSIONS_PATH, too, and counts more; "
                "remove that line"
            )
    return found, notes


def _unit_files(root: Path) -> list[Path]:
    """The unit of guix-daemon that counts, and what others have dropped in, by their names."""
    units = [root / directory / UNIT for directory in _UNITS]
    dropped: dict[str, Path] = {}
    for directory in reversed(_UNITS):
        with contextlib.suppress(OSError):
            dropped |= {each.name: each for each in (root / directory / f"{UNIT}.d").glob("*.conf")}
    dropped.pop(DROP_IN.name, None)
    there = [unit for unit in units if os.path.lexists(unit)]
    return [*there[:1], *(dropped[name] for name in sorted(dropped))]


def _look(file: Path) -> Before | None:
    """What is there.

    Raises:
        NarswarmError: something that can't be put back.
    """
    if file.is_symlink() or (os.path.lexists(file) and not file.is_file()):
        raise NarswarmError(file, "is not a plain file; remove it first")
    try:
        found = file.stat()
        if found.st_size > _MAX_FILE:
            raise NarswarmError(file, f"is longer than {_MAX_FILE} bytes; remove it first")
        return Before(file.read_bytes(), found.st_mode & 0o7777, found.st_uid, found.st_gid)
    except FileNotFoundError:
        return None


def _restore(file: Path, before: Before) -> None:
    write_atomically(file, before.content, mode=before.mode, durable=True)
    if (before.uid, before.gid) != (os.geteuid(), os.getegid()):
        os.chown(file, before.uid, before.gid)
        file.chmod(before.mode)


def _require_inside(root: Path, path: Path) -> None:
    """Refuse links that lead out of an image, or records that name what they mustn't."""
    place = (root / path).parent.resolve()
    if path.is_absolute() or ".." in path.parts or not place.is_relative_to(root.resolve()):
        raise NarswarmError(root / path, f"leads out of {root}")


def _save(root: Path, record: Record) -> None:
    files = [
        {
            "path": str(each.path),
            "sha256": each.sha256,
            "before": each.before
            and {
                "content": base64.b64encode(each.before.content).decode(),
                **{name: getattr(each.before, name) for name in ("mode", "uid", "gid")},
            },
        }
        for each in record.files
    ]
    data = {"files": files, "directories": [str(each) for each in record.directories]}
    text = json.dumps(data, indent=2) + "\n"
    write_atomically(root / RECORD, text.encode(), mode=0o600, durable=True)


def _installed(data: dict[str, Any]) -> Installed:
    before = data["before"]
    if before is not None:
        content = base64.b64decode(before["content"], validate=True)
        before = Before(content, *(int(before[name]) for name in ("mode", "uid", "gid")))
    return Installed(Path(data["path"]), str(data["sha256"]), before)


def _text(file: Path) -> str:
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""
