# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of substituter.daemonprocess, on a /proc of files."""

from __future__ import annotations

from pathlib import Path

import pytest

from substituter import daemonprocess


def process(
    proc: Path, pid: int, *argv: str, parent: int = 1, environ: str | None = None, uid: int = 7
) -> None:
    """A process as the kernel shows it."""
    directory = proc / str(pid)
    directory.mkdir(parents=True)
    (directory / "cmdline").write_bytes("".join(f"{each}\0" for each in argv).encode())
    (directory / "status").write_text(
        f"Name:\tx\nPPid:\t{parent}\nUid:\t0\t{uid}\t0\t0\nGid:\t0\t8\t0\t0\nGroups:\t9 10 \n"
    )
    if environ is not None:
        (directory / "environ").write_text(environ)


def test_the_daemon_is_told_from_its_children(tmp_path: Path) -> None:
    """What it makes for clients, and other programs, aren't daemons."""
    process(tmp_path, 5, "/usr/bin/guix-daemon", "--discover=no", environ="A=1\0B=2=3\0broken\0")
    process(tmp_path, 6, "guix-daemon", "1234", parent=5)
    process(tmp_path, 7, "/usr/bin/guix", "guix-daemon")
    (tmp_path / "8").mkdir()
    (tmp_path / "uptime").write_text("1")
    (found,) = daemonprocess.find(tmp_path)
    assert found == daemonprocess.Daemon(
        5, 7, (8, 9, 10), ("/usr/bin/guix-daemon", "--discover=no"), {"A": "1", "B": "2=3"}
    )
    assert found.substitutes


def test_an_environment_that_is_not_for_us(tmp_path: Path) -> None:
    """Where it can't be read there is none, which isn't the same as an empty one."""
    process(tmp_path, 5, "guix-daemon", "--no-substitutes")
    (found,) = daemonprocess.find(tmp_path)
    assert found.environ is None
    assert not found.substitutes


def test_a_daemon_of_a_container_is_another_machines(tmp_path: Path) -> None:
    """Its root directory is another one."""
    process(tmp_path, 5, "guix-daemon")
    process(tmp_path, 6, "guix-daemon")
    for name, root in (("self", "/"), ("5", "/tmp"), ("6", "/")):  # noqa: S108
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "root").symlink_to(root)
    assert [each.pid for each in daemonprocess.find(tmp_path)] == [6]


@pytest.mark.parametrize(
    ("words", "urls"),
    [
        ((), daemonprocess.DEFAULT_URLS),
        (("--substitute-urls=http://a http://b",), ("http://a", "http://b")),
        (("--substitute-urls", "http://c", "--debug"), ("http://c",)),
        (("--substitute-urls=http://a", "--substitute-urls="), ()),
        (("--substitute-urls",), daemonprocess.DEFAULT_URLS),
    ],
)
def test_the_servers_that_it_asks(
    tmp_path: Path, words: tuple[str, ...], urls: tuple[str, ...]
) -> None:
    """The last option counts; without one it asks Guix's own servers."""
    process(tmp_path, 5, "guix-daemon", *words)
    assert daemonprocess.substitute_urls(tmp_path) == urls


def test_without_a_daemon_there_are_defaults(tmp_path: Path) -> None:
    """What one would ask."""
    assert daemonprocess.find(tmp_path / "none") == []
    assert daemonprocess.substitute_urls(tmp_path) == daemonprocess.DEFAULT_URLS
