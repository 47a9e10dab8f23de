# SPDX-License-Identifier: GPL-3.0-or-later
"""How fast `mkmeta create` is, beside zstd alone at the same level on the same file.

    python3 bench/mkmeta.py [ROUNDS] [MEGABYTES]

`mkmeta create` does more than zstd: it checks that the file is a NAR, hashes it, and hashes what it
writes three times. The file is a NAR of one file, which is made of the files of /usr/lib, so about
as mixed as a store. The commands take turns, beginning with another one in each round; all read the
file from memory and write to the same directory.

Prints a table: median, slowest and fastest round in MB of NAR a second, CPU seconds for a GB, the
size of the output against the file, and peak memory.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from narswarm.nar import FILE_END, MAGIC, file_start

ROUNDS = 5
MEGABYTES = 512
CORPUS = Path("/usr/lib")


class Measured(NamedTuple):
    """One run: seconds, seconds of all cores, bytes of peak memory, bytes of output."""

    seconds: float
    cpu: float
    memory: int
    output: int


def corpus(size: int) -> Iterator[bytes]:
    """Give the files of the corpus one after the other, from the first again if they don't do."""
    paths = sorted(path for path in CORPUS.rglob("*") if path.is_file() and not path.is_symlink())
    left = size
    while left:
        for path in paths:
            with path.open("rb") as file:
                while data := file.read(min(left, 1_000_000)):
                    left -= len(data)
                    yield data


def write_nar(path: Path, size: int) -> None:
    """Write a NAR of one file of `size` bytes."""
    with path.open("wb") as file:
        file.write(MAGIC + file_start(size, executable=False))
        for data in corpus(size):
            file.write(data)
        file.write(FILE_END[size % 8])


def measure(command: list[str], output: Path) -> Measured:
    """Run a command that writes to a directory, and empty that."""
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    written = list(output.iterdir())
    size = sum(path.stat().st_size for path in written)
    for path in written:
        path.unlink()
    return Measured(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, size)


def main() -> None:
    """Measure and print."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    size = (int(sys.argv[2]) if len(sys.argv) > 2 else MEGABYTES) * 1_000_000
    os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parents[1])
    with tempfile.TemporaryDirectory(prefix="narswarm-bench-") as directory:
        nar, output = Path(directory, "corpus.nar"), Path(directory, "out")
        write_nar(nar, size)
        output.mkdir()
        zstd = ["zstd", "--quiet", "--no-check", "-9", str(nar), "-o", str(output / "out.zst")]
        commands = {
            "mkmeta create": [
                sys.executable,
                "-m",
                "mkmeta",
                "create",
                "-o",
                str(output),
                str(nar),
            ],
            "zstd -9 -T0": [*zstd, "-T0"],
            "zstd -9": [*zstd, "--single-thread"],
        }
        found: dict[str, list[Measured]] = {name: [] for name in commands}
        names = list(commands)
        for number in range(rounds):
            for offset in range(len(names)):
                name = names[(number + offset) % len(names)]
                found[name].append(measure(commands[name], output))
        report(found, nar.stat().st_size)


def report(found: dict[str, list[Measured]], size: int) -> None:
    """Print the table."""
    version = subprocess.run(["zstd", "--version"], check=True, capture_output=True, text=True)
    rounds = len(next(iter(found.values())))
    print(f"NAR of {size / 1e6:.0f} MB, {rounds} rounds, {os.cpu_count()} cores")
    print(version.stdout.strip())
    print(
        f"{'':14}{'MB/s':>7}{'slowest':>9}{'fastest':>9}{'ratio':>8}{'CPU':>8}{'output':>8}{'memory':>10}"
    )
    base = statistics.median(run.seconds for run in found["zstd -9"])
    for name, runs in found.items():
        speeds = sorted(size / run.seconds / 1e6 for run in runs)
        middle = statistics.median(run.seconds for run in runs)
        share = runs[0].output / size
        cpu = statistics.median(run.cpu for run in runs) / size * 1e9
        memory = max(run.memory for run in runs)
        print(
            f"{name:14}{size / middle / 1e6:7.1f}{speeds[0]:9.1f}{speeds[-1]:9.1f}"
            f"{base / middle:7.2f}x{cpu:8.1f}{share:8.1%}{memory / 2**20:6.0f} MiB"
        )


if __name__ == "__main__":
    main()
