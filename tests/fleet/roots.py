# SPDX-License-Identifier: GPL-3.0-or-later
"""Cached root file systems that boot: Debian or Ubuntu with systemd, SSH and what each role needs.

The roles ask apt for packages only where one is missing, so a machine made from these needs no
network; but no service is enabled, as on a machine where nobody has set anything up.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tests.e2e.rig.rootfs import ArchiveError, RigError, mirror

_SYSTEM = (
    "systemd systemd-sysv dbus openssh-server python3 python3-venv nftables ca-certificates"
    " libgcrypt20 iproute2 procps openssl curl"
)
_LIBRARIES = (
    "python3-libtorrent python3-zstandard python3-cryptography python3-click python3-flask"
    " gunicorn python3-apscheduler python3-prometheus-client"
)


class Image(NamedTuple):
    """What a root file system is made of.

    Attributes:
        suite: of the distribution.
        packages: what is installed beside the base.
        ubuntu: whether it is Ubuntu's archive that they come from, and not Debian's.
        cached: packages that apt has, to install them later.
    """

    suite: str
    packages: str
    ubuntu: bool = False
    cached: str = ""


ROOTS: Mapping[str, Image] = {
    "bookworm": Image("bookworm", f"{_SYSTEM} nginx redis-server postgresql"),
    "trixie": Image("trixie", f"{_SYSTEM} nginx redis-server postgresql"),
    # No wheels of libtorrent and zstandard are made for the latest Python; Debian has them.
    "guix": Image("sid", f"{_SYSTEM} guix guile-zstd uidmap zstd lzip gzip {_LIBRARIES}"),
    # Each Ubuntu has apt, but it isn't among what its archive calls required.
    "noble": Image("noble", f"{_SYSTEM} apt nginx", ubuntu=True),
    # What hosters give: a system that is reached by SSH, and an archive that it gets the rest from.
    "bare": Image(
        "trixie",
        "systemd systemd-sysv dbus openssh-server python3 iproute2",
        cached="certbot curl nginx nftables python3-apt python3-venv ca-certificates libgcrypt20"
        " libstdc++6 procps",
    ),
}
_UBUNTU = "http://archive.ubuntu.com/ubuntu"
#: The keys of Ubuntu's archive, which Debian 12 has no package of, and the SHA-256 of that file.
_KEYS = f"{_UBUNTU}/pool/main/u/ubuntu-keyring/ubuntu-keyring_2023.11.28.1_all.deb"
_KEYS_SHA256 = "36de43b15853ccae0028e9a767613770c704833f82586f28eb262f0311adb8a8"
_DISABLED = ("nginx", "redis-server", "postgresql", "guix-daemon", "guix-publish")
_APT = (
    'Acquire::Check-Valid-Until "false"',
    'Acquire::Check-Date "false"',
    'Acquire::Languages "none"',
    'Acquire::Retries "3"',
    'APT::Install-Recommends "false"',
)
_NOT_WANTED = ("man", "info", "doc", "locale")
_ARCHIVE_ERRORS = (
    "Unable to locate package",
    "unmet dependencies",
    "has no installation candidate",
)


def root(cache: Path, name: str) -> Path:
    """The root file system of this name in `cache`, built if need be.

    Raises:
        ArchiveError: Debian's archive can't install it today.
        RigError: it can't be built here.
    """
    cache.mkdir(parents=True, exist_ok=True)
    path, stamp = cache / name, cache / f"{name}.stamp"
    with (cache / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        want = repr((ROOTS[name], _DISABLED, _APT, _NOT_WANTED))
        if not (stamp.exists() and stamp.read_text() == want and path.is_dir()):
            stamp.unlink(missing_ok=True)
            _build(path, ROOTS[name])
            stamp.write_text(want)
    return path


def all_roots(cache: Path) -> dict[str, Path]:
    """The root file systems by name; what isn't there is built at the same time.

    Raises:
        ArchiveError: Debian's archive can't install one today.
        RigError: one can't be built here.
    """
    with ThreadPoolExecutor() as pool:
        return dict(zip(ROOTS, pool.map(lambda name: root(cache, name), ROOTS), strict=True))


def _ubuntus_keys(cache: Path) -> Path:
    """A file with the keys of Ubuntu's archive."""
    path = cache / "ubuntu-archive-keyring.gpg"
    if not path.exists():
        with urllib.request.urlopen(_KEYS, timeout=60) as answer:
            content = answer.read()
        if hashlib.sha256(content).hexdigest() != _KEYS_SHA256:
            raise RigError(f"{_KEYS}: isn't the file that it was")
        package, tree = cache / "ubuntu-keyring.deb", cache / "ubuntu-keyring"
        package.write_bytes(content)
        subprocess.run(["dpkg-deb", "--extract", package, tree], check=True)
        (tree / "usr/share/keyrings" / path.name).rename(path)
        shutil.rmtree(tree)
        package.unlink()
    return path


def _build(path: Path, image: Image) -> None:
    if shutil.which("mmdebstrap") is None:
        raise RigError("the fleet's tests need mmdebstrap")
    print(f"rig: building {path}", file=sys.stderr)
    subprocess.run(["rm", "-rf", "--one-file-system", path], check=True)
    command = ["mmdebstrap", "--mode=root", "--format=directory", "--variant=minbase"]
    command += [f"--aptopt={option}" for option in _APT]
    command += [f"--dpkgopt=path-exclude=/usr/share/{each}/*" for each in _NOT_WANTED]
    command += [f"--include={','.join(image.packages.split())}"]
    if image.cached:
        get = f"apt-get --yes --download-only install {image.cached}"
        command += ["--skip=cleanup/apt", f'--customize-hook=chroot "$1" {get}']
    if image.ubuntu:
        command += [f"--keyring={_ubuntus_keys(path.parent)}", image.suite, str(path)]
        command += [f"deb {_UBUNTU} {image.suite} main universe"]
    else:
        command += [image.suite, str(path), mirror()]
    done = subprocess.run(
        # What packages mount or start ends with these namespaces.
        ["unshare", "--mount", "--pid", "--fork", "--kill-child=KILL", *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        tail = "\n".join(done.stdout.splitlines()[-15:])
        kind = ArchiveError if any(each in done.stdout for each in _ARCHIVE_ERRORS) else RigError
        raise kind(f"building {path} failed:\n{tail}")
    disable = ["systemctl", f"--root={path}", "--quiet", "disable"]
    for service in _DISABLED:
        # Not every root has every service.
        subprocess.run([*disable, service], capture_output=True, check=False)
    subprocess.run(
        ["systemctl", f"--root={path}", "--quiet", "mask", "gnu-store.mount"], check=True
    )
    enable = ["systemctl", f"--root={path}", "--quiet", "enable", "ssh", "systemd-networkd"]
    subprocess.run(enable, check=True)
