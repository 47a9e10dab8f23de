# SPDX-License-Identifier: GPL-3.0-or-later
"""Slow, distant links for the nodes of a benchmark: link.c in place of a node's wire."""

from __future__ import annotations

import os
import select
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple, Self

from tests.e2e.rig.nodes import Cluster, Node

SOURCE = Path(__file__).resolve().parent / "link.c"


class Wire(NamedTuple):
    """What a link is like.

    Attributes:
        mbit: million bits a second in each direction.
        rtt: milliseconds there and back.
    """

    mbit: float
    rtt: float

    @property
    def queue(self) -> int:
        """Bytes that wait before some are dropped: those of 100 ms, as routers have at least."""
        return int(self.mbit * 1e6 / 8 * max(self.rtt, 100) / 1000)


def port_of(node: Node) -> str:
    """The device in the hub's namespace that a node's link ends in."""
    return f"l{node.address.rpartition('.')[2]}"


class Links:
    """Makes links; a context manager that cuts them at its end.

    Args:
        cluster: whose nodes get them.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._directory = tempfile.TemporaryDirectory(prefix="narswarm-link-")
        self._program = Path(self._directory.name) / "link"
        subprocess.run(["gcc", "-O2", "-o", self._program, SOURCE], check=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes.values():
            process.kill()
            process.wait()
            if process.stdout:
                process.stdout.close()
        self._directory.cleanup()

    def put(self, node: Node, wire: Wire) -> None:
        """Have all that a node sends and receives take this wire, instead of any before."""
        self._cut(node)
        port = port_of(node)
        hub = self._cluster.hub
        process = subprocess.Popen(
            [
                self._program,
                *(str(hub), port, str(node.pid), "eth0"),
                *(str(int(wire.mbit * 1000)), str(int(wire.rtt * 500)), str(wire.queue)),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None
        select.select([process.stdout], [], [], 10)
        if os.read(process.stdout.fileno(), 100) != b"ready\n":
            raise SystemExit(f"no link for node {node.name}")
        self._processes[node.name] = process
        self._cluster.plug(node, port)

    def _cut(self, node: Node) -> None:
        process = self._processes.pop(node.name, None)
        if process is None:
            self._cluster.unplug(node)
            return
        process.kill()  # its devices go with it
        process.wait()
        if process.stdout:
            process.stdout.close()
