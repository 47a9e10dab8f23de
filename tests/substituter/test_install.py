# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of substituter.install, on systems that are directories."""

from __future__ import annotations

from pathlib import Path

import pytest

from narswarm import files
from narswarm.errors import InvalidInputError, NarswarmError, SettingsError
from substituter import install, launcher
from substituter.doctor import EXTENSION
from substituter.install import DIRECTORY, DROP_IN, RECORD
from substituter.launcher import LAUNCHER

PROGRAM = Path("/opt/narswarm/bin/substituter")
FILES = [DIRECTORY / "substitute.scm", DROP_IN]
PLAIN = [
    "[Service]",
    f"Environment=GUIX_EXTENSIONS_PATH=/{DIRECTORY}",
    f"Environment=NARSWARM_SUBSTITUTER={PROGRAM}",
]


def contents(root: Path) -> dict[str, object]:
    """Everything in a system: directories, files with their bytes and modes."""
    return {
        str(path.relative_to(root)): (path.read_bytes(), path.stat().st_mode)
        if path.is_file()
        else None
        for path in sorted(root.rglob("*"))
    }


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A distribution with systemd and guix-daemon."""
    unit = tmp_path / "root/usr/lib/systemd/system/guix-daemon.service"
    unit.parent.mkdir(parents=True)
    unit.write_text("[Service]\nExecStart=/usr/bin/guix-daemon\n")
    (tmp_path / "root/etc").mkdir()
    return tmp_path / "root"


def make_daemon(root: Path) -> None:
    """What a package has: the daemon itself, and guix beside it."""
    (root / "usr/bin").mkdir(parents=True)
    (root / "usr/bin/guix-daemon").write_bytes(b"\x7fELF\2\1\1")
    (root / "usr/bin/guix").write_text("#!/bin/sh\n")
    (root / "usr/bin/guix").chmod(0o755)


def put(root: Path, program: Path = PROGRAM) -> None:
    """Install."""
    changes, _ = install.plan(root, program)
    install.apply(root, changes)


def test_it_leaves_no_trace(root: Path) -> None:
    """After the way back everything is byte for byte as it was, directories included."""
    before = contents(root)
    changes, notes = install.plan(root, PROGRAM)
    assert [change.path for change in changes] == FILES
    assert notes == []
    assert contents(root) == before  # a plan writes nothing
    install.apply(root, changes)
    assert (root / FILES[0]).read_bytes() == EXTENSION.read_bytes()
    assert (root / DROP_IN).read_text().splitlines()[1:] == PLAIN
    assert install.undo(root, install.load(root)) == []
    assert contents(root) == before


def test_a_daemon_of_a_package_gets_the_launcher(root: Path) -> None:
    """It runs the substituter at once; the extension is there as well, and both go again."""
    make_daemon(root)
    before = contents(root)
    put(root)
    assert (root / DROP_IN).read_text().splitlines()[1:] == [
        *PLAIN,
        f"Environment=GUIX=/{LAUNCHER}",
    ]
    assert (root / LAUNCHER).read_bytes() == launcher.text(PROGRAM, Path("/usr/bin/guix"))
    assert (root / LAUNCHER).stat().st_mode & 0o777 == 0o755
    assert install.plan(root, PROGRAM) == ([], [])
    (root / LAUNCHER).chmod(0o644)
    assert [change.path for change in install.plan(root, PROGRAM)[0]] == [LAUNCHER]
    put(root)
    assert (root / LAUNCHER).stat().st_mode & 0o777 == 0o755
    assert install.undo(root, install.load(root)) == []
    assert contents(root) == before
    changes, _ = install.plan(root, PROGRAM, extension_only=True)
    assert [change.path for change in changes] == FILES


@pytest.mark.parametrize(
    ("directory", "text", "taken"),
    [
        ("usr/lib/systemd/system", "ExecStart=\nExecStart=/usr/bin/guix-daemon --x\n", True),
        ("usr/lib/systemd/system", "ExecStart=\nExecStart=/usr/bin/wrapper\n", False),
        ("etc/systemd/system", "Environment=A=1 GUIX=/usr/bin/guix\n", False),
    ],
)
def test_what_is_dropped_into_the_unit_counts(
    root: Path, directory: str, text: str, taken: bool
) -> None:
    """Another program, or another GUIX, is left alone."""
    make_daemon(root)
    file = root / directory / "guix-daemon.service.d/50-mine.conf"
    file.parent.mkdir(parents=True)
    file.write_text(f"[Service]\n{text}")
    changes, _ = install.plan(root, PROGRAM)
    assert (LAUNCHER in [change.path for change in changes]) is taken


def test_the_unit_of_the_administrator_goes_before_that_of_the_package(root: Path) -> None:
    """Systemd reads one of them only, and a drop-in of one name only once."""
    make_daemon(root)
    unit = root / "etc/systemd/system/guix-daemon.service"
    for file, name in ((unit, "wrapper"), (unit.with_suffix(".service.d") / "a.conf", "other")):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"[Service]\nExecStart=/usr/bin/{name}\n")
        changes, _ = install.plan(root, PROGRAM)
        assert [change.path for change in changes] == FILES
    file.write_text("")
    unit.write_text("[Service]\nExecStart=-/usr/bin/guix-daemon\n")
    theirs = root / "usr/lib/systemd/system/guix-daemon.service.d/a.conf"
    theirs.parent.mkdir()
    theirs.write_text("[Service]\nExecStart=/usr/bin/other\n")
    changes, _ = install.plan(root, PROGRAM)
    assert [change.path for change in changes] == [FILES[0], LAUNCHER, DROP_IN]


def test_what_was_there_comes_back(root: Path) -> None:
    """Also its mode; and also after a second installation of another version."""
    drop_in = root / DROP_IN
    drop_in.parent.mkdir(parents=True)
    drop_in.write_bytes(b"# mine \xff\n")
    drop_in.chmod(0o640)
    before = contents(root)
    put(root)
    put(root, Path("/opt/other/substituter"))
    assert b"/opt/other" in drop_in.read_bytes()
    assert install.undo(root, install.load(root)) == []
    assert contents(root) == before


def test_the_second_time_there_is_nothing_to_do(root: Path) -> None:
    """Installing again changes nothing."""
    put(root)
    after = contents(root)
    assert install.plan(root, PROGRAM) == ([], [])
    install.apply(root, [])
    assert contents(root) == after


def test_what_somebody_has_changed_is_left(root: Path) -> None:
    """It stays, on record, until it is forced; the rest goes."""
    put(root)
    (root / DROP_IN).write_text("[Service]\n# mine\n")
    note = f"/{DROP_IN}: was changed since, and is left there"
    assert install.undo(root, install.load(root)) == [note]
    assert not (root / FILES[0]).exists()
    assert [each.path for each in install.load(root).files] == [DROP_IN]
    assert install.undo(root, install.load(root), force=True) == []
    assert not (root / DROP_IN).exists()
    assert install.load(root).files == ()


def test_what_somebody_has_changed_is_kept_when_it_is_written_again(root: Path) -> None:
    """The way back leads to what was there just before."""
    put(root)
    (root / DROP_IN).write_text("# mine\n")
    put(root)
    assert install.undo(root, install.load(root)) == []
    assert (root / DROP_IN).read_text() == "# mine\n"


def test_what_somebody_has_removed(root: Path) -> None:
    """It isn't missed; nor is what it had replaced put back."""
    (root / DROP_IN).parent.mkdir(parents=True)
    (root / DROP_IN).write_text("# mine\n")
    put(root)
    (root / DROP_IN).unlink()
    note = f"/{DROP_IN}: was removed; what was there before isn't put back"
    assert install.undo(root, install.load(root)) == [note]
    assert install.load(root).files == ()


def test_an_installation_that_was_cut_off(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What wasn't written yet isn't missed on the way back."""
    before = contents(root)
    changes, _ = install.plan(root, PROGRAM)
    real = files.write_atomically

    def fail(path: Path, data: bytes, **more: object) -> None:
        if path == root / DROP_IN:
            raise OSError(28, "No space left on device")
        real(path, data, **more)  # type: ignore[arg-type]  # the same flags

    monkeypatch.setattr("substituter.install.write_atomically", fail)
    with pytest.raises(OSError, match="No space left"):
        install.apply(root, changes)
    monkeypatch.undo()
    assert install.undo(root, install.load(root)) == []
    assert contents(root) == before


def test_other_extensions_stay(root: Path) -> None:
    """What the unit names comes after ours; a later drop-in that hides ours is told of."""
    unit = root / "usr/lib/systemd/system/guix-daemon.service"
    unit.write_text('[Service]\nEnvironment="A=1" "GUIX_EXTENSIONS_PATH=/a/guix/extensions:/b"\n')
    override = root / "etc/systemd/system/guix-daemon.service.d/override.conf"
    override.parent.mkdir(parents=True)
    override.write_text("[Service]\nEnvironment=GUIX_EXTENSIONS_PATH=/c\n")
    changes, notes = install.plan(root, PROGRAM)
    line = f"Environment=GUIX_EXTENSIONS_PATH=/{DIRECTORY}:/c:/a/guix/extensions:/b\n"
    assert line in changes[1].content.decode()
    file = f"/{DROP_IN.parent}/override.conf"
    assert notes == [f"{file}: sets GUIX_EXTENSIONS_PATH, too, and counts more; remove that line"]


def test_a_policy(root: Path) -> None:
    """It is in the daemon's environment, which goes before the settings; another time it isn't."""
    changes, _ = install.plan(root, PROGRAM, policy="swarm-first")
    install.apply(root, changes)
    line = "Environment=NARSWARM_SUBSTITUTER_POLICY=swarm-first"
    assert (root / DROP_IN).read_text().splitlines()[1:] == [*PLAIN, line]
    put(root)
    assert (root / DROP_IN).read_text().splitlines()[1:] == PLAIN
    for system in ("guix-system", "shepherd", "other"):
        shown = install.snippet(system, PROGRAM, "swarm-first")
        assert "NARSWARM_SUBSTITUTER_POLICY=swarm-first" in shown
        assert "POLICY" not in install.snippet(system, PROGRAM)


@pytest.mark.parametrize("program", ["substituter", "/opt/nar swarm/x", "/opt/%h", '/o"', "/a\n"])
def test_programs_that_a_unit_can_not_name(root: Path, program: str) -> None:
    """Spaces, quotes and specifiers would need quoting."""
    with pytest.raises(SettingsError) as caught:
        install.plan(root, Path(program))
    assert str(caught.value) == f"--program: expected a plain absolute path, got {program}"


def test_links_are_not_followed(root: Path, tmp_path: Path) -> None:
    """Neither one in a file's place, nor one that leads out of an image."""
    (root / DROP_IN).parent.mkdir(parents=True)
    (root / DROP_IN).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(NarswarmError) as caught:
        install.plan(root, PROGRAM)
    assert str(caught.value) == f"{root / DROP_IN}: is not a plain file; remove it first"
    (root / DROP_IN).unlink()
    (root / "usr/local").symlink_to(tmp_path)
    with pytest.raises(NarswarmError) as caught:
        install.plan(root, PROGRAM)
    assert str(caught.value) == f"{root / FILES[0]}: leads out of {root}"


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"files": [{}], "directories": []}'])
def test_a_record_that_is_none(root: Path, text: str) -> None:
    """It is named, and nothing is undone by it."""
    (root / RECORD).parent.mkdir(parents=True)
    (root / RECORD).write_text(text)
    with pytest.raises(InvalidInputError) as caught:
        install.load(root)
    assert str(caught.value) == f"{root / RECORD}: is not a record of an installation"


def test_a_record_that_names_other_places(root: Path) -> None:
    """It can't have anything removed outside."""
    record = install.Record((install.Installed(Path("../x"), "0", None),))
    with pytest.raises(NarswarmError, match="leads out of"):
        install.undo(root, record)


def test_kinds_of_systems(tmp_path: Path, root: Path) -> None:
    """By what they have."""
    assert install.kind(root) == "systemd"
    other = tmp_path / "other"
    (other / "run").mkdir(parents=True)
    assert install.kind(other) == "other"
    (other / "run/shepherd").mkdir()
    assert install.kind(other) == "shepherd"
    (other / "etc").mkdir()
    (other / "etc/os-release").write_text('NAME="Guix System"\nID=guix\n')
    assert install.kind(other) == "guix-system"


def test_the_diff(root: Path) -> None:
    """New files are against /dev/null, changed ones line by line."""
    put(root)
    changes, _ = install.plan(root, Path("/opt/new"))
    lines = list(install.diff(changes))
    assert lines[:2] == [f"--- /{DROP_IN}", f"+++ /{DROP_IN}"]
    assert lines[-2:] == [
        f"-Environment=NARSWARM_SUBSTITUTER={PROGRAM}",
        "+Environment=NARSWARM_SUBSTITUTER=/opt/new",
    ]
