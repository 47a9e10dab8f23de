# SPDX-License-Identifier: GPL-3.0-or-later
"""Machines that boot: systemd-nspawn on copies of a root file system, in a network of their own.

One process holds the namespaces of all: a network that leads nowhere, mounts that vanish with it,
and process ids. The kernel ends it with this process, however this process ends, and with it all
that the machines run.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from tests.e2e.rig.nodes import PATIENCE, CommandError, wait_for
from tests.e2e.rig.rootfs import RigError

NETWORK = "10.98.0"
_PREFIX = "narswarm-fleet-"
_DIE_WITH_PARENT = ("setpriv", "--pdeathsig", "KILL")
#: systemd-nspawn ends with this code when the machine asks to be started anew.
_REBOOT = 133
#: The first process of the namespaces, which also reaps orphans.
_HOLD = "echo ready; exec >&-; while :; do sleep 3600 & wait; done"

_NETWORK_FILE = """\
[Match]
Name=host0

[Network]
Address={address}/24
LinkLocalAddressing=ipv6
IPv6AcceptRA=no
"""


class Machine:
    """One machine. Made by `Fleet.boot`.

    Attributes:
        name: of the host.
        address: its IPv4 address.
    """

    def __init__(self, fleet: Fleet, name: str, address: str, root: Path) -> None:
        self.name = name
        self.address = address
        self._fleet = fleet
        self._image = root
        self._directory = directory = fleet.directory / name
        merged = directory / "root"
        merged.mkdir(parents=True)
        self._install()
        self._command = [
            *fleet.cgroup(name),
            *fleet.enter(),
            *("systemd-nspawn", "--quiet", "--boot", "--register=no", "--keep-unit"),
            *("--console=pipe", "--link-journal=no", "--resolv-conf=off", "--timezone=off"),
            # What is lost when this machine fails is of no use to anybody.
            "--suppress-sync=yes",
            *("--kill-signal=SIGRTMIN+3", "--network-bridge=br0"),
            *("--machine", name, "--directory", str(merged)),
        ]
        self._log = directory / "console"
        self._process = self._start()

    def _install(self) -> None:
        """Its files: those of the image, and what makes it this machine."""
        upper, work = self._directory / "upper", self._directory / "work"
        upper.mkdir()
        work.mkdir()
        files = {
            "etc/hostname": f"{self.name}\n",
            "etc/systemd/network/10-host0.network": _NETWORK_FILE.format(address=self.address),
            "root/.ssh/authorized_keys": self._fleet.public_key(),
            "etc/hosts": self._fleet.hosts(),
            "etc/machine-id": "",
            "etc/resolv.conf": "",
        }
        for path, content in files.items():
            (upper / path).parent.mkdir(parents=True, exist_ok=True)
            (upper / path).write_text(content)
        (upper / "root").chmod(0o700)
        (upper / "root/.ssh").chmod(0o700)
        options = f"lowerdir={self._image},upperdir={upper},workdir={work}"
        merged = str(self._directory / "root")
        self._fleet.inside("mount", "-t", "overlay", "overlay", "-o", options, merged)

    def _start(self) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            return subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # The machine is a world of its own: one of cgroups in their second version.
                env={**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
                start_new_session=True,
            )

    def wait(self) -> None:
        """Wait until it has booted and takes commands."""

        def ready() -> bool:
            if self._process.poll() is not None:
                raise CommandError(f"{self.name} ended at once:\n{self.console()}")
            done = self.run("systemctl", "is-system-running", check=False)
            return done.stdout.strip() in {"running", "degraded"}

        try:
            wait_for(f"{self.name} to boot", ready)
        except Exception as error:
            raise CommandError(f"{error}\n{self.console()}") from error

    def console(self) -> str:
        """The end of what it showed while it booted."""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-20:])

    def run(
        self, *command: str, check: bool = True, stdin: str = "", timeout: float = 300.0
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the machine, by a shell over SSH, as root.

        Raises:
            CommandError: it failed, and `check` is true.
        """
        line = [*self._fleet.enter("--net"), *self._fleet.ssh(), f"root@{self.address}", *command]
        done = subprocess.run(
            line, input=stdin, capture_output=True, text=True, check=False, timeout=timeout
        )
        if check and done.returncode:
            raise CommandError(
                f"{self.name}: {' '.join(command)}: exit code {done.returncode}\n"
                f"{done.stdout}{done.stderr}"
            )
        return done

    def write(self, path: str, content: str, mode: int = 0o644) -> None:
        """Make a file on the machine, with its directories."""
        script = f"mkdir -p {Path(path).parent} && cat > {path} && chmod {mode:o} {path}"
        self.run(script, stdin=content)

    def reboot(self) -> None:
        """Have it start anew, and wait until it has."""
        self.run("systemctl", "reboot", check=False)
        code = self._process.wait(PATIENCE)
        if code != _REBOOT:
            raise CommandError(f"{self.name} ended with code {code}:\n{self.console()}")
        self._process = self._start()
        self.wait()

    def replace(self, image: Path | None = None) -> None:
        """Lose all that it had, and be a bare machine with the same name and address.

        Args:
            image: another root file system.
        """
        self.run("systemctl", "poweroff", check=False)
        self._process.wait(PATIENCE)
        self._fleet.inside("umount", str(self._directory / "root"))
        for each in ("upper", "work"):
            subprocess.run(["rm", "-rf", self._directory / each], check=True)
        if image is not None:
            self._image = image
            self._fleet.know(self.name, self.address, image)
        self._install()
        self._process = self._start()
        self.wait()

    def ended(self) -> None:
        """Wait for its end, which the fleet's brings about."""
        self._process.wait()


class Fleet:
    """The namespaces that all machines are in, and how they are reached.

    Args:
        cache: where working directories may be made.
        addresses: the machines to come, by name, with the last part of their addresses.

    Attributes:
        addresses: the machines that there may be, by name.
        machines: those that were booted.
        directory: what lasts as long as the fleet.
    """

    def __init__(self, cache: Path, addresses: Mapping[str, int]) -> None:
        check_machine()
        cache.mkdir(parents=True, exist_ok=True)
        self._cache = cache
        self.addresses = {name: f"{NETWORK}.{last}" for name, last in addresses.items()}
        self.machines: dict[str, Machine] = {}

    def __enter__(self) -> Self:
        self.directory = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=self._cache))
        self._cgroups: list[Path] = []
        namespaces = ["--net", "--mount", "--pid", "--fork", "--mount-proc"]
        self._holder = subprocess.Popen(
            [*_DIE_WITH_PARENT, "unshare", *namespaces, "--kill-child=KILL", "sh", "-c", _HOLD],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._holder.stdout is not None
        with self._holder.stdout as ready:
            assert ready.readline() == b"ready\n"
        children = Path(f"/proc/{self._holder.pid}/task/{self._holder.pid}/children")
        self._init = int(children.read_text())
        for words in (
            "ip link set lo up",
            "ip link add br0 type bridge",
            f"ip addr add {NETWORK}.1/24 dev br0",
            "ip link set br0 up",
        ):
            self.inside(*words.split())
        keygen = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.directory / "key")]
        subprocess.run(keygen, check=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._holder.kill()
        self._holder.wait()
        for machine in self.machines.values():
            machine.ended()
        for cgroup in self._cgroups:
            wait_for(f"the end of {cgroup.name}", lambda cgroup=cgroup: _removed(cgroup))  # type: ignore[misc]
        subprocess.run(["rm", "-rf", "--one-file-system", self.directory], check=True)

    def boot(self, name: str, root: Path) -> Machine:
        """Start a machine; `Machine.wait` waits for it."""
        machine = self.machines[name] = Machine(self, name, self.addresses[name], root)
        self.know(name, machine.address, root)
        return machine

    def know(self, name: str, address: str, root: Path) -> None:
        """Trust a machine's SSH key, which is that of its root file system."""
        key = (root / "etc/ssh/ssh_host_ed25519_key.pub").read_text()
        with (self.directory / "known_hosts").open("a") as known:
            known.write(f"{address},{name} {key}")

    def copy(self, source: Path, name: str, target: str) -> None:
        """Put a directory of this machine into one of the fleet's, as if it had come with it."""
        self.inside("cp", "-r", str(source), f"{self.directory}/{name}/root{target}")

    def enter(self, *namespaces: str) -> list[str]:
        """What makes a command run in the fleet's namespaces, all or some."""
        which = namespaces or ("--net", "--mount", "--pid")
        return [*_DIE_WITH_PARENT, "nsenter", f"--target={self._init}", *which, "--"]

    def inside(self, *command: str) -> None:
        """Run a command in the fleet's namespaces."""
        subprocess.run([*self.enter(), *command], check=True)

    def ssh(self) -> list[str]:
        """The command that reaches a machine."""
        return ["ssh", *self.ssh_options(), "-i", str(self.directory / "key")]

    def ssh_options(self) -> list[str]:
        """How the machines' keys are known, and one connection serves many commands."""
        return [
            *("-o", f"UserKnownHostsFile={self.directory}/known_hosts"),
            *("-o", "GlobalKnownHostsFile=/dev/null", "-o", "BatchMode=yes"),
            *("-o", "ConnectTimeout=5", "-F", "/dev/null", "-o", "LogLevel=ERROR"),
        ]

    def public_key(self) -> str:
        """The key that the machines let in."""
        return (self.directory / "key.pub").read_text()

    def hosts(self) -> str:
        """/etc/hosts of all machines."""
        lines = ["127.0.0.1 localhost", "::1 localhost"]
        return "\n".join([*lines, *(f"{a} {n}" for n, a in self.addresses.items())]) + "\n"

    def cgroup(self, name: str) -> Sequence[str]:
        """What makes a command start in control groups of its own."""
        script = ""
        for mount in _hierarchies():
            cgroup = mount / f"{self.directory.name}-{name}"
            cgroup.mkdir(exist_ok=True)
            self._cgroups.append(cgroup)
            script += f"echo $$ > {cgroup}/cgroup.procs; "
        return ["sh", "-c", f'{script}exec "$@"', "sh"]


def check_machine() -> None:
    """Raise `RigError` unless this machine can boot others."""
    if os.geteuid() != 0:
        raise RigError("the fleet's tests boot machines: run them as root")
    needed = ["systemd-nspawn", "unshare", "nsenter", "setpriv", "ip", "ssh", "ssh-keygen"]
    if lacking := [tool for tool in needed if shutil.which(tool) is None]:
        raise RigError(f"the fleet's tests need {', '.join(lacking)}")
    if not _hierarchies():
        raise RigError("the fleet's tests need a mounted cgroup2 file system")


def _hierarchies() -> list[Path]:
    """Where control groups of the second version are, and systemd's own of the first."""
    found = []
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, target, kind, options, *_ = line.split(" ")
        if kind == "cgroup2" or (kind == "cgroup" and "name=systemd" in options.split(",")):
            found.append(Path(target))
    return found


def _removed(cgroup: Path) -> bool:
    """Remove a control group and those in it, if their processes are gone."""
    with contextlib.suppress(OSError):
        for directory, _, _ in os.walk(cgroup, topdown=False):
            Path(directory).rmdir()
    return not cgroup.exists()
