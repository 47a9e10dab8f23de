# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of `mkmeta.cli`."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mkmeta.cli import group
from narswarm import cli, storepath
from narswarm.errors import ExitCode
from tests.fixtures.golden import reference

NAR = reference.nar(reference.noise(300_000))


class Run:
    """Runs the command in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self.out = self.err = ""

    def __call__(self, *arguments: object) -> int:
        """Run it; keep what it wrote, return how it exited."""
        with pytest.raises(SystemExit) as caught:
            cli.run(group, [str(argument) for argument in arguments], program="mkmeta")
        self.out, self.err = self._capsys.readouterr()
        assert isinstance(caught.value.code, int)
        return caught.value.code


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Give the command."""
    return Run(capsys)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a directory with one NAR."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.nar").write_bytes(NAR)
    return tmp_path


@pytest.fixture
def facts(here: Path, run: Run) -> dict[str, Any]:
    """Give what `create --json` says of the NAR after it made the files."""
    nar = here / "x.nar"
    assert run("create", "--json", "--tracker", "http://t/announce", nar) == ExitCode.OK
    found: dict[str, Any] = json.loads(run.out)
    return found


def test_create_json(here: Path, facts: dict[str, Any]) -> None:
    """JSON has the promised facts, and they are those of the reference."""
    name = facts["payload"]
    torrent = reference.torrent(name, reference.payload(NAR))
    v1, v2 = torrent.infohashes
    assert facts == {
        "nar_hash": name.removesuffix(".nar.zst"),
        "nar_size": len(NAR),
        "payload": name,
        "payload_length": (here / name).stat().st_size,
        "piece_length": 65536,
        "infohash_v1": v1,
        "infohash_v2": v2,
        "magnet": f"magnet:?xt=urn:btih:{v1}&xt=urn:btmh:1220{v2}&dn={name}"
        f"&xl={facts['payload_length']}&tr=http%3A%2F%2Ft%2Fannounce",
        "torrent": f"{name}.torrent",
    }


def test_create_for_people(run: Run, facts: dict[str, Any]) -> None:
    """People get the same facts as a block."""
    assert run("create", "--force", "x.nar") == ExitCode.OK
    assert run.err == ""
    assert re.sub("  +", " ", run.out).splitlines()[:4] == [
        "x.nar",
        f" nar hash {facts['nar_hash']}",
        " nar size 300112 (293.1 KiB)",
        f" payload {facts['payload']}",
    ]
    columns = [re.match(r"  [a-z0-9 ]+?  +", line) for line in run.out.splitlines()[1:]]
    assert {column and column.end() for column in columns} == {18}


def test_several_inputs(here: Path, run: Run) -> None:
    """Several inputs give a line of JSON each, in their order."""
    (here / "file").write_bytes(b"text")
    assert run("create", "--json", "--dry-run", "x.nar", "file", "x.nar") == ExitCode.OK
    lines = [json.loads(line) for line in run.out.splitlines()]
    assert [line["nar_size"] for line in lines] == [len(NAR), 120, len(NAR)]
    assert [(line["payload"], line["torrent"]) for line in lines] == [(None, None)] * 3
    assert sorted(path.name for path in here.iterdir()) == ["file", "x.nar"]


def test_output_directory(here: Path, run: Run) -> None:
    """Files go where they are wanted, without the payload if that isn't."""
    (here / "out").mkdir()
    assert run("create", "--json", "--torrent-only", "-o", "out", "x.nar") == ExitCode.OK
    facts = json.loads(run.out)
    assert facts["payload"] is None
    assert [f"out/{path.name}" for path in (here / "out").iterdir()] == [facts["torrent"]]


@pytest.mark.parametrize(
    ("arguments", "comment"), [([], True), (["--comment", "mine"], "mine"), (["--comment", ""], "")]
)
def test_comment(
    here: Path,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    comment: str | bool,
) -> None:
    """The torrent of a store item says its path for people, unless they say something else."""
    monkeypatch.setattr(storepath, "STORE", str(here))
    item = here / "0abp2vlbxjwxv4chlwbx9i2qin70s120-item"
    item.write_bytes(b"text")
    assert run("create", "--json", *arguments, item) == ExitCode.OK
    assert run("show", "--json", json.loads(run.out)["torrent"]) == ExitCode.OK
    assert json.loads(run.out)["comment"] == (str(item) if comment is True else comment)


def test_show(run: Run, facts: dict[str, Any]) -> None:
    """A torrent says everything that was said when it was made."""
    assert run("show", "--json", facts["torrent"]) == ExitCode.OK
    shown = json.loads(run.out)
    assert shown == {
        **{key: facts[key] for key in shown if key in facts},
        "kind": "nar.zst",
        "name": facts["payload"],
        "pieces": 5,
        "trackers": ["http://t/announce"],
        "web_seeds": [],
        "comment": None,
    }
    assert run("show", facts["torrent"]) == ExitCode.OK
    assert re.search(r"^  pieces +5$", run.out, re.MULTILINE)
    assert "comment" not in run.out


def test_magnet(run: Run, facts: dict[str, Any]) -> None:
    """The magnet link is the same from the torrent and from the NAR."""
    assert run("magnet", facts["torrent"]) == ExitCode.OK
    assert run.out == facts["magnet"] + "\n"
    assert run("magnet", "--tracker", "http://t/announce", "x.nar") == ExitCode.OK
    assert run.out == facts["magnet"] + "\n"


@pytest.mark.parametrize("what", ["payload", "x.nar"])
def test_verify(run: Run, facts: dict[str, Any], what: str) -> None:
    """What fits its torrent is said to."""
    assert run("verify", "--json", facts.get(what, what), facts["torrent"]) == ExitCode.OK
    assert json.loads(run.out) == {
        "ok": True,
        "nar_hash": facts["nar_hash"],
        "nar_hash_found": facts["nar_hash"],
        "payload_length": facts["payload_length"],
        "payload_length_found": facts["payload_length"],
        "piece_length": 65536,
        "pieces": 5,
        "bad_pieces": [],
    }


def test_verify_damage(here: Path, run: Run, facts: dict[str, Any]) -> None:
    """Bad pieces are named, with the bytes that they are for people."""
    payload = here / facts["payload"]
    data = bytearray(payload.read_bytes())
    data[70_000] ^= 1
    payload.write_bytes(data[:-5])
    assert run("verify", "--json", payload, facts["torrent"]) == ExitCode.MISMATCH
    assert run.err == f"mkmeta: {payload}: 2 of 5 pieces differ from the torrent\n"
    assert json.loads(run.out)["bad_pieces"] == [1, 4]
    assert run("verify", payload, facts["torrent"]) == ExitCode.MISMATCH
    assert re.sub("  +", " ", run.out).splitlines()[-2:] == [
        " bad pieces 1 (bytes 65536 to 131071)",
        f" 4 (bytes 262144 to {facts['payload_length'] - 1})",
    ]


def test_verify_much_damage(here: Path, run: Run) -> None:
    """People get the first bad pieces and the number of the others."""
    (here / "big.nar").write_bytes(reference.nar(reference.noise(2_000_000)))
    assert run("create", "--json", "big.nar") == ExitCode.OK
    facts = json.loads(run.out)
    os.truncate(facts["payload"], 0)
    assert run("verify", facts["payload"], facts["torrent"]) == ExitCode.MISMATCH
    lines = run.out.splitlines()
    assert len([line for line in lines if "(bytes " in line]) == 20
    assert lines[-1].strip() == "and 11 more"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["create", "missing"], ExitCode.NOT_FOUND, "missing: No such file or directory"),
        (["create", "bad.nar"], ExitCode.INVALID, "bad.nar: is cut off after 4 bytes"),
        (["create", "-o", "no", "x.nar"], ExitCode.NOT_FOUND, "no: No such file or directory"),
        (["show", "x.nar"], ExitCode.INVALID, "x.nar: bencoding has no canonical value at byte 0"),
        (["show", "."], ExitCode.NOT_FOUND, ".: Is a directory"),
        (["show", "missing"], ExitCode.NOT_FOUND, "missing: No such file or directory"),
        (
            ["verify", "x.nar", "missing"],
            ExitCode.NOT_FOUND,
            "missing: No such file or directory",
        ),
        (["magnet", "x.torrent"], ExitCode.NOT_FOUND, "x.torrent: No such file or directory"),
    ],
)
def test_errors(here: Path, run: Run, arguments: list[str], code: ExitCode, message: str) -> None:
    """Errors are one line and the documented exit code."""
    (here / "bad.nar").write_bytes(NAR[:4])
    assert run(*arguments) == code
    assert run.err == f"mkmeta: {message}\n"
    assert run.out == ""


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--tracker", "t.example:6969", "'t.example:6969' is not an announce URL"),
        ("--tracker", "http://t/\udcff", r"'http://t/\\udcff' is not an announce URL"),
        ("--tracker", "http://t/ announce", "'http://t/ announce' is not an announce URL"),
        ("--comment", "\udcff", "is not UTF-8"),
    ],
)
def test_what_no_torrent_may_say(
    here: Path, run: Run, option: str, value: str, message: str
) -> None:
    """Announce URLs that nobody could use, and bytes that are no text, are refused at once."""
    assert run("create", option, value, "x.nar") == ExitCode.USAGE
    assert run.err.splitlines()[-1] == f"Error: Invalid value for '{option}': {message}"
    assert [path.name for path in here.iterdir()] == ["x.nar"]


def test_no_overwriting(here: Path, run: Run, facts: dict[str, Any]) -> None:
    """What exists is replaced with --force only."""
    (here / facts["torrent"]).write_bytes(b"precious")
    (here / facts["payload"]).unlink()
    assert run("create", "x.nar") == ExitCode.EXISTS
    assert run.err == f"mkmeta: {facts['torrent']}: exists already\n"
    assert (here / facts["torrent"]).read_bytes() == b"precious"
    assert not (here / facts["payload"]).exists()
    assert run("create", "--force", "x.nar") == ExitCode.OK
    assert run("verify", facts["payload"], facts["torrent"]) == ExitCode.OK


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGINT, ExitCode.INTERRUPTED),
        (signal.SIGTERM, ExitCode.INTERRUPTED),
        (signal.SIGHUP, ExitCode.INTERRUPTED),
        (signal.SIGKILL, -signal.SIGKILL),
    ],
)
def test_signals(tmp_path: Path, number: signal.Signals, code: int) -> None:
    """A process that is told to end while it writes, or is killed, leaves nothing behind."""
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-m", "mkmeta", "create", "-o", tmp_path, "-"],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(root)},
    ) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        nar = reference.nar(reference.noise(30_000_000))
        process.stdin.write(nar[:-100])
        process.stdin.flush()
        # All but the last 64 KiB of a pipe have been read, so the payload has been begun.
        links = [entry.readlink() for entry in Path(f"/proc/{process.pid}/fd").iterdir()]
        assert any(link.is_relative_to(tmp_path) for link in links)
        process.send_signal(number)
        with contextlib.suppress(BrokenPipeError):
            assert process.wait(120) == code
        assert process.stderr.read() == b""
        process.stdin.close()
    assert not list(tmp_path.iterdir())


def test_help(run: Run) -> None:
    """Every command explains itself."""
    for command in ([], ["create"], ["show"], ["verify"], ["magnet"]):
        assert run(*command, "--help") == ExitCode.OK
        assert "Usage: mkmeta" in run.out
