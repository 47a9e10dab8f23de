# SPDX-License-Identifier: GPL-3.0-or-later
"""What people do to a daemon: everything at once, as somebody else, and ^C all the time."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator

import pytest

from narswarm import gcrypt, nar, narinfo
from tests.e2e.rig import guix
from tests.e2e.rig.guix import Mode
from tests.e2e.rig.nodes import wait_for
from tests.e2e.rig.site import SERVER, SHELL, Fetcher, Site

pytestmark = pytest.mark.e2e

MANY = 50
INTERRUPTIONS = 100
STATE = "/var/guix/narswarm"

#: Megabits a second, at which the closure that is interrupted takes some tenths of a second.
SLOW = 8


@pytest.fixture(scope="module", name="many")
def many_fixture(whole_site: Site) -> list[str]:
    """The labels of items that don't refer to each other."""
    whole_site.ensure()
    labels = whole_site.add_many("one", -MANY)
    whole_site.wait_published(*labels, timeout=180)
    return labels


@pytest.fixture
def slow(site: Site) -> Iterator[None]:
    """What A sends is limited."""
    site.node.limit(SLOW)
    yield
    site.node.limit(None)


@pytest.mark.parametrize("jobs", [1, 6])
def test_many_at_once(
    site: Site, fetcher: Callable[..., Fetcher], many: list[str], jobs: int
) -> None:
    """Fifty items in one build, by one helper and by six beside each other."""
    site.wait_published(*many)
    b = fetcher(Mode.UNPRIVILEGED, policy="swarm-first")
    b.build(*many, args=[f"-M{jobs}"])
    b.assert_equal(*many)
    guix.verify_contents(b.node)
    assert b.http_bytes() == 0


@pytest.fixture(scope="module", name="packages")
def packages_fixture(whole_site: Site) -> list[str]:
    """The labels of packages, and of the Guile that makes profiles of them."""
    whole_site.ensure()
    labels = whole_site.add_packages()
    whole_site.wait_published(*labels)
    return labels


def test_guix_shell(site: Site, fetcher: Callable[..., Fetcher], packages: list[str]) -> None:
    """An environment of fifty packages: they come from the swarm, the profile is built here."""
    site.wait_published(*packages)
    b = fetcher(Mode.UNPRIVILEGED, policy="swarm-first", program="launcher")
    look = 'cd "$GUIX_ENVIRONMENT"/share && echo * && cat e2e-shell-7'
    command = ("guix", "shell", "--bootstrap", "-m", SHELL, "--", "sh", "-c", look)
    done = b.node.run(*command)
    assert f"{MANY + 1} items will be downloaded" in done.stderr  # the Guile is one
    names, _, content = done.stdout.partition("\n")
    assert set(names.split()) == {f"e2e-shell-{number}" for number in range(1, MANY + 1)}
    assert content == site.node.read(f"{site.items['e2e-shell-7']}/share/e2e-shell-7").decode()
    b.assert_equal(*packages[::10])
    guix.verify_contents(b.node)
    assert b.http_bytes() == 0
    # Another time everything is there.
    again = b.node.run(*command)
    assert again.stdout == done.stdout
    assert "downloaded" not in again.stderr


def test_substitutable_and_local_inputs(site: Site, fetcher: Callable[..., Fetcher]) -> None:
    """One input of a derivation is substituted, the other one and the result are built."""
    site.wait_published("e2e-middle", "e2e-leaf")
    b = fetcher(Mode.USERS)
    drv = site.items["e2e-middle.drv"]
    site.node.run("sh", "-c", f"guix archive --export -r {drv} > /srv/closure")
    b.node.write("/srv/closure", site.node.read("/srv/closure"))
    b.node.run("sh", "-c", "guix archive --import < /srv/closure")
    command = ("guix", "repl", "--", "/opt/rig/mixed.scm", drv, site.items["busybox"])
    mixed = b.node.run(*command).stdout
    output = guix.build(b.node, mixed)
    (built,) = set(re.findall(r"^/gnu/store/\S+-e2e-mixed$", output, re.MULTILINE))
    assert b.node.read(f"{built}/both") == b"leaf\na local source\n"
    b.assert_equal("e2e-middle", "e2e-leaf")
    assert "e2e-local.drv" in output
    assert "building /gnu/store" in output
    assert "e2e-middle.drv" not in output
    guix.verify_contents(b.node)


def test_repair_of_several(site: Site, fetcher: Callable[..., Fetcher]) -> None:
    """Files that were changed, cut short, removed and made executable are all mended at once."""
    wanted = ("tree", "medium", "e2e-middle", "e2e-leaf", "single")
    site.wait_published(*wanted)
    b = fetcher(Mode.ROOT)
    b.build(*wanted)
    b.assert_equal(*wanted)
    items = site.items
    b.node.run("rm", f"{items['tree']}/lib/data")
    b.node.write(f"{items['tree']}/lib/data", "something else", 0o444)
    b.node.run("truncate", "-s", "1000", f"{items['medium']}/noise")
    b.node.run("rm", f"{items['e2e-leaf']}/leaf")
    b.node.run("chmod", "755", items["single"])
    b.node.run("guix", "gc", "--verify=contents,repair", timeout=120)
    b.assert_equal(*wanted)
    guix.verify_contents(b.node)
    assert b.http_bytes() == 0


def test_an_ordinary_user(site: Site, fetcher: Callable[..., Fetcher]) -> None:
    """Who isn't root may name servers, but not whom to believe; and may not change the store."""
    site.wait_published("medium", "tree")
    b = fetcher(Mode.USERS)

    def build(urls: str, item: str) -> None:
        command = ("guix", "build", f"--substitute-urls={urls}", item)
        env = {"HOME": "/tmp", "USER": "guix-daemon"}  # noqa: S108 -- of a node
        # For a daemon that is root somebody like any other.
        done = b.node.run(*command, user="guix-daemon", env=env, check=False)
        print(done.stdout, done.stderr)

    # Dead servers of the user's own: the tracker and peers are the daemon's.
    medium, tree = site.items["medium"], site.items["tree"]
    build("http://127.0.0.1:9", medium)
    b.assert_equal("medium")
    build(SERVER, tree)
    b.assert_equal("tree")
    # A server with a signature that nobody has authorised.
    b.node.write("/srv/evil/file", "evil\n")
    data = b"".join(nar.dump(b.node.path("/srv/evil/file")))
    item = f"/gnu/store/{'1' * 32}-e2e-evil"
    unsigned = narinfo.compose(item, hashlib.sha256(data).digest(), len(data), ())
    signed = narinfo.sign(unsigned, gcrypt.generate_key(), "evil")
    source = narinfo.Source("nar/evil", "none", len(data))
    b.node.write(f"/srv/evil/{'1' * 32}.narinfo", narinfo.with_sources(signed, [source]))
    b.node.write("/srv/evil/nar/evil", data)
    evil = b.node.spawn("evil", "python3", "-m", "http.server", "-d", "/srv/evil", "8001")
    evil.wait_ready(lambda: b.node.listening(8001))
    build("http://127.0.0.1:8001", item)
    assert f"GET /{'1' * 32}.narinfo" in evil.tail(), "the user's server was not asked at all"
    assert "GET /nar/evil" not in evil.tail()
    assert not b.node.path(item).exists()
    guix.verify_contents(b.node)


@pytest.mark.usefixtures("slow")
def test_interrupted_again_and_again(site: Site, fetcher: Callable[..., Fetcher]) -> None:
    """^C at a hundred random moments damages nothing and leaves neither processes nor files."""
    wanted = ("medium", "extra-8")
    site.wait_published(*wanted, "single")
    items = [site.items[label] for label in wanted]
    b = fetcher(Mode.UNPRIVILEGED, policy="swarm-first")
    command = ("python3", "/opt/rig/interrupt.py", str(INTERRUPTIONS), "narswarm", *items)
    finished, interrupted = b.node.run(*command, timeout=400).stdout.split()
    assert int(finished) + int(interrupted) == INTERRUPTIONS
    assert int(interrupted) > INTERRUPTIONS // 2

    def ended() -> bool:
        return not b.node.processes("--substitute") and not b.node.processes("--query")

    wait_for("the end of all helpers", ended)
    b.build(*wanted)
    # What was fetched ahead by helpers that were killed goes with the next one's start.
    b.build("single")
    b.assert_equal(*wanted, "single")
    wait_for("the end of the last helper", ended)
    guix.verify_contents(b.node)
    assert b.http_bytes() == 0
    assert sorted(path.name for path in b.node.path(f"{STATE}/downloads").iterdir()) == []
    locks = [path.name for path in b.node.path("/gnu/store").iterdir() if ".lock" in path.name]
    assert locks == []
    # A file of some hundred bytes that was about to be renamed stays, until it is pruned.
    beside = [path for path in b.node.path(STATE).rglob(".*") if path.name != ".pruned"]
    assert len(beside) < INTERRUPTIONS // 10
    assert sum(path.stat().st_size for path in beside) < 100_000
