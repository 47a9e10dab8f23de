# SPDX-License-Identifier: GPL-3.0-or-later
"""`substituter weather`: who could serve items now, in the swarm and over HTTP."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from narswarm import base32, quorum
from narswarm.cli import format_size
from narswarm.narinfo import Narinfo
from narswarm.quorum import Opinion
from substituter.preference import by_preference
from substituter.race import Policy
from substituter.survey import NOBODY, Said, Survey, Swarm


class Forecast(NamedTuple):
    """What can be expected of an item.

    Attributes:
        path: of the item.
        narinfo: what enough authorised keys say of it; None if they don't.
        said: what everybody says.
        opinions: what authorised keys say, the most common first.
        swarm: who has it.
        policy: which ways are used.
    """

    path: str
    narinfo: Narinfo | None
    said: Sequence[Said]
    opinions: Sequence[Opinion]
    swarm: Swarm
    policy: str = Policy.RACE

    @property
    def servers(self) -> list[Said]:
        """Substitute servers that have the item as it is to be."""
        if self.narinfo is None:
            return []
        wanted = (self.narinfo.nar_hash, self.narinfo.nar_size)
        return [
            each
            for each in self.said
            if each.is_authorised
            and not each.is_mirror
            and (each.narinfo.nar_hash, each.narinfo.nar_size) == wanted
            and by_preference(each.narinfo.sources)
        ]

    @property
    def from_swarm(self) -> bool:
        """Whether a swarm can serve it."""
        return self.narinfo is not None and self.swarm.can_serve

    @property
    def from_http(self) -> bool:
        """Whether a server can, and may."""
        return self.policy != Policy.SWARM_ONLY and bool(self.servers)

    @property
    def is_unseeded(self) -> bool:
        """Whether there is a torrent, or may be one, of which trackers know no seeds."""
        return self.narinfo is not None and not self.from_swarm

    @property
    def is_missing(self) -> bool:
        """Whether nobody can."""
        return not self.from_swarm and not self.from_http

    @property
    def download(self) -> int | None:
        """Bytes to be transferred, where somebody says."""
        servers = self.servers if self.from_http else []
        sizes = [by_preference(each.narinfo.sources)[0].file_size for each in servers]
        by_http = next((size for size in sizes if size is not None), None)
        by_swarm = self.swarm.length if self.from_swarm else None
        if self.policy == Policy.HTTP_FIRST:
            by_http, by_swarm = by_swarm, by_http
        return by_http if by_swarm is None else by_swarm


def forecast(
    survey: Survey, paths: Iterable[str], needed: int, policy: str = Policy.RACE
) -> list[Forecast]:
    """Ask about items.

    Args:
        survey: whom to ask.
        paths: of the items.
        needed: the number of different keys that have to agree.
        policy: which ways are used.
    """
    everything = survey.narinfos(paths)
    believed: dict[str, tuple[Narinfo | None, list[Opinion]]] = {}
    for path, said in everything.items():
        opinions = quorum.opinions(each.narinfo for each in said if each.is_authorised)
        believed[path] = quorum.agreed(opinions, needed), opinions
    swarms = survey.swarms(narinfo.nar_hash for narinfo, _ in believed.values() if narinfo)
    found = []
    for path, (narinfo, opinions) in believed.items():
        swarm = swarms.get(narinfo.nar_hash, NOBODY) if narinfo else NOBODY
        found.append(Forecast(path, narinfo, everything[path], opinions, swarm, policy))
    return found


def describe(each: Forecast, needed: int) -> dict[str, Any]:
    """An item for programs."""
    narinfo = each.narinfo
    return {
        "path": each.path,
        "nar_hash": base32.format_hash(narinfo.nar_hash) if narinfo else None,
        "nar_size": narinfo.nar_size if narinfo else None,
        "download_size": each.download,
        "swarm": each.swarm._asdict(),
        "servers": [
            {
                "url": said.source,
                "mirror": said.is_mirror,
                "verdict": str(said.verdict),
                "nar_hash": base32.format_hash(said.narinfo.nar_hash),
                "sources": [
                    {"url": s.url, "compression": s.compression, "file_size": s.file_size}
                    for s in said.narinfo.sources
                ],
            }
            for said in each.said
        ],
        "quorum": {
            "needed": needed,
            "agree": len(each.opinions[0].keys) if each.opinions else 0,
            "disagreement": quorum.disagreement(list(each.opinions)),
        },
        "available": [
            name for name, yes in (("swarm", each.from_swarm), ("http", each.from_http)) if yes
        ],
    }


def table(found: Sequence[Forecast], needed: int) -> list[str]:
    """Lines for people: one an item under a heading, columns aligned."""
    heading = ("SWARM", "HTTP", "NAR", "DOWNLOAD", *(["KEYS"] if needed > 1 else []), "ITEM")
    rows = [heading, *(_row(each, needed) for each in found)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(heading) - 1)]
    return [
        "  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[-1]])
        for row in rows
    ]


def summary(found: Sequence[Forecast]) -> str:
    """The line at the end."""
    sizes = [each.download for each in found if each.download is not None]
    return (
        f"{sum(each.from_swarm for each in found)} of {len(found)} from the swarm, "
        f"{sum(each.from_http for each in found)} over HTTP, "
        f"{sum(each.is_missing for each in found)} missing; "
        f"{format_size(sum(sizes))} to download"
    )


def _row(each: Forecast, needed: int) -> tuple[str, ...]:
    swarm, keys = each.swarm, len(each.opinions[0].keys) if each.opinions else 0
    said = []
    if swarm.seeds:
        said.append(f"{swarm.seeds} seed{'' if swarm.seeds == 1 else 's'}")
    if swarm.web_seeds:
        said.append(f"{swarm.web_seeds} web seed{'' if swarm.web_seeds == 1 else 's'}")
    if swarm.holders and not swarm.seeds:
        said.append(f"{swarm.holders} would")
    state = ", ".join(said) or "-"
    servers = ", ".join(_host(said.source) for said in each.servers)
    if not servers:
        servers = "unauthorised" if each.said and not each.opinions else "-"
    return (
        state,
        servers,
        format_size(each.narinfo.nar_size) if each.narinfo else "-",
        "-" if each.download is None else format_size(each.download),
        *([f"{keys} of {needed}"] if needed > 1 else []),
        each.path.rpartition("/")[2],
    )


def _host(url: str) -> str:
    return url.partition("://")[2] or url
