# SPDX-License-Identifier: GPL-3.0-or-later
"""The fleet under test: two trackers, two seed boxes, one user's machine, and Ansible beside them.

One more machine, which is booted by the test that needs it, becomes a tracker by docs/operator.md.

| machine | system | is |
|---|---|---|
| t1 | Debian 13 | tracker, with the Redis and PostgreSQL of both |
| t2 | Debian 12 | tracker, which moves to Ubuntu 24.04 |
| s1 | Debian sid | seed box with guix-daemon, offers its store, and fetches by the seeder |
| s2 | Ubuntu 24.04 | seed box without Guix, which offers a directory of NARs |
| u  | Debian sid | the user's machine: guix-daemon 1.5, no substitute server |
"""

from __future__ import annotations

import base64
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

from tests.e2e.rig.nodes import PATIENCE, CommandError, wait_for
from tests.fleet import roots, wheels
from tests.fleet.machines import Fleet, Machine

#: The machine that becomes a tracker by docs/operator.md, with the name that it has there.
GUIDED = "tracker1.example.org"
ADDRESSES = {"t1": 11, "t2": 12, GUIDED: 13, "s1": 21, "s2": 22, "u": 31}
SUITES = {"t1": "trixie", "t2": "bookworm", "s1": "guix", "s2": "noble", "u": "guix"}
CERTIFIED = ("t1", "t2", GUIDED)
TRACKERS = ("https://t1/announce", "https://t2/announce")
PUBLISH_PORT = 8081
#: The machine whose keys count, as docs/operator.md calls it: s1.
_WITH_GUIX = "guix-machine.example.org"
#: What each tracker's page calls itself: what a settings file may have, and not only letters.
TITLE = 'Flotte "Süd" \\ 🐧'
#: Bytes that s2 may use for payloads.
MAX_DISK = 3 << 30
#: When s2 sends how much.
SCHEDULE = ("mon-fri 08:00-18:00 up=100MB/s", "22:00-06:00 up=200MB/s")
PASSWORD = "fleetpassword"  # noqa: S105  of databases that nobody else reaches

_ADD = """\
(use-modules (guix store) (ice-9 match))
(match (command-line)
  ((_ pairs ...)
   (with-store store
     (let loop ((pairs pairs))
       (match pairs
         ((name file rest ...)
          (format #t "~a~%" (add-to-store store name #t "sha256" file))
          (loop rest))
         (() #t))))))
"""

_PUBLISH = f"""\
[Unit]
PartOf=guix-daemon.service
[Service]
Environment=GUILE_AUTO_COMPILE=0
ExecStart=guix publish --listen=127.0.0.1 --port={PUBLISH_PORT} -C gzip:1
[Install]
WantedBy=multi-user.target
"""


class Recap(NamedTuple):
    """What a run of Ansible did.

    Attributes:
        code: its exit code.
        changed: how many tasks changed something, by machine.
        output: what it printed.
    """

    code: int
    changed: Mapping[str, int]
    output: str


class Deployment:
    """All machines, booted and bare, with items in the seed boxes that nobody offers yet."""

    def __init__(self, fleet: Fleet, cache: Path) -> None:
        self.fleet = fleet
        self._wheelhouse = wheels.wheelhouse(cache)
        self._directory = fleet.directory
        # An operator's checkout, with an inventory and backups of its own.
        self.checkout = fleet.directory / "checkout"
        for each in ("ansible", "systemd"):
            shutil.copytree(wheels.CHECKOUT / each, self.checkout / each)
        (self.ansible / "inventory").mkdir(exist_ok=True)
        self.items: dict[str, str] = {}
        self.settings: dict[str, Any] = {}
        self.wheel = Path()

    @classmethod
    def bare(cls, fleet: Fleet, cache: Path) -> Self:
        """Boot all machines and put items into the seed boxes."""
        deployment = cls(fleet, cache)
        images = roots.all_roots(cache)
        for name, suite in SUITES.items():
            fleet.boot(name, images[suite])
        for machine in fleet.machines.values():
            machine.wait()
        deployment._know_machines()
        deployment._give_certificates()
        deployment._make_key()
        deployment._fill_seed_boxes()
        return deployment

    def __getitem__(self, name: str) -> Machine:
        return self.fleet.machines[name]

    @property
    def ansible(self) -> Path:
        """Where the operator runs Ansible."""
        return self.checkout / "ansible"

    @property
    def bin(self) -> Path:
        """Programs that an operator finds before others."""
        return self.checkout / "bin"

    def _know_machines(self) -> None:
        """Have the operator's `ssh` reach the machines by their names."""
        config = self._directory / "ssh_config"
        names = {**self.fleet.addresses, _WITH_GUIX: self["s1"].address}
        hosts = (f"Host {name}\nHostName {address}\n" for name, address in names.items())
        config.write_text("".join(hosts) + "Host *\nUser root\n")
        # Of an option that is given twice the last one counts.
        command = [*self.fleet.ssh(), "-F", str(config)]
        command[0] = shutil.which("ssh") or "ssh"
        copy = [shutil.which("scp") or "scp", "-S", str(self.bin / "ssh")]
        self.bin.mkdir()
        for name, line in {"ssh": command, "scp": copy}.items():
            wrapper = self.bin / name
            wrapper.write_text(f'#!/bin/sh\nexec {shlex.join(line)} "$@"\n')
            wrapper.chmod(0o755)

    # -- what an operator has to bring -----------------------------------------------------------

    def _give_certificates(self) -> None:
        """An authority that all machines trust, and certificates of the trackers."""
        openssl = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt"]
        openssl += ["ec_paramgen_curve:prime256v1", "-nodes", "-days", "30"]
        ca, key = self._directory / "ca.pem", self._directory / "ca.key"
        usage = ["-addext", "keyUsage=critical,keyCertSign,cRLSign"]
        _quiet(*openssl, "-keyout", str(key), "-out", str(ca), "-subj", "/CN=fleet", *usage)
        for name in CERTIFIED:
            pem, secret = self._directory / f"{name}.pem", self._directory / f"{name}.key"
            signed = ["-CA", str(ca), "-CAkey", str(key), "-addext", f"subjectAltName=DNS:{name}"]
            signed += ["-addext", "basicConstraints=critical,CA:false"]
            out = ["-keyout", str(secret), "-out", str(pem), "-subj", f"/CN={name}"]
            _quiet(*openssl, *out, *signed)
        for name in self.fleet.machines:
            self.trust(name)
            if name in CERTIFIED:
                self.certify(name)

    def _make_key(self) -> None:
        """The key by which s1 publishes."""
        file = self.ansible / "publisher.key"
        _quiet("openssl", "genpkey", "-algorithm", "ed25519", "-out", str(file))
        command = ["openssl", "pkey", "-in", str(file), "-pubout", "-outform", "DER"]
        done = subprocess.run(command, check=True, capture_output=True)
        self.publisher = base64.b64encode(done.stdout[-32:]).decode()

    def trust(self, name: str) -> None:
        """Have a machine trust the authority."""
        ca = (self._directory / "ca.pem").read_text()
        self[name].write("/usr/local/share/ca-certificates/fleet.crt", ca)
        self[name].run("update-ca-certificates")

    def certify(self, name: str) -> None:
        """Have a tracker have its certificate."""
        for kind, mode in (("pem", 0o644), ("key", 0o600)):
            text = (self._directory / f"{name}.{kind}").read_text()
            self[name].write(f"/etc/ssl/fleet/tracker.{kind}", text, mode)

    def _fill_seed_boxes(self) -> None:
        """Items for s1's store, and for s2 NARs with the narinfos that s1's Guix signed.

        The one to be fetched during an upgrade is in both: a box that restarts serves nobody.
        """
        box = self["s1"]
        for machine in (box, self["u"]):
            machine.write("/root/add.scm", _ADD)
            # A daemon's child that serves an idle client may hang over the signal to end.
            drop_in = "/etc/systemd/system/guix-daemon.service.d/patience.conf"
            machine.write(drop_in, "[Service]\nTimeoutStopSec=5\n")
            machine.run("systemctl enable --now guix-daemon")
        box.run(
            "guix archive --generate-key && guix archive --authorize </etc/guix/signing-key.pub"
        )
        self["u"].run(
            "guix archive --authorize", stdin=box.run("cat /etc/guix/signing-key.pub").stdout
        )
        (self.ansible / "acl").write_text(box.run("cat /etc/guix/acl").stdout)
        names = ("first", "upgrade", "broken", "reboot", "restored", "full", "box2")
        self.add(*names)
        box.write("/etc/systemd/system/publish.service", _PUBLISH)
        box.run("systemctl enable --now publish")
        self.offer("s2", "box2", "upgrade")
        box.run(f"guix gc -D {self.items['box2']}")

    def offer(self, target: str, *names: str) -> None:
        """Put NARs of s1's items, with the narinfos that its Guix signs, into a box' directory."""
        url = f"http://127.0.0.1:{PUBLISH_PORT}"
        fetch = "curl -sSf --retry 50 --retry-connrefused --retry-delay 1"
        script = "rm -rf /root/nars && mkdir /root/nars && cd /root/nars"
        for name in names:
            base = self.items[name].removeprefix("/gnu/store/")
            script += f" && {fetch} -o {base[:32]}.narinfo {url}/{base[:32]}.narinfo"
            script += f" && {fetch} {url}/nar/gzip/{base} | gunzip >{base}.nar"
        packed = self["s1"].run(f"{script} && tar -C /root -c nars | base64").stdout
        self[target].run("base64 -d | tar -C /srv -x", stdin=packed)

    def add(self, *names: str) -> None:
        """Put items into s1's store: directories with noise and text."""
        for name in names:
            self["s1"].run(
                f"mkdir -p /root/items/{name} && cd /root/items/{name} &&"
                f" head -c 400000 /dev/urandom >noise && seq 1 50000 >numbers && echo {name} >name"
            )
        pairs = " ".join(f"fleet-{name} /root/items/{name}" for name in names)
        shown = self["s1"].run(f"GUILE_AUTO_COMPILE=0 guix repl -- /root/add.scm {pairs}").stdout
        self.items.update(zip(names, shown.split(), strict=True))

    # -- Ansible ---------------------------------------------------------------------------------

    def inventory(self, wheel: Path) -> dict[str, Any]:
        """What Ansible is told; `settings` come last."""

        def hosts(**machines: dict[str, Any]) -> dict[str, Any]:
            return {"hosts": machines}

        guixless = {"narswarm_acl": "{{ playbook_dir }}/acl"}
        guix = {"common_system_site_packages": True}
        tls = {
            "tracker_tls_certificate": "/etc/ssl/fleet/tracker.pem",
            "tracker_tls_key": "/etc/ssl/fleet/tracker.key",
        }
        common = {
            "ansible_user": "root",
            "ansible_python_interpreter": "/usr/bin/python3",
            "ansible_ssh_private_key_file": str(self._directory / "key"),
            "ansible_ssh_common_args": " ".join(self.fleet.ssh_options()),
            "narswarm_wheel": str(wheel),
            "narswarm_wheelhouse": str(self._wheelhouse),
            "narswarm_announce_urls": self.settings.get("announce", list(TRACKERS)),
            "narswarm_substitute_urls": [f"http://127.0.0.1:{PUBLISH_PORT}"],
            "activate_patience": int(PATIENCE),
            "stores_password": PASSWORD,
            "stores_listen": self["t1"].address,
            "stores_clients": [self["t1"].address, self["t2"].address],
            "tracker_settings": {
                "swarms": f"redis://:{PASSWORD}@{self['t1'].address}:6379/0",
                "index": f"postgresql://narswarm:{PASSWORD}@{self['t1'].address}/narswarm",
                "interval": 60,
                "title": TITLE,
                # What is null is as if it weren't there.
                "contact": None,
                **self.settings.get("tracker", {}),
            },
        }
        lan = {"private_network": True, "lsd": False, "dht": False}
        return {
            "all": {
                "vars": common,
                "hosts": {name: {"ansible_host": self[name].address} for name in SUITES},
                "children": {
                    "trackers": hosts(
                        t1={"tracker_domain": "t1", **tls, **guixless},
                        t2={"tracker_domain": "t2", **tls, **guixless},
                    ),
                    "stores": hosts(t1={}),
                    "seeders": hosts(
                        s1={
                            "seeder_settings": {**lan, "premake": "1 GiB"},
                            "seeder_publisher_key": "{{ playbook_dir }}/publisher.key",
                            **guix,
                        },
                        s2={
                            "seeder_settings": {
                                **lan,
                                "nars": "/srv/nars",
                                "max_disk": MAX_DISK,
                                "schedule": list(SCHEDULE),
                                "libtorrent": {"max_peerlist_size": 500},
                            },
                            **guixless,
                        },
                    ),
                    "substituters": hosts(
                        u={"substituter_settings": lan, **guix, **self.settings.get("user", {})},
                        s1={"substituter_settings": lan, "substituter_extension_only": True},
                    ),
                },
            }
        }

    def play(self, wheel: Path, *arguments: str) -> Recap:
        """Run site.yml with this wheel."""
        self.prepare(wheel)
        done = self._operate("ansible-playbook", "-i", "inventory", *arguments, "site.yml")
        recap = done.stdout.rpartition("PLAY RECAP")[2]
        found = re.findall(r"(?m)^(\w+) +: ok=\d+ +changed=(\d+)", recap)
        return Recap(done.returncode, {name: int(count) for name, count in found}, done.stdout)

    def prepare(self, wheel: Path) -> None:
        """Write the inventory, with this wheel and the settings of now."""
        self.wheel = wheel
        file = self.ansible / "inventory/hosts.json"
        file.write_text(json.dumps(self.inventory(wheel)))

    def operate(self, script: str, cwd: Path | None = None, **environment: str) -> str:
        """Have the operator run commands by a shell; what they printed.

        Args:
            script: the commands.
            cwd: where; in `ansible/` unless this says otherwise.
            environment: further variables.

        Raises:
            CommandError: one of them failed.
        """
        done = self._operate("bash", "-euc", script, cwd=cwd, **environment)
        if done.returncode:
            raise CommandError(f"{script}: exit code {done.returncode}\n{done.stdout}")
        return done.stdout

    def _operate(
        self, *command: str, cwd: Path | None = None, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        programs = (self.bin, Path(sys.executable).parent, os.environ["PATH"])
        done = subprocess.run(
            [*self.fleet.enter("--net"), *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            cwd=cwd or self.ansible,
            env={
                **os.environ,
                "PATH": os.pathsep.join(map(str, programs)),
                "ANSIBLE_NOCOLOR": "1",
                "ANSIBLE_LOCALHOST_WARNING": "0",
                "ANSIBLE_SSH_CONTROL_PATH_DIR": str(self._directory / "cp"),
                "ANSIBLE_LOCAL_TEMP": str(self._directory / "tmp"),
                "LC_ALL": "C.UTF-8",
                **environment,
            },
        )
        # pytest shows it when the test fails.
        print(done.stdout)
        return done

    # -- what is there ---------------------------------------------------------------------------

    def release(self, name: str) -> str:
        """Name of the release that a machine uses; "" when there is none."""
        done = self[name].run("readlink /opt/narswarm/current", check=False)
        return done.stdout.strip().rpartition("/")[2]

    def status(self, name: str) -> dict[str, Any]:
        """What `seeder status --json` says on a seed box."""
        answer: dict[str, Any] = json.loads(self[name].run("seeder status --json").stdout)
        return answer

    def build(self, name: str) -> str:
        """Have the user's machine fetch an item that it doesn't have; what guix said."""
        item = self.items[name]
        done = self["u"].run(f"guix gc -D {item}; guix build {item} 2>&1", check=False)
        print(done.stdout)
        assert self["u"].run(f"cat {item}/name").stdout == f"{name}\n"
        return done.stdout

    def torrent(self, name: str, tracker: str = "t1") -> dict[str, Any]:
        """What a tracker says of the only torrent of an item."""
        (torrent,) = json.loads(self["u"].run(self._torrents_of(name, tracker)).stdout)["torrents"]
        return dict(torrent)

    def announce(self, infohash: str, tracker: str = "t1", *options: str) -> str:
        """What a tracker answers to the user's machine that announces itself as a leecher."""
        quoted = "".join(f"%{byte:02x}" for byte in bytes.fromhex(infohash))
        query = f"info_hash={quoted}&peer_id=-XX0000-abcdefghijkl&port=7777&left=1"
        command = f"curl -sSf {shlex.join(options)} 'https://{tracker}/announce?{query}'"
        return self["u"].run(f"{command} | tr -cd '[:print:]'").stdout

    def _torrents_of(self, name: str, tracker: str) -> str:
        hash_part = self.items[name].removeprefix("/gnu/store/")[:32]
        url = f"https://{tracker}"
        return (
            f"curl -sSf {url}/{hash_part}.narinfo | sed -n 's/^NarHash: sha256://p' |"
            f" xargs -I@ curl -sSf {url}/v1/nar/@"
        )

    def udp_answer(self, tracker: str) -> tuple[int, int]:
        """What a tracker says to the user's machine that connects over UDP as transaction 7.

        Returns:
            action and transaction, which are 0 and 7 of a tracker that answers (BEP 15).
        """
        script = (
            "import socket, struct; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM);"
            " s.settimeout(5); s.sendto(struct.pack('>QII', 0x41727101980, 0, 7),"
            f" ('{tracker}', 6969)); print(*struct.unpack('>II', s.recv(16)[:8]))"
        )
        shown = self["u"].run(f"python3 -c {shlex.quote(script)}").stdout
        action, transaction = shown.split()
        return int(action), int(transaction)

    def wait_seeded(self, *names: str, tracker: str = "t1", seeders: int = 1) -> None:
        """Wait until a tracker lists items with so many seeders each."""
        for name in names:
            query = self._torrents_of(name, tracker)

            def seeded(query: str = query) -> bool:
                done = self["u"].run(query, check=False)
                if done.returncode or not done.stdout:
                    return False
                torrents = json.loads(done.stdout)["torrents"]
                return bool(sum(torrent["seeders"] for torrent in torrents) >= seeders)

            # A box whose substitute server didn't answer asks it again after a minute, then later.
            wait_for(f"{name} at {tracker}", seeded, 2 * PATIENCE)


def _quiet(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
