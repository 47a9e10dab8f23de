# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of substituter.doctor, with a daemon that a /proc of files shows."""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from collections.abc import Callable
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from narswarm import base32
from narswarm.httpclient import HttpClient
from substituter import doctor, launcher
from substituter.doctor import EXTENSION, Finding, Verdict
from substituter.settings import SubstituterSettings
from tests.substituter import daemon
from tests.substituter.conftest import Site
from tests.substituter.test_commands import Run
from tests.substituter.test_daemonprocess import process

INDEX = f"/v1/nar/{base32.encode(bytes(32))}"


class Machine:
    """A machine on which all is well, until a test breaks something."""

    def __init__(self, directory: Path, settings: SubstituterSettings, site: Site) -> None:
        # The site dates its answers by the real clock.
        self.now = float(int(time.time()))
        self.proc = directory / "proc"
        self.site = site
        self.settings = settings
        self.extensions = directory / "guix" / "extensions"
        self.extensions.mkdir(parents=True)
        (self.extensions / "substitute.scm").write_bytes(EXTENSION.read_bytes())
        self.program = daemon.script(directory / "substituter", "exit 0")
        self.config = directory / "narswarm.toml"
        self.argv = ["guix-daemon", f"--substitute-urls={site.url}"]
        self.lines = [f'trackers = ["{site.url}/announce"]']
        self.environ: dict[str, str] | None = {
            "GUIX_EXTENSIONS_PATH": f"/nowhere:{self.extensions}",
            "NARSWARM_SUBSTITUTER": str(self.program),
            "NARSWARM_CONFIG": str(self.config),
        }
        site.bodies["/nix-cache-info"] = b"StoreDir: /gnu/store\nPriority: 100\n"

    def examine(self) -> dict[str, Finding]:
        """What the doctor finds, by check."""
        daemon.config(self.settings, self.config, *self.lines)
        if self.argv:
            pairs = self.environ
            text = None if pairs is None else "".join(f"{k}={v}\0" for k, v in pairs.items())
            process(self.proc, 5, *self.argv, environ=text, uid=os.geteuid())
        environ = {"NARSWARM_CONFIG": str(self.config)}
        with HttpClient(5.0) as client:
            found = list(doctor.examine(client, environ, proc=self.proc, now=lambda: self.now))
        self.conclusion = doctor.conclusion(found)
        return {each.check.partition(" ")[0]: each for each in found}


@pytest.fixture
def machine(tmp_path: Path, settings: SubstituterSettings, site: Site) -> Machine:
    """A machine."""
    settings.state.mkdir()
    return Machine(tmp_path / "m", settings, site)


def test_all_is_well(machine: Machine) -> None:
    """Every check says so, and the conclusion does."""
    found = machine.examine()
    codec = found.pop("codec")  # this machine's own
    assert codec.verdict is not Verdict.FAILED
    assert {each.verdict for each in found.values()} == {Verdict.OK}, found
    assert list(found) == [
        "extension",
        "program",
        "libgcrypt",
        "libtorrent",
        "settings",
        "ACL",
        "state",
        "seeder",
        "server",
        "tracker",
    ]


def break_nothing_told(machine: Machine) -> None:
    """The daemon was started without the environment."""
    machine.environ = {"NARSWARM_CONFIG": str(machine.config)}


def break_program(machine: Machine) -> None:
    """The program was removed."""
    machine.program.unlink()


def break_start(machine: Machine) -> None:
    """The program needs what isn't there."""
    machine.program.write_text("#!/bin/sh\necho 'No module named zstandard' >&2; exit 1\n")


def break_substitutes(machine: Machine) -> None:
    """The daemon doesn't substitute."""
    machine.argv.append("--no-substitutes")


def break_settings(machine: Machine) -> None:
    """A setting is misspelt."""
    machine.lines.append("trakers = []")


def break_acl(machine: Machine) -> None:
    """Nobody was authorised."""
    machine.settings.acl.write_bytes(b"(acl)")


def break_acl_syntax(machine: Machine) -> None:
    """Somebody edited it."""
    machine.settings.acl.write_bytes(b"(acl")


def break_trackers(machine: Machine) -> None:
    """None is set."""
    machine.lines.clear()


def break_daemon(machine: Machine) -> None:
    """None runs."""
    machine.argv.clear()


@pytest.mark.parametrize(
    ("damage", "check", "message"),
    [
        (break_nothing_told, "guix-daemon", "it has not been told of the substituter: "),
        (break_program, "program", "{program} can't be run by guix-daemon: "),
        (break_substitutes, "guix-daemon", "it runs with --no-substitutes"),
        (break_settings, "settings", "{config}: "),
        (break_acl, "ACL", "{acl} has no key: nothing is believed"),
        (break_acl_syntax, "ACL", "{acl}: "),
        (break_trackers, "trackers", "no tracker is set, so no torrents are found"),
        (break_daemon, "guix-daemon", "none runs"),
    ],
)
def test_what_keeps_it_from_being_used(
    machine: Machine, damage: Callable[[Machine], None], check: str, message: str
) -> None:
    """It is the one thing that failed, with a hint, and the conclusion names it."""
    damage(machine)
    found = machine.examine()
    failed = [each for each in found.values() if each.verdict is Verdict.FAILED]
    expected = message.format(
        program=machine.program, config=machine.config, acl=machine.settings.acl
    )
    assert [each.check.partition(" ")[0] for each in failed] == [check]
    assert failed[0].message.startswith(expected)
    assert failed[0].hint
    assert machine.conclusion == (
        f"The next `guix build` will not get anything from a swarm: {failed[0].message}."
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, who can be another user")
def test_a_program_that_does_not_start(machine: Machine) -> None:
    """It is run as the daemon's user, and its last words are shown."""
    break_start(machine)
    found = machine.examine()["program"]
    assert found.verdict is Verdict.FAILED
    assert found.message.endswith(": No module named zstandard")


def test_an_environment_that_is_not_ours_to_see(machine: Machine) -> None:
    """Then nobody can say, and root should ask."""
    machine.environ = None
    found = machine.examine()["guix-daemon"]
    assert found.verdict is Verdict.WARNING
    assert "as root" in found.hint


def test_a_changed_extension_and_the_GUIX_variable(machine: Machine) -> None:  # noqa: N802
    """A changed file is no failure; GUIX alone is as good."""
    (machine.extensions / "substitute.scm").write_text("; mine")
    assert machine.examine()["extension"].verdict is Verdict.WARNING
    assert "see the warnings" in machine.conclusion
    machine.environ = {"GUIX": str(machine.program), "NARSWARM_CONFIG": str(machine.config)}
    (machine.proc / "5" / "environ").unlink()
    (machine.proc / "5" / "cmdline").unlink()
    (machine.proc / "5" / "status").unlink()
    (machine.proc / "5").rmdir()
    found = machine.examine()
    assert found["guix-daemon"].message.startswith(f"runs {machine.program} by GUIX")
    assert found["program"].verdict is Verdict.OK


def test_the_launcher(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is looked at beside the extension and the program, which are used with it."""
    path = daemon.script(tmp_path / "guix", "exit 0")
    monkeypatch.setattr(launcher, "LAUNCHER", path.relative_to("/"))
    assert machine.environ is not None
    machine.environ["GUIX"] = str(path)
    found = machine.examine()
    assert found["guix-daemon"].message == f"runs {path} by GUIX, as user {os.geteuid()}"
    assert {found[name].verdict for name in ("extension", "program")} == {Verdict.OK}
    path.chmod(0o644)
    shutil.rmtree(machine.proc)
    found = machine.examine()
    assert found["guix-daemon"].verdict is Verdict.FAILED
    reason = f"user {os.geteuid()} may not read it"
    assert found["guix-daemon"].message == (f"can't run {path}, which GUIX names: {path}: {reason}")


def test_servers_and_trackers_that_are_none(machine: Machine) -> None:
    """A server without a cache's description, and a tracker without an index."""
    machine.site.bodies["/nix-cache-info"] = b"<html>"

    def forbidden(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(403)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    machine.site.bodies[INDEX] = forbidden
    found = machine.examine()
    assert found["server"].message == "answers 200, and not as a substitute server"
    assert found["servers"].message == "no substitute server answers"
    assert found["tracker"].message == "its index answers 403"
    assert found["trackers"].message == "no tracker answers, so no torrents are found"


@pytest.mark.parametrize(
    ("skew", "warns"), [(119, False), (-119, False), (121, True), (-121, True)]
)
def test_clocks_that_differ(machine: Machine, skew: int, warns: bool) -> None:
    """Two minutes are too many."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response_only(404)
        handler.send_header("Date", formatdate(machine.now + skew, usegmt=True))
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    machine.site.bodies[INDEX] = answer
    found = machine.examine()["tracker"]
    assert (found.verdict is Verdict.WARNING) is warns
    if warns:
        where = "behind" if skew > 0 else "ahead of"
        assert found.message == f"this clock is 121 s {where} the tracker's"


def test_a_daemon_that_asks_a_gateway(machine: Machine) -> None:
    """It needs no program, no settings and no trackers of its own."""

    def be_a_gateway(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response_only(200)
        handler.send_header("Server", "narswarm-gateway")
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    break_nothing_told(machine)
    machine.site.bodies["/nix-cache-info"] = be_a_gateway
    found = machine.examine()
    message = f"asks the gateway {machine.site.url} by HTTP"
    assert found == {"guix-daemon": Finding("guix-daemon 5", Verdict.OK, message)}
    assert machine.conclusion == "The next `guix build` asks the swarm."


def test_a_seeder_makes_up_for_trackers(machine: Machine, tmp_path: Path) -> None:
    """Its own are asked; one that doesn't listen any more is a warning."""
    path = tmp_path / "seeder.sock"
    config = machine.config
    machine.lines = []
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        environ = dict(machine.environ or {}) | {"NARSWARM_SUBSTITUTER_SEEDER": str(path)}
        machine.environ = environ
        found = machine.examine()
    assert config.exists()
    assert found["seeder"] == Finding("seeder", Verdict.OK, f"{path} fetches for the substituter")
    assert found["trackers"].message == "no tracker is set; the seeder's are asked"
    assert found["trackers"].verdict is Verdict.WARNING


def test_the_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """JSON has the findings and the conclusion; broken settings are exit code 1."""
    config = tmp_path / "config"
    config.write_text("[substituter]\nquorum = 0\n")
    code, out, _ = Run(capsys)("doctor", "--json", "--config", config)
    shown = json.loads(out)
    assert code == 1
    assert shown["findings"][-1]["check"] == "settings"
    assert shown["conclusion"].startswith("The next `guix build` will not get anything")
    code, out, _ = Run(capsys)("doctor", "--config", config)
    assert code == 1
    assert out.splitlines()[-1] == shown["conclusion"]
