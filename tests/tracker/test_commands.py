# SPDX-License-Identifier: GPL-3.0-or-later
"""The operator's commands, as they are typed."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from narswarm import base32
from narswarm.acl import Acl
from narswarm.control import ControlServer
from narswarm.errors import NarswarmError, NotFoundError
from tracker import commands
from tracker.cli import tracker
from tracker.index import Index
from tracker.publication import check

NOW = 1_700_000_000
KEY = base64.b64encode(bytes(32)).decode()
STATS = {
    "pid": 7,
    "uptime_seconds": 3600,
    "open": False,
    "swarms": 1,
    "seeders_ipv4": 2,
    "seeders_ipv6": 3,
    "leechers_ipv4": 4,
    "leechers_ipv6": 5,
    "holders": 13,
    "held": 14,
    "wanted": 15,
    "polls": 16,
    "preparing": 17,
    "index": {
        "nars": 6,
        "torrents": 7,
        "narinfos": 8,
        "blocks": 9,
        "info_hashes": 10,
        "size": 2048,
    },
    "requests": [
        {"protocol": "http", "family": "ipv4", "action": "scrape", "outcome": "ok", "count": 11},
        {"protocol": "udp", "family": "ipv6", "action": "connect", "outcome": "ok", "count": 12},
    ],
}

MakeItem = Callable[..., Any]
Run = Callable[..., Result]


@pytest.fixture(name="run")
def run_fixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command on the data directory."""
    config = tmp_path / "empty.toml"
    config.write_text("")
    monkeypatch.setenv("NARSWARM_CONFIG", str(config))

    def run(*arguments: str) -> Result:
        data = ["--data", str(tmp_path / "data")]
        return CliRunner().invoke(tracker, [*arguments, *data], catch_exceptions=False)

    return run


@pytest.fixture(name="item")
def item_fixture(tmp_path: Path, make_item: MakeItem, acl: Acl) -> Any:
    """An item that is in the index."""
    item = make_item()
    index = Index(tmp_path / "data")
    index.publish(check(item.nar_hash, item.body, acl, ()), bytes(32), NOW)
    index.close()
    return item


@contextmanager
def _running(directory: Path) -> Iterator[list[Mapping[str, Any]]]:
    """A running tracker, as far as commands see it; what it was asked."""
    asked: list[Mapping[str, Any]] = []

    def apply(request: Mapping[str, Any]) -> dict[str, Any]:
        asked.append(request)
        return {}

    def counts(request: Mapping[str, Any]) -> dict[str, Any]:
        asked.append(request)
        return {"counts": [[3, 2, 1] for _ in request["torrents"]]}

    operations = {"apply": apply, "counts": counts, "stats": lambda _: STATS}
    server = ControlServer(directory / "data", operations)
    yield asked
    server.close()


def test_stats(run: Run, item: Any, tmp_path: Path) -> None:
    """Numbers for people, and all of them for programs."""
    assert item
    with _running(tmp_path):
        assert run("stats").output.splitlines() == [
            "tracker     closed, process 7",
            "up          1:00:00",
            "swarms      1",
            "IPv4        2 seeders, 4 leechers",
            "IPv6        3 seeders, 5 leechers",
            "NARs        6 with 7 torrents",
            "infohashes  10",
            "holders     13 with 14 items",
            "wanted      15, and 16 seeders wait for more",
            "preparing   answered 17 times",
            "blocks      9",
            "database    2.0 KiB",
            "requests    11 http ipv4 scrape ok",
            "            12 udp ipv6 connect ok",
        ]
        assert json.loads(run("stats", "--json").output) == STATS
    with pytest.raises(NotFoundError) as caught:
        run("stats")
    data = tmp_path / "data"
    assert str(caught.value) == f"{data}: no tracker runs with this directory"


def _blocks(run: Run) -> list[tuple[str, str, str, bool]]:
    found = json.loads(run("blocks", "--json").output)
    assert all(each["added"] > NOW for each in found)
    return [(each["kind"], each["value"], each["reason"], each["withdrawn"]) for each in found]


@pytest.mark.parametrize("by_path", [True, False])
def test_withdraw(run: Run, item: Any, tmp_path: Path, by_path: bool) -> None:
    """The NAR is gone, its torrents and it are blocked, and a running tracker is told."""
    digest = base32.format_hash(item.nar_hash)
    named = f"/gnu/store/{item.hash_part}-item" if by_path else digest
    with _running(tmp_path) as asked:
        result = run("withdraw", named, "--reason", "not free")
    assert (result.exit_code, result.output) == (0, f"withdrawn: {digest}\n")
    assert asked == [{"op": "apply"}]
    index = Index(tmp_path / "data")
    assert index.nar(item.nar_hash) is None
    index.close()
    assert sorted(_blocks(run)) == sorted(
        [
            ("nar", digest, "not free", True),
            ("infohash", item.meta.infohash_v1.hex(), "not free", True),
            ("infohash", item.meta.infohash_v2[:20].hex(), "not free", True),
        ]
    )
    assert run("unblock", "--nar", digest).output == f"unblocked: nar {digest}\n"
    assert _blocks(run) == []
    with pytest.raises(NotFoundError):
        run("withdraw", digest)


@pytest.mark.parametrize(
    ("kind", "value", "shown"),
    [
        ("infohash", "AB" * 20, "ab" * 20),
        ("infohash", "ab" * 32, "ab" * 20),
        ("publisher", KEY, KEY),
        ("address", "192.0.2.0/24", "192.0.2.0/24"),
        ("nar", "0" * 52, f"sha256:{'0' * 52}"),
    ],
)
def test_block(run: Run, item: Any, tmp_path: Path, kind: str, value: str, shown: str) -> None:
    """Each kind is blocked, listed and unblocked, and a running tracker is told each time."""
    assert item
    with _running(tmp_path) as asked:
        result = run("block", f"--{kind}", value, "--reason", "abuse")
        assert (result.exit_code, result.output) == (0, f"blocked: {kind} {shown}\n")
        assert _blocks(run) == [(kind, shown, "abuse", False)]
        line = run("blocks").output
        assert line.endswith(f"  blocked    {kind:9}  {shown}  abuse\n")
        assert run("unblock", f"--{kind}", shown).output == f"unblocked: {kind} {shown}\n"
    assert asked == [{"op": "apply"}] * 2
    assert _blocks(run) == []
    with pytest.raises(NotFoundError) as caught:
        run("unblock", f"--{kind}", value)
    assert str(caught.value) == f"{shown}: is not blocked"


def test_block_by_store_item(run: Run, item: Any) -> None:
    """A NAR may be named by a store item, without a tracker too."""
    digest = base32.format_hash(item.nar_hash)
    assert run("block", "--nar", f"{item.hash_part}-item").output == f"blocked: nar {digest}\n"
    assert _blocks(run) == [("nar", digest, "", False)]


def test_kind_is_asked_for(run: Run, item: Any) -> None:
    """Nothing is guessed from a value."""
    assert item
    for command in ("block", "unblock"):
        result = run(command, "192.0.2.1")
        assert result.exit_code == 2
        assert result.output.splitlines()[-1] == (
            "Error: Say what it is: --nar, --infohash, --publisher or --address."
        )


def test_nothing_there(run: Run, tmp_path: Path) -> None:
    """Commands make no index where there is none."""
    for command in (
        ("withdraw", "0" * 52),
        ("block", "--nar", "0" * 52),
        ("unblock", "--nar", "0" * 52),
        ("blocks",),
        ("export",),
    ):
        with pytest.raises(NotFoundError) as caught:
            run(*command)
        assert str(caught.value) == f"{tmp_path / 'data'}: has no tracker's index"
    assert not (tmp_path / "data").exists()


def test_export(run: Run, item: Any, tmp_path: Path) -> None:
    """A line for each NAR, with numbers of peers when somebody knows them."""
    (line,) = run("export").output.splitlines()
    entry = json.loads(line)
    assert entry["nar_hash"] == base32.format_hash(item.nar_hash)
    assert entry["torrents"][0]["seeders"] is None
    output = tmp_path / "lines"
    with _running(tmp_path) as asked:
        assert run("export", "--output", str(output)).output == ""
    assert asked == [
        {"op": "counts", "torrents": [[h.hex() for h in _wire_hashes(item)]]},
    ]
    (torrent,) = json.loads(output.read_text())["torrents"]
    assert (torrent["seeders"], torrent["leechers"], torrent["downloaded"]) == (3, 2, 1)


def _wire_hashes(item: Any) -> list[bytes]:
    return [item.meta.infohash_v2[:20], item.meta.infohash_v1]


def test_export_that_fails(
    run: Run, item: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that was there stays as it was."""
    assert item
    output = tmp_path / "lines"
    output.write_text("before")

    def fail(_: object) -> Callable[..., None]:
        def ask(_: object) -> None:
            raise NarswarmError("tracker", "left")

        return ask

    monkeypatch.setattr(commands, "_counts", fail)
    with _running(tmp_path), pytest.raises(NarswarmError):
        run("export", "--output", str(output))
    assert output.read_text() == "before"
    assert {path.name for path in tmp_path.iterdir()} == {"data", "empty.toml", "lines"}
