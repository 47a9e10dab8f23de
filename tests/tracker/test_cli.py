# SPDX-License-Identifier: GPL-3.0-or-later
"""The command `tracker`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from narswarm.cli import run
from narswarm.settings import load
from tracker import server
from tracker.cli import tracker
from tracker.settings import Settings


@pytest.fixture(name="served")
def served_fixture(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Settings]:
    """What would have been served."""
    served: list[Settings] = []

    def serve(settings: Settings, reload: Callable[[], Settings]) -> None:
        assert reload() == settings
        served.append(settings)

    monkeypatch.setattr(server, "serve", serve)
    config = tmp_path / "empty.toml"
    config.write_text("")
    monkeypatch.setenv("NARSWARM_CONFIG", str(config))
    return served


def test_serve_without_flags(served: list[Settings]) -> None:
    """Without flags, settings are the defaults."""
    result = CliRunner().invoke(tracker, ["serve"], catch_exceptions=False)
    assert result.exit_code == 0
    assert served == [Settings()]


def test_flags(served: list[Settings]) -> None:
    """Each flag sets its setting."""
    flags = (
        "--listen 127.0.0.1:0 --listen [::1]:1 --no-udp --data /d --open --acl /a"
        " --publisher K --publisher L --url http://u"
    )
    result = CliRunner().invoke(tracker, ["serve", *flags.split()], catch_exceptions=False)
    assert result.exit_code == 0
    assert served == [
        Settings(
            listen=("127.0.0.1:0", "[::1]:1"),
            udp=False,
            data=Path("/d"),
            open=True,
            acl=Path("/a"),
            publishers=("K", "L"),
            url="http://u",
        )
    ]


def test_flags_go_before_the_file(served: list[Settings], tmp_path: Path) -> None:
    """A named file is read, and a flag overrules it."""
    config = tmp_path / "tracker.toml"
    config.write_text('[tracker]\nopen = true\ninterval = "5 min"\n')
    arguments = ["serve", "--config", str(config), "--closed"]
    result = CliRunner().invoke(tracker, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert served == [Settings(open=False, interval=300)]


def test_errors_are_one_line(
    served: list[Settings], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A setting that makes no sense ends the program with its exit code."""
    config = tmp_path / "tracker.toml"
    config.write_text("[tracker]\nthreads = 0\n")
    with pytest.raises(SystemExit) as caught:
        run(tracker, ["serve", "--config", str(config)], program="tracker")
    assert caught.value.code == 3
    assert capsys.readouterr().err == f"tracker: {config}: tracker.threads: is less than 1\n"
    assert served == []


def _check_config(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[str, str]:
    """Run check-config as a program; return what it wrote to both outputs."""
    with pytest.raises(SystemExit) as caught:
        run(tracker, ["check-config", *arguments], program="tracker")
    assert caught.value.code == 0
    return capsys.readouterr()


def test_check_config(
    served: list[Settings], tmp_path: Path, acl_text: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    """It shows what the same flags would have served with, as TOML that says the same again."""
    acl = tmp_path / "acl"
    acl.write_bytes(acl_text)
    arguments = ["--data", str(tmp_path), "--acl", str(acl), "--no-udp"]
    written, said = _check_config(capsys, *arguments)
    assert said == ""
    assert "# url is not set\n" in written
    config = tmp_path / "shown.toml"
    config.write_text(written)
    assert load(Settings, "tracker", file=config) == Settings(data=tmp_path, acl=acl, udp=False)
    shown = json.loads(_check_config(capsys, *arguments, "--json")[0])
    assert (shown["settings"]["udp"], shown["settings"]["url"], shown["remarks"]) == (
        False,
        None,
        [],
    )
    assert served == []


def test_check_config_remarks(
    served: list[Settings], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What may not be meant is said on standard error, and is no error."""
    missing = tmp_path / "missing"
    _, said = _check_config(capsys, "--data", str(tmp_path), "--acl", str(missing))
    assert said == f"tracker: {missing}: no such file or directory; nothing can be published\n"
    assert served == []


def test_check_config_errors(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """What serve would fail on ends it with the same exit code."""
    config = tmp_path / "tracker.toml"
    config.write_text("[tracker]\nmetrics_from = ['x']\n")
    with pytest.raises(SystemExit) as caught:
        run(tracker, ["check-config", "--config", str(config)], program="tracker")
    assert caught.value.code == 3
    assert capsys.readouterr().err == (
        "tracker: metrics_from: 'x' does not appear to be an IPv4 or IPv6 network\n"
    )
