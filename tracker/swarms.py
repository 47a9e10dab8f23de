# SPDX-License-Identifier: GPL-3.0-or-later
"""Who is in which swarm, in packed memory that one owner reads and writes.

A swarm has an array of records (`tracker.pools`) for each role and address family. Peers are keyed
by (address, port), where the address is the one the packet came from: nobody can replace or remove
another's entry by copying a peer id. Time and randomness are arguments. Nothing here locks; the
owner does.

Sources: BEP 3, 7, 21; a closed tracker asks its index before it comes here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from random import Random
from typing import NamedTuple

from tracker.pools import COUNTED, PARTIAL, Pool, Pool4, Pool6, tail
from tracker.wire_http import AnnounceRequest, Counts, Event

_IPV4 = 4


class Limits(NamedTuple):
    """What bounds the memory of swarms.

    Attributes:
        swarms: how many swarms are kept.
        peers: how many peers are kept in all.
        swarm_peers: how many peers one swarm keeps.
        address_ports: how many ports of one IPv4 address, or of one IPv6 /64, one swarm keeps among
            seeds and as many among leechers; the one not heard of for longest makes room.
        seed_timeout: seconds without an announce after which a seed is forgotten.
        leecher_timeout: the same for leechers, which are told to come back sooner.
    """

    swarms: int = 500_000
    peers: int = 2_000_000
    swarm_peers: int = 20_000
    address_ports: int = 32
    seed_timeout: int = 2700
    leecher_timeout: int = 1200


class Selection(NamedTuple):
    """Peers chosen for one asker: packed addresses with ports, and peer ids in the same order.

    There are no ids for who takes packed peers, where they have no place.
    """

    peers4: bytes
    peers6: bytes
    ids4: bytes = b""
    ids6: bytes = b""


class Answer(NamedTuple):
    """What an announce brings: the swarm with the asker counted, and peers without the asker."""

    counts: Counts
    selection: Selection


class Swept(NamedTuple):
    """How many peers were forgotten, and whether all swarms were looked at."""

    expired: int
    finished: bool


_NOBODY = Selection(b"", b"")


_POOLS = (Pool4, Pool6)


def _place(*, seed: bool, six: bool) -> int:
    """Which of a swarm's four pools a peer belongs to: seeds before leechers, IPv4 before IPv6."""
    return 2 * (not seed) + six


_ORDERS = {
    (needs_nothing, six, one_family): tuple(
        _place(seed=seed, six=family)
        for seed in ((False,) if needs_nothing else (True, False))
        for family in ((six,) if one_family else (six, not six))
    )
    for needs_nothing in (False, True)
    for six in (False, True)
    for one_family in (False, True)
}
"""From which pools peers are chosen, and in which order."""


class _Swarm:
    """The peers of one infohash. A pool exists only while somebody is in it."""

    __slots__ = ("downloaded", "partial", "pools")

    def __init__(self) -> None:
        self.pools: list[Pool | None] = [None] * 4
        self.downloaded = 0
        self.partial = 0

    def sizes(self) -> list[int]:
        return [pool.size if pool else 0 for pool in self.pools]

    def counts(self) -> Counts:
        sizes = self.sizes()
        incomplete = sizes[2] + sizes[3]
        return Counts(sizes[0] + sizes[1], incomplete, self.downloaded, incomplete - self.partial)

    def tidy(self) -> None:
        """Let go of pools that emptied."""
        self.pools = [pool or None for pool in self.pools]

    def take(self, key: bytes) -> tuple[bool, int] | None:
        """Remove a peer; return whether it was a seed, and its flags."""
        six = len(key) > Pool4.KEY
        for seed in (True, False):
            pool = self.pools[_place(seed=seed, six=six)]
            flags = pool.take(key) if pool else None
            if flags is not None:
                self.partial -= flags & PARTIAL
                return seed, flags
        return None

    def choose(
        self,
        places: Iterable[int],
        limit: int,
        rng: Random,
        *,
        with_ids: bool,
        without: tuple[int, int] = (-1, -1),
    ) -> Selection:
        """Fill a list from several pools, in order, but without the record of a place."""
        parts = [b"", b"", b"", b""]
        for place in places:
            pool = self.pools[place]
            if pool and limit > 0:
                chosen = pool.choose(limit, rng, without[1] if place == without[0] else -1)
                limit -= len(chosen)
                parts[place % 2] += pool.addresses(chosen)
                if with_ids:
                    parts[2 + place % 2] += pool.ids(chosen)
        return Selection(*parts)

    def recount(self) -> None:
        """Count partial seeds anew, after records left without being looked at."""
        self.partial = sum(pool.partial() for pool in self.pools[2:] if pool)


class Swarms:
    """All swarms of a tracker.

    Args:
        limits: what bounds their memory.
        keep_downloads: remember how often a swarm was downloaded after its last peer left. For
            closed trackers, whose index bounds the number of swarms.
    """

    def __init__(self, limits: Limits, *, keep_downloads: bool) -> None:
        self._limits = limits
        self._keep_downloads = keep_downloads
        self._swarms: dict[bytes, _Swarm] = {}
        self._sweep: Iterator[bytes] | None = None
        self.peers = 0
        self.totals = [0] * 4
        """Peers by role and family: seeds of IPv4, of IPv6, leechers of IPv4, of IPv6."""

    def __len__(self) -> int:
        return len(self._swarms)

    def counts(self, info_hash: bytes) -> Counts:
        """The numbers of one swarm, all zero when nobody ever was in it."""
        swarm = self._swarms.get(info_hash)
        return swarm.counts() if swarm else Counts(0, 0, 0, 0)

    def announce(
        self, request: AnnounceRequest, address: bytes, numwant: int, now: int, rng: Random
    ) -> Answer:
        """Take in one announce and choose peers for the asker.

        A leecher gets seeds first, then leechers; who has nothing to fetch (a seed, or a partial
        seed of BEP 21) gets leechers only. Peers of the asker's own address family come first,
        since those it surely reaches. When a limit is reached the asker is answered but not kept.

        Args:
            request: what the client said.
            address: where it said it from, 4 or 16 bytes.
            numwant: how many peers it gets at most.
            now: seconds since the epoch.
            rng: what chooses among more peers than are wanted.
        """
        swarm = self._swarms.get(request.info_hash)
        key = address + request.port.to_bytes(2)
        stops = request.event is Event.STOPPED
        if swarm is None:
            # Nothing is allocated for a peer that leaves, or beyond the limit.
            if stops or len(self._swarms) >= self._limits.swarms:
                return Answer(Counts(0, 0, 0, 0), _NOBODY)
            swarm = self._swarms[request.info_hash] = _Swarm()
        six = len(address) > _IPV4
        seed = request.is_seed
        place = _place(seed=seed, six=six)
        pool = swarm.pools[place]
        index = pool.index_of(key) if pool and not stops else -1
        if pool and index >= 0:
            # Nearly all announces: one finds the peer, and its record stays where it is.
            known: tuple[bool, int] | None = (seed, pool.flags(index))
            swarm.partial -= pool.flags(index) & PARTIAL
        else:
            known = swarm.take(key)
            if known is not None:
                self.peers -= 1
                self.totals[_place(seed=known[0], six=six)] -= 1
        if stops:
            swarm.tidy()
            self._forget(request.info_hash, swarm)
            return Answer(swarm.counts(), _NOBODY)
        was_seed, flags = known or (False, 0)
        flags &= ~PARTIAL
        if request.event is Event.PAUSED and not seed:
            flags |= PARTIAL
        if request.event is Event.COMPLETED and not was_seed and not flags & COUNTED:
            flags |= COUNTED
            swarm.downloaded += 1
        selection = swarm.choose(
            _ORDERS[seed or bool(flags & PARTIAL), six, request.one_family],
            numwant,
            rng,
            with_ids=not (request.compact or request.no_peer_id),
            without=(place, index),
        )
        heard = tail(now, flags, request.peer_id)
        if pool and index >= 0:
            pool.refresh(index, heard)
            swarm.partial += flags & PARTIAL
        else:
            self._insert(swarm, place, key + heard, flags & PARTIAL)
            swarm.tidy()
            self._forget(request.info_hash, swarm)
        return Answer(swarm.counts(), selection)

    def _insert(self, swarm: _Swarm, place: int, record: bytes, partial: int) -> None:
        pool = swarm.pools[place]
        if pool is None:
            pool = swarm.pools[place] = _POOLS[place % 2]()
        network = record[:8] if place % 2 else record[:_IPV4]
        dropped = pool.make_room(network, self._limits.address_ports)
        if dropped:
            self.peers -= len(dropped)
            self.totals[place] -= len(dropped)
            swarm.partial -= sum(flags & PARTIAL for flags in dropped)
        if self.peers < self._limits.peers and sum(swarm.sizes()) < self._limits.swarm_peers:
            pool.add(record)
            swarm.partial += partial
            self.peers += 1
            self.totals[place] += 1

    def _forget(self, info_hash: bytes, swarm: _Swarm) -> None:
        """Drop a swarm that says nothing any more."""
        if not any(swarm.pools) and not (self._keep_downloads and swarm.downloaded):
            del self._swarms[info_hash]

    def sample(
        self, info_hashes: list[bytes], limit: int, rng: Random
    ) -> tuple[Counts, list[bytes]]:
        """Look at several swarms as if they were one: the two of a hybrid torrent.

        Args:
            info_hashes: the swarms; who is in more than one counts once.
            limit: how many peers to name at most.
            rng: what chooses among more.

        Returns:
            The counts, and peers as packed addresses with ports (6 or 18 bytes), seeds first.
        """
        seeds: set[bytes] = set()
        leechers: set[bytes] = set()
        downloaded = partial = 0
        for info_hash in info_hashes:
            swarm = self._swarms.get(info_hash)
            if swarm is None:
                continue
            downloaded = max(downloaded, swarm.downloaded)
            partial = max(partial, swarm.partial)
            for place, pool in enumerate(swarm.pools):
                if pool:
                    (leechers if place >= 2 else seeds).update(pool.keys())
        leechers -= seeds
        peers: list[bytes] = []
        for role in (seeds, leechers):
            room = limit - len(peers)
            ordered = sorted(role)
            peers += ordered if len(ordered) <= room else rng.sample(ordered, room)
        counts = Counts(len(seeds), len(leechers), downloaded, max(len(leechers) - partial, 0))
        return counts, peers

    def restore(self, downloaded: Mapping[bytes, int]) -> None:
        """Begin with numbers of downloads, by infohash of 20 bytes, that were kept elsewhere.

        Without `keep_downloads` they would be forgotten with the first peer that leaves, so they
        aren't taken.
        """
        for info_hash, count in downloaded.items():
            if self._keep_downloads and count and len(self._swarms) < self._limits.swarms:
                self._swarms.setdefault(info_hash, _Swarm()).downloaded = count

    def limit(self, limits: Limits) -> None:
        """Set other limits. Who is there beyond them stays until it falls silent."""
        self._limits = limits

    def expire(
        self, now: int, budget: int, unwanted: Callable[[bytes], bool] | None = None
    ) -> Swept:
        """Forget peers that fell silent, a part of the swarms at a time.

        Args:
            now: seconds since the epoch.
            budget: how many swarms to look at; the next call goes on from there.
            unwanted: whether to forget the peers at an address, 4 or 16 bytes, in any case.
        """
        if self._sweep is None:
            # A copy of the keys: swarms come and go before the sweep ends.
            self._sweep = iter(list(self._swarms))
        expired = 0
        for _ in range(budget):
            info_hash = next(self._sweep, None)
            if info_hash is None:
                self._sweep = None
                return Swept(expired, finished=True)
            swarm = self._swarms.get(info_hash)
            if swarm is not None:
                expired += self._expire_swarm(info_hash, swarm, now, unwanted)
        return Swept(expired, finished=False)

    def _expire_swarm(
        self,
        info_hash: bytes,
        swarm: _Swarm,
        now: int,
        unwanted: Callable[[bytes], bool] | None,
    ) -> int:
        expired = 0
        for place, pool in enumerate(swarm.pools):
            if pool:
                seed = place < 2
                timeout = self._limits.seed_timeout if seed else self._limits.leecher_timeout
                gone = pool.expire(now - timeout, unwanted)
                self.totals[place] -= gone
                expired += gone
        if expired:
            self.peers -= expired
            swarm.recount()
            swarm.tidy()
            self._forget(info_hash, swarm)
        return expired
