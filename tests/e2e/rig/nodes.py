# SPDX-License-Identifier: GPL-3.0-or-later
"""Nodes: small machines made of namespaces, with a network that leads nowhere else.

A node is a set of mount, pid, net, uts and ipc namespaces on the cached root file system. Nodes
talk over a bridge in one more network namespace, so the host's own network is not touched and no
packet can leave. Every process of a node ends with the node's process 1, and that ends with this
process, however this process ends: each link of the chain asks the kernel for SIGKILL when its
parent dies.
"""

from __future__ import annotations

import contextlib
import os
import select
import shlex
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self, TypeVar

from tests.e2e.rig.code import install
from tests.e2e.rig.rootfs import RigError, RootFs

T = TypeVar("T")

HERE = Path(__file__).resolve().parent

#: Directories of which each node has its own writable copy.
WRITABLE = ("etc", "var", "gnu", "root", "home", "srv", "opt", "tmp", "run", "usr/local")

#: Seconds that a machine may need which is busy with other things, too.
PATIENCE = 120.0

# A private network, on which libtorrent leaves DHT nodes the identities they start with.
NETWORK = "10.99.0"
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "USER": "root",
    "LC_ALL": "C.UTF-8",
    "TERM": "dumb",
    "GUILE_AUTO_COMPILE": "0",
}
_PREFIX = "narswarm-e2e-"
_CONGESTION_CONTROL = Path("/proc/sys/net/ipv4/tcp_available_congestion_control")
"""Nodes use what Guix System and Debian do, whatever this machine's kernel was told."""
_DIE_WITH_PARENT = ("setpriv", "--pdeathsig", "KILL")


class CommandError(Exception):
    """A command in a node failed; the text has its output."""


class DeadlineError(Exception):
    """Something that was waited for did not come about."""


def wait_for(what: str, condition: Callable[[], T | None], timeout: float = PATIENCE) -> T:
    """The first true value of `condition`, which is asked again and again.

    Raises:
        DeadlineError: it stayed false for `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    while True:
        if value := condition():
            return value
        if time.monotonic() > deadline:
            raise DeadlineError(f"{what}: not within {timeout:g} s")
        time.sleep(0.02)


class Service:
    """A background process of a node.

    Attributes:
        name: what its log is called.
        log: its standard output and error.
        pid: of the process itself, as this machine (not the node) numbers it.
    """

    def __init__(self, name: str, process: subprocess.Popen[bytes], log: Path) -> None:
        self.name = name
        self.log = log
        self._process = process
        self.pid = wait_for(f"service {name}", lambda: _only_child(process.pid) or self._gone())

    def _gone(self) -> int | None:
        if self._process.poll() is not None:
            raise CommandError(f"{self.name} ended at once:\n{self.tail()}")
        return None

    def alive(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    def tail(self, lines: int = 30) -> str:
        """The end of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def wait_ready(self, condition: Callable[[], object], timeout: float = PATIENCE) -> None:
        """Wait for `condition`; raise `CommandError` with its log when it ends or is too slow."""

        def probe() -> bool:
            self._gone()
            return bool(condition())

        try:
            wait_for(self.name, probe, timeout)
        except DeadlineError as error:
            raise CommandError(f"{error}:\n{self.tail()}") from None

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        if self.alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def freeze(self) -> None:
        """Stop it and its descendants where they are; their connections stay open."""
        for pid in family(self.pid):
            os.kill(pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Undo `freeze`."""
        # nsenter stops with its child, and would neither go on nor reap the child otherwise.
        for pid in family(self._process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def wait(self, timeout: float) -> None:
        """Wait until it ends by itself."""
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise DeadlineError(f"{self.name}: still runs after {timeout:g} s") from None

    def stop(self, number: signal.Signals = signal.SIGTERM, timeout: float = 60.0) -> None:
        """End it by a signal, and by SIGKILL when it takes longer than `timeout` seconds.

        SIGKILL hits its descendants as well: some would serve on without their parent.
        """
        self.thaw()
        for pid in family(self.pid) if number is signal.SIGKILL else []:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        self.send(number)
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.send(signal.SIGKILL)
            self._process.wait()

    def peak_memory(self) -> int:
        """Largest resident size so far in bytes, of it and its children together."""
        return sum(peak_memory(pid) for pid in family(self.pid))


class Node:
    """One machine. Made by `Cluster.node`."""

    def __init__(
        self, name: str, address: str, directory: Path, rootfs: Path, template: Path, hub: int
    ) -> None:
        self.name = name
        self.address = address
        self.directory = directory
        self.fs = directory / "fs"
        self.services: dict[str, Service] = {}
        for sub in WRITABLE:
            target = self.fs / sub
            target.parent.mkdir(parents=True, exist_ok=True)
            subprocess.run(["cp", "-a", template / sub, target], check=True)
        (directory / "mnt").mkdir()
        (directory / "log").mkdir()
        namespaces = ["--mount", "--net", "--uts", "--ipc", "--pid"]
        command = [*_DIE_WITH_PARENT, "unshare", *namespaces, "--fork", "--kill-child=KILL", "bash"]
        command += [str(HERE / "init.sh"), str(rootfs), str(directory), name, *WRITABLE]
        with (directory / "log" / "init.log").open("wb") as log:
            self._unshare = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        _expect_ready(self._unshare, directory / "log" / "init.log")
        self.pid = wait_for(f"node {name}", lambda: _only_child(self._unshare.pid))
        link = _port(self)
        _ip(hub, f"link add {link} type veth peer name eth0 netns {self.pid}")
        _plug(hub, link, self)

    # -- files ------------------------------------------------------------------------------------

    def path(self, path: str) -> Path:
        """Where a file of the node is seen from outside, mounts of the node included."""
        return Path(f"/proc/{self.pid}/root", path.lstrip("/"))

    def write(self, path: str, content: str | bytes, mode: int = 0o644) -> None:
        """Make a file in the node, with its directories."""
        target = self.path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content.encode() if isinstance(content, str) else content)
        target.chmod(mode)

    def read(self, path: str) -> bytes:
        """The content of a file in the node."""
        return self.path(path).read_bytes()

    # -- commands ---------------------------------------------------------------------------------

    def _enter(
        self, command: Sequence[str], user: str | None, env: Mapping[str, str] | None
    ) -> list[str]:
        setpriv = [*_DIE_WITH_PARENT]
        if user is not None:
            setpriv += [f"--reuid={user}", f"--regid={user}", "--init-groups"]
        variables = {**ENVIRONMENT, **(env or {})}
        pairs = [f"{name}={value}" for name, value in variables.items()]
        namespaces = ["-m", "-u", "-i", "-n", "-p"]
        nsenter = ["nsenter", "-t", str(self.pid), *namespaces, "--"]
        return [*_DIE_WITH_PARENT, *nsenter, *setpriv, "env", "-i", *pairs, *command]

    def run(
        self,
        *command: str,
        user: str | None = None,
        env: Mapping[str, str] | None = None,
        stdin: bytes = b"",
        check: bool = True,
        timeout: float = 300.0,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the node to its end.

        Raises:
            CommandError: it failed (with `check`) or took longer than `timeout` seconds.
        """
        shown = f"{self.name}: {shlex.join(command)}"
        try:
            done = subprocess.run(
                self._enter(command, user, env),
                input=stdin,
                capture_output=True,
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            output = (error.stdout or b"") + (error.stderr or b"")
            text = output.decode(errors="replace")
            raise CommandError(f"{shown}: still running after {timeout:g} s\n{text}") from None
        out, err = (text.decode(errors="replace") for text in (done.stdout, done.stderr))
        if check and done.returncode:
            raise CommandError(f"{shown}: exit code {done.returncode}\n{out}{err}")
        return subprocess.CompletedProcess(command, done.returncode, out, err)

    def spawn(
        self,
        name: str,
        *command: str,
        user: str | None = None,
        env: Mapping[str, str] | None = None,
        capabilities: str = "",
    ) -> Service:
        """Start a background service; its output is appended to a log called `name`."""
        if (old := self.services.get(name)) and old.alive():
            raise CommandError(f"{name} already runs on {self.name}")
        log = self.directory / "log" / f"{name}.log"
        argv = self._enter(command, user, env)
        if capabilities:
            at = argv.index(f"--reuid={user}")
            argv[at:at] = [f"--inh-caps={capabilities}", f"--ambient-caps={capabilities}"]
        with log.open("ab") as out:
            process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )
        service = self.services[name] = Service(name, process, log)
        return service

    def kill(self, name: str, number: signal.Signals = signal.SIGTERM) -> None:
        """End a service, if it runs."""
        if service := self.services.pop(name, None):
            service.stop(number)

    def processes(self, word: str) -> list[int]:
        """Processes of the node with `word` as an argument, as this machine numbers them."""
        namespace = Path(f"/proc/{self.pid}/ns/pid").readlink()
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdecimal():
                continue
            try:
                if (entry / "ns/pid").readlink() != namespace:
                    continue
                line = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if word.encode() in line.split(b"\0"):
                found.append(int(entry.name))
        return found

    def listening(self, port: int) -> bool:
        """Whether some process of the node accepts TCP connections at `port`."""
        tables = [Path(f"/proc/{self.pid}/net/{name}").read_text() for name in ("tcp", "tcp6")]
        rows = [row.split() for table in tables for row in table.splitlines()[1:]]
        return any(row[3] == "0A" and int(row[1].rpartition(":")[2], 16) == port for row in rows)

    def limit(self, mbit: int | None) -> None:
        """Limit what the node sends to `mbit` million bits a second, or no more."""
        self.run(
            "tc",
            "qdisc",
            "replace" if mbit else "del",
            "dev",
            "eth0",
            "root",
            *(f"tbf rate {mbit}mbit burst 64kb latency 50ms".split() if mbit else ()),
        )

    def close(self) -> None:
        """End the node and everything in it, and delete its files."""
        for service in self.services.values():
            service.thaw()
        self._unshare.send_signal(signal.SIGKILL)
        self._unshare.wait()
        if self._unshare.stdout:
            self._unshare.stdout.close()
        for service in self.services.values():
            service.stop(signal.SIGKILL)
        self.services.clear()
        wait_for(f"end of node {self.name}", lambda: not Path(f"/proc/{self.pid}").exists())
        if not os.environ.get("NARSWARM_E2E_KEEP"):
            subprocess.run(["rm", "-rf", "--one-file-system", self.directory], check=True)


class Cluster:
    """The nodes of one test run and the network between them; a context manager."""

    def __init__(self, rootfs: RootFs, parent: Path | None = None) -> None:
        self.rootfs = rootfs
        self.nodes: dict[str, Node] = {}
        parent = parent or Path(tempfile.gettempdir())
        _remove_leftovers(parent)
        self.directory = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=parent))
        install(self.directory / ".template", rootfs.path, WRITABLE)
        self._next = 1
        # `exec` keeps the process, so that its number stays the namespace's handle.
        script = "ip link add br0 type bridge && ip link set br0 up && echo ready && exec sleep inf"
        self._hub = subprocess.Popen(
            [*_DIE_WITH_PARENT, "unshare", "--net", "sh", "-c", script],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        _expect_ready(self._hub, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for node in list(self.nodes.values()):
            self.remove(node)
        self._hub.kill()
        self._hub.wait()
        if self._hub.stdout:
            self._hub.stdout.close()
        if not os.environ.get("NARSWARM_E2E_KEEP"):
            subprocess.run(["rm", "-rf", "--one-file-system", self.directory], check=True)

    def node(self, name: str) -> Node:
        """Start a node."""
        address = f"{NETWORK}.{self._next}"
        self._next += 1
        directory = self.directory / name
        rootfs, template = self.rootfs.path, self.directory / ".template"
        node = Node(name, address, directory, rootfs, template, self._hub.pid)
        self.nodes[name] = node
        hosts = ["127.0.0.1 localhost", *(f"{n.address} {n.name}" for n in self.nodes.values())]
        for each in self.nodes.values():
            each.write("/etc/hosts", "\n".join(hosts) + "\n")
        return node

    @property
    def hub(self) -> int:
        """The process whose network namespace has the bridge."""
        return self._hub.pid

    def unplug(self, node: Node) -> None:
        """Take a node's wire away, with its device `eth0`."""
        _ip(self.hub, f"link del {_port(node)}")

    def plug(self, node: Node, port: str) -> None:
        """Connect a node whose `eth0` somebody else made, with `port` as its other end."""
        _plug(self.hub, port, node)

    def remove(self, node: Node) -> None:
        """End a node and delete its files."""
        del self.nodes[node.name]
        node.close()


def _remove_leftovers(parent: Path) -> None:
    """Delete the files of runs that were killed; their processes ended with them."""
    for directory in parent.glob(f"{_PREFIX}*"):
        pid = directory.name.removeprefix(_PREFIX).partition("-")[0]
        if not Path(f"/proc/{pid}").exists():
            subprocess.run(["rm", "-rf", "--one-file-system", directory], check=True)


def family(pid: int) -> list[int]:
    """A process and all its descendants that are alive."""
    found, todo = [], [pid]
    while todo:
        pid = todo.pop()
        try:
            threads = list(Path(f"/proc/{pid}/task").iterdir())
            for thread in threads:
                todo += map(int, (thread / "children").read_text().split())
        except OSError:
            continue
        found.append(pid)
    return found


def peak_memory(pid: int) -> int:
    """Largest resident size so far of one process, in bytes; 0 when it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def _only_child(pid: int) -> int | None:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return None
    return int(children[0]) if children else None


def _expect_ready(process: subprocess.Popen[bytes], log: Path | None) -> None:
    assert process.stdout is not None
    select.select([process.stdout], [], [], PATIENCE)
    if os.read(process.stdout.fileno(), 100) != b"ready\n":
        process.kill()
        text = log.read_text(errors="replace") if log else ""
        raise RigError(f"this machine can't make namespaces: {text.strip()}")


def _plug(hub: int, port: str, node: Node) -> None:
    """Bring up a node's `eth0`, of which `port` in the hub's namespace is the other end."""
    _ip(hub, f"link set {port} master br0 up")
    _ip(node.pid, f"addr add {node.address}/24 dev eth0")
    _ip(node.pid, "link set eth0 up")
    if "cubic" in _CONGESTION_CONTROL.read_text().split():
        network = f"{node.address.rpartition('.')[0]}.0/24"
        _ip(node.pid, f"route change {network} dev eth0 src {node.address} congctl cubic")


def _port(node: Node) -> str:
    return f"v{node.address.rpartition('.')[2]}"


def _ip(pid: int, words: str) -> None:
    command = ["nsenter", "-t", str(pid), "-n", "--", "ip", *words.split()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RigError(f"ip {words}: {done.stderr.strip()}")
