# SPDX-License-Identifier: GPL-3.0-or-later
"""The main job: guix-daemon gets its substitutes over BitTorrent, and from nowhere else."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.e2e.rig import guix
from tests.e2e.rig.guix import Mode
from tests.e2e.rig.nodes import wait_for
from tests.e2e.rig.site import Fetcher, Site

pytestmark = pytest.mark.e2e

WANTED = ("single", "tree", "many", "medium", "e2e-app", "e2e-app:doc", "e2e-big")
REFERENCES = ("busybox", "e2e-leaf", "e2e-middle")


@pytest.mark.parametrize("mode", [Mode.ROOT, Mode.UNPRIVILEGED])
def test_every_item_comes_from_the_swarm(
    site: Site, fetcher: Callable[..., Fetcher], mode: Mode
) -> None:
    """Items of all shapes, and what they refer to, are restored as they are on A, without HTTP."""
    everything = (*WANTED, *REFERENCES)
    site.wait_published(*everything)
    # In a race servers are asked for small items at once.
    patience = {"first_byte_timeout": 60.0, "stall_timeout": 60.0}
    b = fetcher(mode, policy="swarm-first", **patience)
    before = site.uploaded()
    output = b.build(*WANTED)
    b.assert_equal(*everything)
    guix.verify_contents(b.node)
    assert b.http_bytes() == 0
    # guix's own helper, the last resort, would have asked for NARs.
    assert b.nar_requests() == [], output
    payloads = sum(site.payload_length(label) for label in everything)
    wait_for("the seeder's counter", lambda: site.uploaded() - before >= payloads)
    run = b.node.run(f"{site.items['e2e-app']}/bin/app")
    assert run.stdout == "leaf\n"


def test_outputs_of_a_derivation(site: Site, fetcher: Callable[..., Fetcher]) -> None:
    """`guix build` of a derivation with two outputs substitutes both instead of building."""
    site.wait_published("e2e-app", "e2e-app:doc")
    b = fetcher(Mode.UNPRIVILEGED)
    drv = site.items["e2e-app.drv"]
    # The daemon wants the derivation itself in its store; what it builds is not part of that.
    site.node.run("sh", "-c", f"guix archive --export -r {drv} > /srv/closure")
    b.node.write("/srv/closure", site.node.read("/srv/closure"))
    b.node.run("sh", "-c", "guix archive --import < /srv/closure")
    assert not b.has("e2e-app")
    output = guix.build(b.node, drv)
    assert site.items["e2e-app"] in output
    assert site.items["e2e-app:doc"] in output
    assert "building /gnu/store" not in output
    b.assert_equal("e2e-app", "e2e-app:doc")
    assert b.http_bytes() == 0


@pytest.mark.parametrize("program", ["GUIX", "launcher"])
def test_in_place_of_guix(site: Site, fetcher: Callable[..., Fetcher], program: str) -> None:
    """As the daemon's GUIX the substituter does the same, and leaves all other work to guix."""
    site.wait_published("tree", "e2e-app", "e2e-middle", "e2e-leaf", "busybox")
    b = fetcher(Mode.USERS, program=program)
    b.build("tree", "e2e-app")
    b.assert_equal("tree", "e2e-app", "e2e-middle", "e2e-leaf", "busybox")
    assert b.http_bytes() == 0
    # A build and a collection run `guix` for things other than substitutes.
    busybox = site.items["busybox"]
    b.node.write(
        "/srv/built.scm",
        f"""(use-modules (guix store) (guix derivations))
(with-store store
  (let ((drv (derivation store "built-here" "{busybox}/bin/busybox"
                         '("sh" "-c" "echo built > $out") #:sources '("{busybox}"))))
    (build-derivations store (list drv))
    (display (derivation->output-path drv))))
""",
    )
    built = b.node.run("guix", "repl", "--", "/srv/built.scm").stdout.split()[-1]
    assert b.node.read(built) == b"built\n"
    b.node.run("guix", "gc", "-D", built)
    guix.verify_contents(b.node)


def test_repair(site: Site, fetcher: Callable[..., Fetcher]) -> None:
    """`guix gc --verify=contents,repair` mends a damaged item from the swarm."""
    site.wait_published("tree")
    b = fetcher(Mode.ROOT)
    b.build("tree")
    b.assert_equal("tree")
    damaged = f"{site.items['tree']}/lib/data"
    b.node.run("rm", damaged)
    b.node.write(damaged, "something else", 0o444)
    b.node.run("guix", "gc", "--verify=contents,repair")
    b.assert_equal("tree")
    assert b.http_bytes() == 0
