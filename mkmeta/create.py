# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes payload and torrent of a NAR, in one pass over its bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from mkmeta.inputs import NarInput
from mkmeta.output import Output
from narswarm.merkle import PieceHasher
from narswarm.metainfo import Metainfo
from narswarm.payload import CHUNK, FrameCompressor, file_name, max_length


@dataclass(frozen=True, slots=True)
class Made:
    """What was made of a NAR.

    Attributes:
        meta: the torrent.
        nar_size: bytes of the NAR.
        payload: where the payload is, None if it wasn't kept.
        torrent: where the torrent is, None if it wasn't written.
    """

    meta: Metainfo
    nar_size: int
    payload: Path | None = None
    torrent: Path | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be written.

    Attributes:
        directory: where to.
        force: whether to replace files that are there.
        torrent_only: whether the payload isn't kept.
        trackers: announce URLs for the torrent.
        comment: for people.
    """

    directory: Path
    force: bool = False
    torrent_only: bool = False
    trackers: Sequence[str] = ()
    comment: str | None = None


def create(
    source: NarInput, plan: Plan | None = None, progress: Callable[[int], object] | None = None
) -> Made:
    """Compress, hash, and write the files of the plan, all of them or none.

    Args:
        source: the NAR.
        plan: what to write; nothing if None.
        progress: called with the bytes of the NAR that are done.

    Raises:
        AlreadyExistsError: a file is there already, and the plan doesn't say to replace it.
        CodecError: this machine's zstd makes other payloads.
        NarswarmError: what the source raises.
    """
    with ExitStack() as stack:
        if plan is None:
            return _made(source, None, progress)
        output = stack.enter_context(Output(plan.directory, force=plan.force))
        payload = None if plan.torrent_only else output.new()
        made = _made(source, payload, progress)
        torrent = output.new()
        torrent.write(made.meta.encode(plan.trackers, comment=plan.comment))
        names = [f"{made.meta.name}.torrent"]
        if payload is not None:
            names.insert(0, made.meta.name)
        paths = output.place(names)
        return Made(
            made.meta, made.nar_size, None if payload is None else paths[0], torrent=paths[-1]
        )


def _made(
    source: NarInput, payload: BinaryIO | None, progress: Callable[[int], object] | None
) -> Made:
    """Read the NAR once; write its frames to `payload`."""
    size = source.size
    hasher = PieceHasher(None if size is None else max_length(size))
    done = 0
    with FrameCompressor(source.chunks) as frames:
        for frame in frames:
            done += CHUNK
            if payload is not None:
                payload.write(frame)
            hasher.update(frame)
            if size is not None:
                done = min(done, size)
                hasher.update_bound(hasher.length + max_length(size - done))
            if progress is not None:
                progress(done)
        name = file_name(frames.nar_sha256)
        return Made(Metainfo.of(name, hasher.finish()), frames.nar_size)
