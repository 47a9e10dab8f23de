# SPDX-License-Identifier: GPL-3.0-or-later
"""ansible/ and systemd/: from bare machines to a fleet that serves, through upgrades and mishaps.

The tests run in their order, on one fleet: each leaves it serving.
"""

from __future__ import annotations

import html
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.e2e.rig.nodes import wait_for
from tests.e2e.rig.rootfs import cache_directory
from tests.fleet import roots, wheels
from tests.fleet.conftest import Deployed
from tests.fleet.deployment import MAX_DISK, SCHEDULE, TITLE

pytestmark = pytest.mark.fleet

TRACKERS = ("t1", "t2")
BOXES = ("s1", "s2")
LAUNCHER = "/usr/local/lib/narswarm/bin/guix"
#: Seconds between two fetches of an item that is fetched again and again.
PAUSE = 2.0
SERVICES = {
    **dict.fromkeys(TRACKERS, "narswarm-tracker"),
    **dict.fromkeys(BOXES, "narswarm-seeder"),
}


@contextmanager
def fetching(deployed: Deployed, name: str) -> Iterator[list[str]]:
    """Have the user's machine fetch an item again and again; what failed."""
    failures: list[str] = []
    stop = threading.Event()
    item = deployed.fleet.items[name]
    user = deployed.fleet["u"]
    command = f"guix build {item} 2>&1; cat {item}/name && guix gc -D {item} >&2"

    def fetch() -> None:
        while not stop.is_set():
            done = user.run(command, check=False)
            if done.returncode or "bittorrent://" not in done.stdout:
                failures.append(done.stdout + done.stderr)
            rounds.append(1)
            # The machines of the test share the processors that this takes.
            stop.wait(PAUSE)

    rounds: list[int] = []
    thread = threading.Thread(target=fetch)
    thread.start()
    try:
        wait_for("the first round", lambda: rounds)
        yield failures
        count = len(rounds)
        wait_for("one more round", lambda: len(rounds) > count + 1)
    finally:
        stop.set()
        thread.join()


def test_bare_machines_become_a_fleet(deployed: Deployed) -> None:
    """One run, and `guix build` fetches from both seed boxes, with no substitute server at all."""
    fleet, recap = deployed.fleet, deployed.recap
    assert recap.code == 0
    assert all(recap.changed.values())
    for tracker in TRACKERS:
        fleet.wait_seeded("first", "box2", tracker=tracker)
    for name, box in {"first": "s1", "box2": "s2"}.items():
        assert "bittorrent://" in fleet.build(name)
        assert fleet.status(box)["uploaded"] > 400_000


def test_a_seed_box_fetches_by_its_seeder(deployed: Deployed) -> None:
    """guix-daemon's user may have the confined seeder fetch, and gets the item from it."""
    fleet = deployed.fleet
    item = fleet.items["box2"]
    fleet["s1"].run(f"guix build {item}")
    assert fleet["s1"].run(f"cat {item}/name").stdout == "box2\n"
    assert fleet.status("s1")["downloaded"] > 400_000


def test_guix_daemon_starts_the_substituter(deployed: Deployed) -> None:
    """By a launcher, or by Guix's extension alone where the operator wants that."""
    user, box = _daemons_environment(deployed, "u"), _daemons_environment(deployed, "s1")
    extension = "GUIX_EXTENSIONS_PATH=/usr/local/lib/narswarm/guix/extensions"
    program = "NARSWARM_SUBSTITUTER=/opt/narswarm/current/bin/substituter"
    assert {f"GUIX={LAUNCHER}", extension, program} <= user
    assert {extension, program} <= box
    assert f"GUIX={LAUNCHER}" not in box
    shown = deployed.fleet["u"].run("substituter doctor").stdout
    assert f"runs {LAUNCHER} by GUIX" in shown


def test_settings_of_the_inventory_reach_the_programs(deployed: Deployed) -> None:
    """Whatever a program can be told, and a key that only systemd reads."""
    fleet = deployed.fleet
    for tracker in TRACKERS:
        page = fleet["u"].run(f"curl -sSf https://{tracker}/").stdout
        assert html.escape(TITLE) in page.replace("&#34;", "&quot;")
    assert fleet.status("s2")["max_disk"] == MAX_DISK
    file = fleet["s2"].run("cat /etc/narswarm/narswarm.toml").stdout
    table = tomllib.loads(file)["seeder"]
    assert table["schedule"] == list(SCHEDULE)
    assert table["libtorrent"] == {"max_peerlist_size": 500}
    assert fleet.status("s1")["publisher"] == fleet.publisher
    key = "/etc/credstore/narswarm.publisher.key"
    assert fleet["s1"].run(f"stat -c %U:%a {key}").stdout == "root:600\n"
    assert fleet["s1"].run("ls /var/lib/narswarm/seeder/publisher.key", check=False).returncode


def test_services_are_confined(deployed: Deployed) -> None:
    """They run as user narswarm without capabilities, and write to their own directory alone."""
    for name, service in SERVICES.items():
        machine = deployed.fleet[name]
        shown = _show(deployed, name, "MainPID", "NRestarts", "StatusText")
        assert shown["NRestarts"] == "0"
        assert shown["StatusText"]
        pid = shown["MainPID"]
        facts = machine.run(f"ps -o user= -p {pid}; grep -E 'CapEff|NoNewPrivs' /proc/{pid}/status")
        assert facts.stdout.split() == ["narswarm", "CapEff:", "0" * 16, "NoNewPrivs:", "1"]
        machine.run(f"systemd-analyze security --no-pager --threshold=20 {service}")
        # What it could write, were it another program.
        enter = f"nsenter -t {pid} -m setpriv --reuid=narswarm --regid=narswarm --clear-groups"
        writable = machine.run(
            f"{enter} find / -xdev -type d -writable -not -path '/proc/*' -not -path '*/tmp*'"
            " 2>/dev/null",
            check=False,
        )
        own = f"/var/lib/narswarm/{service.removeprefix('narswarm-')}"
        allowed = (own, "/run/narswarm", "/dev/shm", "/dev/mqueue")  # noqa: S108  not used here
        lines = writable.stdout.split()
        assert [line for line in lines if not line.startswith(allowed)] == []
        assert own in lines


def test_only_what_is_served_is_open(deployed: Deployed) -> None:
    """Trackers are reached over TLS and UDP; announces over UDP leave no trace in conntrack."""
    user, tracker = deployed.fleet["u"], deployed.fleet["t1"]

    def answers(url: str) -> bool:
        command = f"curl -s -o /dev/null --max-time 2 {url}"
        return user.run(command, check=False).returncode == 0

    assert answers("https://t1/healthz")
    assert answers("http://t1/")
    assert not answers("http://t1:6969/healthz")
    assert user.run("curl -s -o /dev/null -w '%{http_code}' https://t1/metrics").stdout == "403"
    assert deployed.fleet.udp_answer("t1") == (0, 7)
    assert "udp" not in tracker.run("grep dport=6969 /proc/net/nf_conntrack | cat").stdout
    assert "tcp" in tracker.run("grep dport=443 /proc/net/nf_conntrack").stdout


def test_trackers_know_where_peers_really_are(deployed: Deployed) -> None:
    """Behind nginx a peer has its own address, and not one that it claims."""
    fleet = deployed.fleet
    infohash = fleet.torrent("first")["infohash_v1"]
    answer = fleet.announce(infohash, "t1", "-H", "X-Forwarded-For: 192.0.2.1")
    assert "failure" not in answer
    torrent = fleet.torrent("first")
    addresses = {peer.rpartition(":")[0] for peer in torrent["peers"]}
    assert addresses == {fleet["s1"].address, fleet["u"].address}


def test_a_second_run_changes_nothing(deployed: Deployed) -> None:
    """Every task finds what it would make."""
    before = {name: _started(deployed, name) for name in SERVICES}
    recap = deployed.fleet.play(deployed.wheel)
    assert recap.code == 0
    assert recap.changed == dict.fromkeys(deployed.fleet.fleet.machines, 0)
    assert {name: _started(deployed, name) for name in SERVICES} == before


def test_the_substituter_is_taken_away(deployed: Deployed) -> None:
    """guix-daemon is what it was before, until the operator wants it otherwise."""
    fleet = deployed.fleet
    fleet.settings["user"] = {"substituter_enabled": False}

    def play(*arguments: str) -> int:
        recap = fleet.play(deployed.wheel, "--limit", "u", *arguments)
        assert recap.code == 0
        return recap.changed["u"]

    assert play("--check") == 1
    assert f"GUIX={LAUNCHER}" in _daemons_environment(deployed, "u")
    assert play() == 1
    assert not [line for line in _daemons_environment(deployed, "u") if "narswarm" in line]
    left = "ls -A /usr/local/lib /etc/systemd/system/guix-daemon.service.d"
    assert "narswarm" not in fleet["u"].run(left).stdout
    assert play("--check") == 0
    fleet.settings.clear()
    assert play() == 1
    assert f"GUIX={LAUNCHER}" in _daemons_environment(deployed, "u")
    assert "bittorrent://" in fleet.build("first")


def test_upgrade_while_the_swarm_goes_on(deployed: Deployed) -> None:
    """Check mode tells of it and does nothing; then it is done, and no fetch fails meanwhile."""
    fleet = deployed.fleet
    wheel = wheels.build(fleet.fleet.directory / "wheels", "0.1.1", {})
    upgraded = ("t1", "s1", "u")
    foretold = fleet.play(wheel, "--check", "--limit", ",".join(upgraded[:2]))
    assert foretold.code == 0
    assert min(foretold.changed.values()) > 0
    assert fleet.release("t1").startswith("0.1.0-")
    fleet.wait_seeded("upgrade", seeders=2)
    with fetching(deployed, "upgrade") as failures:
        assert fleet.play(wheel, "--limit", ",".join(upgraded)).code == 0
    assert failures == []
    for name in upgraded:
        assert fleet.release(name).startswith("0.1.1-")
    assert fleet["t1"].run("tracker --version").stdout == "tracker (narswarm) 0.1.1\n"


def test_a_broken_release_is_rolled_back(deployed: Deployed) -> None:
    """The first machine where it doesn't work goes back, no other is touched, the swarm goes on."""
    fleet = deployed.fleet
    broken = {"tracker/server.py": ("def serve(", "raise SystemExit('broken')\n\n\ndef serve(")}
    wheel = wheels.build(fleet.fleet.directory / "wheels", "0.1.2", broken)
    untouched = _started(deployed, "t2")
    with fetching(deployed, "broken") as failures:
        recap = fleet.play(wheel, "--limit", "trackers")
    assert recap.code != 0
    assert "went back to 0.1.1-" in recap.output
    assert failures == []
    assert fleet.release("t1").startswith("0.1.1-")
    assert fleet["t1"].run("curl -sf http://127.0.0.1:6969/healthz").stdout == "ok\n"
    assert _started(deployed, "t2") == untouched


def test_wrong_settings_are_refused(deployed: Deployed) -> None:
    """What the new settings would break goes on with the old ones."""
    fleet = deployed.fleet
    before = fleet["t2"].run("cat /etc/narswarm/narswarm.toml").stdout, _started(deployed, "t2")
    fleet.settings["tracker"] = {"interval": 0}
    recap = fleet.play(deployed.wheel, "--limit", "t2")
    fleet.settings.clear()
    assert recap.code != 0
    assert "interval: is less than 1" in recap.output
    after = fleet["t2"].run("cat /etc/narswarm/narswarm.toml").stdout, _started(deployed, "t2")
    assert after == before


def test_what_hangs_is_restarted(deployed: Deployed) -> None:
    """A tracker and a seeder that give no sign of life are killed and started anew."""
    for name in ("t2", "s2"):
        machine, service = deployed.fleet[name], SERVICES[name]
        machine.run(
            f"mkdir -p /run/systemd/system/{service}.service.d &&"
            f" printf '[Service]\\nWatchdogSec=3\\n'"
            f" >/run/systemd/system/{service}.service.d/test.conf &&"
            f" systemctl daemon-reload && systemctl restart {service} &&"
            f" systemctl kill --signal=STOP {service}"
        )

        def restarted(name: str = name) -> bool:
            shown = _show(deployed, name, "NRestarts", "ActiveState")
            return shown == {"NRestarts": "1", "ActiveState": "active"}

        wait_for(f"{service} to be started anew", restarted)


def test_backup_and_restore(deployed: Deployed) -> None:
    """A tracker whose index is lost, and a box that lost its key, get them back."""
    fleet = deployed.fleet
    tracker, box = fleet["t1"], fleet["s2"]
    key = "/var/lib/narswarm/seeder/publisher.key"
    of_key = f"sha256sum {key}; stat -c %U:%a {key}"
    before = box.run(of_key).stdout
    # As the timer has it made: by a service that may do little.
    nightly = "systemctl start narswarm-backup && ls /var/backups/narswarm/*.tar.gz | tail -n 1"
    archives = {each: each.run(nightly).stdout.strip() for each in (tracker, box)}
    owner = "runuser -u postgres -- psql -q narswarm -c"
    tracker.run(f"systemctl stop narswarm-tracker && {owner} 'DROP OWNED BY narswarm'")
    tracker.run(
        f"{owner} 'GRANT ALL ON SCHEMA public TO narswarm' && systemctl start narswarm-tracker"
    )
    hash_part = fleet.items["restored"].removeprefix("/gnu/store/")[:32]
    assert tracker.run(f"curl -sSf https://t1/{hash_part}.narinfo", check=False).returncode
    box.run(f"rm {key} && systemctl restart narswarm-seeder")
    assert box.run(of_key).stdout != before
    for machine, archive in archives.items():
        machine.run(f"narswarm-backup restore {archive}")
    assert box.run(of_key).stdout == before
    tracker.run(f"curl -sSf https://t1/{hash_part}.narinfo")
    fleet.wait_seeded("restored")
    assert "bittorrent://" in fleet.build("restored")


def test_a_tracker_moves_to_ubuntu(deployed: Deployed) -> None:
    """A bare machine with another system takes a tracker's place, while the other one serves."""
    fleet = deployed.fleet
    fleet["t2"].replace(roots.root(cache_directory() / "fleet", "noble"))
    fleet.trust("t2")
    fleet.certify("t2")
    recap = fleet.play(deployed.wheel, "--limit", "t2")
    assert recap.code == 0
    assert "VERSION_CODENAME=noble" in fleet["t2"].run("cat /etc/os-release").stdout
    fleet.wait_seeded("first", "box2", tracker="t2")
    assert fleet.udp_answer("t2") == (0, 7)
    again = fleet.play(deployed.wheel, "--limit", "t2")
    assert (again.code, again.changed) == (0, {"t2": 0})


def _daemons_environment(deployed: Deployed, name: str) -> set[str]:
    """Variables that guix-daemon was started with, and their values."""
    command = (
        "tr '\\0' '\\n' </proc/$(systemctl show --property=MainPID --value guix-daemon)/environ"
    )
    return set(deployed.fleet[name].run(command).stdout.splitlines())


def _show(deployed: Deployed, name: str, *properties: str) -> dict[str, str]:
    """What systemd knows of a machine's service."""
    command = f"systemctl show --property={','.join(properties)} {SERVICES[name]}"
    lines = deployed.fleet[name].run(command).stdout.splitlines()
    return dict(line.split("=", 1) for line in lines)


def _started(deployed: Deployed, name: str) -> dict[str, str]:
    """When a machine's service was started."""
    return _show(deployed, name, "ExecMainStartTimestampMonotonic")
