# SPDX-License-Identifier: GPL-3.0-or-later
"""The cached Debian root file system that all nodes start from.

Building it takes a minute or two and some 300 MB of downloads, so it is kept until the list of
packages changes.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

SUITE = "sid"

#: What the nodes need, by what needs it. Nothing works without `core`.
GROUPS: Mapping[str, str] = {
    "core": "guix guile-zstd uidmap passwd mount zstd lzip gzip iproute2 sqlite3 python3 "
    "bash-static busybox-static curl strace procps ca-certificates",
    "programs": "python3-libtorrent python3-flask gunicorn python3-cryptography "
    "python3-zstandard python3-apscheduler python3-click python3-prometheus-client libgcrypt20",
    "transmission": "transmission-daemon transmission-cli",
    "qbittorrent": "qbittorrent-nox",
    "aria2": "aria2",
    "rtorrent": "rtorrent",
}

#: Not in Debian: pure Python, unpacked beside Debian's own.
WHEELS = ("bencode.py>=4.0",)

#: A root that lacks a group is tried anew after this many seconds.
RETRY_MISSING = 12 * 3600

HERE = Path(__file__).resolve().parent


class RigError(Exception):
    """This machine can't run the rig; the text says what to do about it."""


class ArchiveError(RigError):
    """Debian's archive can't install something that is needed, today."""


@dataclass(frozen=True, slots=True)
class RootFs:
    """A root file system that is ready for use.

    Attributes:
        path: its directory.
        missing: for each group of `GROUPS` that could not be installed, why.
    """

    path: Path
    missing: Mapping[str, str]


def cache_directory(environ: Mapping[str, str] = os.environ) -> Path:
    """Where root file systems are kept: `NARSWARM_E2E_CACHE`, else below `~/.cache`."""
    if named := environ.get("NARSWARM_E2E_CACHE"):
        return Path(named).absolute()
    base = environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "narswarm" / "e2e"


def mirror() -> str:
    """The Debian mirror that this machine's apt uses, else the default one."""
    command = ["apt-get", "indextargets", "--format", "$(REPO_URI) $(CODENAME)", "ORIGIN: Debian"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    except OSError:
        lines = ""
    for line in lines.splitlines():
        uri, _, codename = line.partition(" ")
        if not codename.endswith(("-security", "-updates", "-backports")):
            return uri
    return "http://deb.debian.org/debian"


def check_machine() -> None:
    """Raise `RigError` unless this machine can make and run nodes."""
    if sys.platform != "linux" or os.geteuid() != 0:
        raise RigError("the end-to-end tests make namespaces: run them as root on Linux")
    needed = ["unshare", "nsenter", "setpriv", "ip", "pivot_root"]
    if lacking := [tool for tool in needed if shutil.which(tool) is None]:
        raise RigError(f"the end-to-end tests need {', '.join(lacking)}")


def rootfs(cache: Path) -> RootFs:
    """The root file system in `cache`, built if need be.

    Raises:
        ArchiveError: the archive can't install `core` today.
        RigError: it can't be built here.
    """
    check_machine()
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        # One of several runs builds, the others wait for it.
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _up_to_date(cache)


def _up_to_date(cache: Path) -> RootFs:
    path, stamp = cache / "rootfs", cache / "rootfs.stamp"
    missing_file = cache / "rootfs.missing"
    want = "\n".join(
        [SUITE, *(f"{name}={words}" for name, words in GROUPS.items()), *WHEELS, _script_text()]
    )
    fresh = stamp.exists() and stamp.read_text() == want and path.is_dir()
    if fresh and missing_file.stat().st_size:
        fresh = time.time() - stamp.stat().st_mtime < RETRY_MISSING
    if not fresh:
        _build(cache, path)
        stamp.write_text(want)
    missing = dict(line.split(": ", 1) for line in missing_file.read_text().splitlines())
    for reason in missing.values():
        print(f"*** rig: {reason}", file=sys.stderr)
    return RootFs(path, missing)


def _script_text() -> str:
    return (HERE / "rootfs.sh").read_text()


def _build(cache: Path, path: Path) -> None:
    if not (shutil.which("mmdebstrap") or shutil.which("debootstrap")):
        raise RigError("the end-to-end tests need mmdebstrap or debootstrap")
    new, log = cache / "rootfs.new", cache / "build.log"
    print(f"rig: building {path} (log in {log})", file=sys.stderr)
    _remove(new)
    groups = [f"{name}={','.join(words.split())}" for name, words in GROUPS.items()]
    with log.open("w") as out:
        done = subprocess.run(
            ["bash", HERE / "rootfs.sh", new, SUITE, mirror(), *groups],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            check=False,
        )
    missing = cache / "rootfs.new.missing"
    if done.returncode == 3:
        raise ArchiveError(missing.read_text().strip())
    if done.returncode:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        raise RigError(f"building the root file system failed, see {log}:\n{tail}")
    _unpack_wheels(cache, new)
    _remove(path)
    new.rename(path)
    missing.rename(cache / "rootfs.missing")


def _unpack_wheels(cache: Path, root: Path) -> None:
    wheels = cache / "wheels"
    shutil.rmtree(wheels, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", "--dest", str(wheels), *WHEELS]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RigError(f"{' '.join(command)}: {done.stderr.strip()}")
    (python,) = (root / "usr" / "bin").glob("python3.[0-9][0-9]")
    target = root / "usr/local/lib" / python.name / "dist-packages"
    target.mkdir(parents=True, exist_ok=True)
    for wheel in wheels.iterdir():
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(target)


def _remove(path: Path) -> None:
    """Delete a root file system, and nothing that happens to be mounted in it."""
    if path.exists():
        subprocess.run(["rm", "-rf", "--one-file-system", path], check=True)
