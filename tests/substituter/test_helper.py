# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of substituter.helper as processes, run the way guix-daemon runs them."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from narswarm import base32, nar
from substituter.settings import SubstituterSettings
from tests.substituter.conftest import Item, Site
from tests.substituter.daemon import PROGRAM, Helper, config, script

Make = Callable[..., Item]
Environ = Callable[..., dict[str, str]]

SLOW = {"libtorrent", "flask", "click", "cryptography", "ssl", "email"}
"""Modules that a query has no use for, and that would cost each build some time."""


@pytest.fixture
def environ(settings: SubstituterSettings, tmp_path: Path) -> Environ:
    """Makes the environment that the daemon gives: its own, which may be nearly empty."""

    def make(*urls: str, trace: int = 1, lines: tuple[str, ...] = ()) -> dict[str, str]:
        file = config(settings, tmp_path / "narswarm.toml", *lines)
        return {
            "PATH": "/nonexistent",
            "NARSWARM_CONFIG": str(file),
            "_NIX_OPTIONS": f"substitute-urls={' '.join(urls)}\n"
            f"print-extended-build-trace={trace}\n",
        }

    return make


def success(item: Item) -> str:
    """The status for an item that is in place."""
    return f"success {base32.format_hash(item.nar_hash)} {len(item.nar)}\n"


def echo(path: Path, more: str = "") -> Path:
    """A guix that answers with its arguments and the line that it gets."""
    return script(path, f'{more}read line; echo "$*: $line" >&4')


def test_queries_are_answered_until_the_input_ends(
    environ: Environ, make_item: Make, site: Site
) -> None:
    """A session of `have` and `info`, and an end without a word."""
    a, b = make_item("a"), make_item("b")
    site.offer(a, "none")
    with Helper(["substitute", "--query"], environ(site.url)) as helper:
        helper.send(f"have {b.path} {a.path} ")
        assert helper.receive() == f"{a.path}\n\n"
        helper.send(f"info {a.path} ", f"info {b.path} ")
        size = len(a.nar)
        assert helper.receive() == f"{a.path}\n\n0\n{size}\n{size}\n\n"
        assert helper.receive() == "\n"
        assert helper.end() == 0
        assert helper.shown == ""


def test_each_status_is_one_write(
    environ: Environ, make_item: Make, site: Site, tmp_path: Path
) -> None:
    """The daemon takes the first piece that it reads for the whole status."""
    items = [make_item(name) for name in "abc"]
    for item in items[:2]:
        site.offer(item, "zstd")
    with Helper(["substitute", "--substitute"], environ(site.url)) as helper:
        for item in items:
            helper.send(f"substitute {item.path} {tmp_path / item.path[44:]}")
        answers = [helper.receive() for _ in items]
        assert answers == [success(items[0]), success(items[1]), "not-found\n"]
        assert helper.end() == 0
        assert helper.receive() == ""
    for item in items[:2]:
        assert b"".join(nar.dump(tmp_path / item.path[44:])) == item.nar


def test_no_line_can_be_forged(
    environ: Environ, make_item: Make, site: Site, tmp_path: Path
) -> None:
    """What a server says is shown without line breaks and escape sequences."""
    item = make_item("a")
    site.offer(item, "none")
    path = f"/nar/none/{item.path[11:]}"

    def refuse(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.1 \x1b[31mevil\r\n\r\n")
        handler.close_connection = True

    site.bodies[path] = refuse
    with Helper(["substitute", "--substitute"], environ(site.url)) as helper:
        helper.send(f"substitute {item.path} {tmp_path / 'out'}")
        assert helper.receive() == "not-found\n"
        assert helper.end() == 0
    assert f"substituter: {site.url}{path}: " in helper.shown
    assert "\x1b" not in helper.shown


@pytest.mark.parametrize("mode", ["--query", "--substitute"])
def test_broken_settings_lead_to_guix(environ: Environ, tmp_path: Path, mode: str) -> None:
    """The real guix gets the same arguments and descriptors, and the user learns why."""
    (tmp_path / "bin").mkdir()
    echo(tmp_path / "bin" / "guix")
    env = environ() | {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin"}
    Path(env["NARSWARM_CONFIG"]).write_text("[substituter]\npatience = 'x'\n")
    with Helper(["substitute", mode], env) as helper:
        helper.send("the line")
        assert helper.receive() == f"substitute {mode}: the line\n"
        assert helper.end() == 0
    assert helper.shown == (
        f"substituter: {env['NARSWARM_CONFIG']}: substituter.patience: expected a time such as 30, "
        "'5 min' or '12 h', got 'x'; guix's own substituter is used\n"
    )


def test_a_missing_acl_leads_to_the_guix_of_the_settings(
    environ: Environ, settings: SubstituterSettings, tmp_path: Path
) -> None:
    """It is run without what would lead back here, and with everything else."""
    settings.acl.unlink()
    env = environ() | {"GUIX": "/x", "GUIX_EXTENSIONS_PATH": "/y", "KEPT": "z"}
    guix = echo(tmp_path / "real", 'echo "$GUIX/$GUIX_EXTENSIONS_PATH/$KEPT"; ')
    text = Path(env["NARSWARM_CONFIG"]).read_text().replace(f'"{settings.guix}"', f'"{guix}"')
    Path(env["NARSWARM_CONFIG"]).write_text(text)
    with Helper(["substitute", "--query"], env) as helper:
        helper.send("info x ")
        assert helper.receive() == "substitute --query: info x \n".replace(" \n", "\n")
        assert helper.end() == 0
    assert helper.shown == (
        f"substituter: {settings.acl}: no such file or directory; guix's own substituter is used\n"
        "//z\n"
    )


@pytest.mark.parametrize(
    ("module", "mode"),
    [
        ("narswarm.acl", "--query"),
        ("zstandard", "--substitute"),
        ("narswarm.restore", "--substitute"),
    ],
)
def test_a_damaged_installation_leads_to_guix(
    environ: Environ, settings: SubstituterSettings, tmp_path: Path, module: str, mode: str
) -> None:
    """Also when a module can't be imported."""
    guix = echo(tmp_path / "real")
    env = environ()
    text = Path(env["NARSWARM_CONFIG"]).read_text().replace(f'"{settings.guix}"', f'"{guix}"')
    Path(env["NARSWARM_CONFIG"]).write_text(text)
    program = PROGRAM.replace("import sys;", f"import sys; sys.modules[{module!r}] = None;", 1)
    with Helper(["substitute", mode], env, program=program) as helper:
        helper.send("a line")
        assert helper.receive() == f"substitute {mode}: a line\n"
        assert helper.end() == 0
    assert helper.shown.startswith("substituter: ModuleNotFoundError(")
    assert helper.shown.endswith("; guix's own substituter is used\n")
    assert helper.shown.count("\n") == 1


def test_without_any_guix_the_user_learns_both(
    environ: Environ, settings: SubstituterSettings
) -> None:
    """Nothing can be done then; the exit code is that of what wasn't found."""
    settings.acl.unlink()
    env = environ()
    os.truncate(env["NARSWARM_CONFIG"], 0)
    env |= {"NARSWARM_SUBSTITUTER_ACL": str(settings.acl)}
    program = PROGRAM.replace(
        "from substituter.cli",
        "from substituter import realguix; realguix._USUAL = (); from substituter.cli",
    )
    with Helper(["substitute", "--query"], env, program=program) as helper:
        assert helper.end() == 5
    assert helper.shown == (
        f"substituter: {settings.acl}: no such file or directory; guix's own substituter is used\n"
        "substituter: guix: the real one is neither configured nor in a usual place\n"
    )


@pytest.mark.parametrize("mode", ["--query", "--substitute"])
def test_without_its_descriptor_nothing_is_served(environ: Environ, mode: str) -> None:
    """A file opened later must not get the answers; people who try the command learn why."""
    with Helper(["substitute", mode], environ(), reply=False) as helper:
        assert helper.end() == 1
    assert helper.shown == (
        f"substituter: {mode}: descriptor 4 is not open; guix-daemon runs this\n"
    )


@pytest.mark.parametrize(("mode", "line"), [("--query", "have x "), ("--substitute", "x y")])
def test_a_daemon_that_is_gone_ends_the_helper(environ: Environ, mode: str, line: str) -> None:
    """When nobody reads the reply it ends quietly."""
    with Helper(["substitute", mode], environ()) as helper:
        helper.hang_up()
        helper.send(line)
        assert helper.wait() == 0
    assert helper.shown in ("", "substituter: x: unknown command\n")


def test_a_killed_helper_leaves_the_destination_alone_behind(
    environ: Environ, make_item: Make, site: Site, settings: SubstituterSettings, tmp_path: Path
) -> None:
    """SIGKILL in the middle of an item: the next helper replaces what there is."""
    item = make_item("a", os.urandom(1 << 20))
    site.offer(item, "none")
    path = f"/nar/none/{item.path[11:]}"
    whole = site.bodies[path]
    assert isinstance(whole, bytes)
    half, over = whole[: len(whole) // 2], threading.Event()

    def send_half(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(item.nar)))
        handler.end_headers()
        handler.wfile.write(half)
        over.wait(120)
        handler.close_connection = True

    site.bodies[path] = send_half
    store = tmp_path / "store"
    store.mkdir()
    line = f"substitute {item.path} {store / 'out'}"
    try:
        with Helper(["substitute", "--substitute"], environ(site.url)) as helper:
            helper.send(line)
            wait_for(store / "out" / "file", len(half) - 1000)
            helper.kill()
    finally:
        over.set()
    assert [entry.name for entry in store.iterdir()] == ["out"]
    hidden = {file.name for file in settings.state.rglob("*") if file.name.startswith(".")}
    assert hidden <= {".pruned"}
    site.bodies[path] = whole
    with Helper(["substitute", "--substitute"], environ(site.url)) as helper:
        helper.send(line)
        assert helper.receive() == success(item)
        assert helper.end() == 0
    assert b"".join(nar.dump(store / "out")) == item.nar


def wait_for(file: Path, size: int) -> None:
    """Wait until a file has grown so large."""
    import time

    deadline = time.monotonic() + 120
    while not file.exists() or file.stat().st_size < size:
        assert time.monotonic() < deadline, "the item never arrived"


def imported(trace: str) -> set[str]:
    """The top-level modules of what `-X importtime` has written."""
    names = (line.rpartition("|")[2].strip() for line in trace.splitlines() if "|" in line)
    return {name.partition(".")[0] for name in names}


def test_a_query_starts_without_what_it_does_not_need(
    environ: Environ, make_item: Make, site: Site
) -> None:
    """Each build waits for this process: large modules are left alone, also with a connection."""
    item = make_item("a")
    site.offer(item, "none")
    trace = ["-X", "importtime"]
    for urls, found in (([], ""), ([site.url], f"{item.path}\n")):
        with Helper(["substitute", "--query"], environ(*urls), python=trace) as helper:
            helper.send(f"have {item.path} ")
            assert helper.receive() == f"{found}\n"
            assert helper.end() == 0
        modules = imported(helper.shown)
        assert {"substituter", "narswarm"} <= modules
        assert modules & SLOW == set()


def test_a_query_with_trackers_starts_without_them_too(environ: Environ) -> None:
    """What only publishers need isn't loaded for looking torrents up."""
    lines = ('trackers = ["http://127.0.0.1:9/announce"]',)
    with Helper(
        ["substitute", "--query"], environ(lines=lines), python=["-X", "importtime"]
    ) as helper:
        helper.send("have x ")
        assert helper.receive() == "\n"
        assert helper.end() == 0
    assert imported(helper.shown) & (SLOW - {"cryptography"}) == set()
