# SPDX-License-Identifier: GPL-3.0-or-later
"""Who is in which swarm, in packed memory that one owner reads and writes.

A peer is a record of 31 bytes (IPv4) or 43 (IPv6) in a sorted array of its swarm, and nothing else:
no object, no dictionary entry. Sorting makes a peer found in logarithmic time and puts the ports of
one address side by side, which is how the number of ports that an address may hold is bounded.

Peers are keyed by (address, port), where the address is the one the packet came from: nobody can
replace or remove another's entry by copying a peer id. Time and randomness are arguments. Nothing
here locks; the owner does.

Sources: BEP 3, 7, 21; a closed tracker asks its index before it comes here.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from random import Random
from typing import NamedTuple

from tracker.wire_http import AnnounceRequest, Counts, Event

_IPV4 = 4
_PARTIAL = 1
_COUNTED = 2
_TAIL = 25
"""After address and port: 4 bytes of time, 1 of flags, 20 of peer id."""


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


class _Pool(bytearray):
    """Records of one address family and one role, sorted by (address, port)."""

    __slots__ = ()
    KEY = 0
    STRIDE = 0

    @property
    def size(self) -> int:
        return len(self) // self.STRIDE

    def _find(self, prefix: bytes) -> int:
        """Where the first record stands that isn't below the prefix."""
        stride, size = self.STRIDE, len(prefix)
        return bisect_left(
            range(self.size),
            bytearray(prefix),
            key=lambda index: self[index * stride : index * stride + size],
        )

    def index_of(self, key: bytes) -> int:
        """Where the record of a peer stands, or -1."""
        index = self._find(key)
        start = index * self.STRIDE
        return index if self[start : start + self.KEY] == key else -1

    def flags(self, index: int) -> int:
        """What is remembered of a peer."""
        return self[index * self.STRIDE + self.KEY + 4]

    def refresh(self, index: int, tail: bytes) -> None:
        """Write time, flags and peer id anew."""
        start = index * self.STRIDE
        self[start + self.KEY : start + self.STRIDE] = tail

    def record(self, index: int) -> bytes:
        return bytes(self[index * self.STRIDE : (index + 1) * self.STRIDE])

    def _seen(self, index: int) -> int:
        start = index * self.STRIDE + self.KEY
        return int.from_bytes(self[start : start + 4])

    def keys(self) -> set[bytes]:
        """The addresses with ports."""
        return {bytes(self[at : at + self.KEY]) for at in range(0, len(self), self.STRIDE)}

    def take(self, key: bytes) -> int | None:
        """Remove a peer and return its flags, or nothing when it isn't here."""
        index = self.index_of(key)
        if index < 0:
            return None
        flags = self.flags(index)
        del self[index * self.STRIDE : (index + 1) * self.STRIDE]
        return flags

    def add(self, record: bytes) -> None:
        """Insert a peer that isn't here."""
        start = self._find(record[: self.KEY]) * self.STRIDE
        self[start:start] = record

    def make_room(self, network: bytes, allowed: int) -> list[int]:
        """Drop the longest unheard peers of a network until it has fewer than allowed.

        Returns:
            The flags of those that were dropped.
        """
        first = last = self._find(network)
        while self[last * self.STRIDE : last * self.STRIDE + len(network)] == network:
            last += 1
        dropped = []
        for _ in range(last - first - allowed + 1):
            oldest = min(range(first, last), key=self._seen)
            dropped.append(self.flags(oldest))
            del self[oldest * self.STRIDE : (oldest + 1) * self.STRIDE]
            last -= 1
        return dropped

    def expire(self, before: int, unwanted: Callable[[bytes], bool] | None) -> int:
        """Drop peers last heard of before a time, and unwanted addresses; return how many."""
        count = self.size
        kept = [index for index in range(count) if self._seen(index) >= before]
        if unwanted is not None:
            kept = [index for index in kept if not unwanted(self.record(index)[: self.KEY - 2])]
        if len(kept) != count:
            self[:] = b"".join([self.record(index) for index in kept])
        return count - len(kept)

    def partial(self) -> int:
        """How many of the peers are partial seeds."""
        return sum(flags & _PARTIAL for flags in self[self.KEY + 4 :: self.STRIDE])

    def choose(self, limit: int, rng: Random, without: int = -1) -> Sequence[int]:
        """Where at most `limit` different records begin; each has the same chance.

        They are taken at equal distances from a random one on. That is as fair as to draw each
        by itself, takes a fifth of the time, and a list has few peers of one host, whose
        records stand side by side.

        Args:
            limit: how many at most.
            rng: what chooses.
            without: a record that isn't chosen.
        """
        stride = self.STRIDE
        size = len(self) // stride - (without >= 0)
        if size <= limit:
            chosen: Sequence[int] = range(0, size * stride, stride)
        else:
            first = int(rng.random() * size)
            chosen = [(first + n * size // limit) % size * stride for n in range(limit)]
        if without < 0:
            return chosen
        skipped = without * stride
        return [offset if offset < skipped else offset + stride for offset in chosen]

    def cut(self, offsets: Sequence[int], start: int, end: int) -> bytes:
        """The same part of several records, one after the other."""
        return b"".join([self[offset + start : offset + end] for offset in offsets])


class _Pool4(_Pool):
    __slots__ = ()
    KEY = 6
    STRIDE = KEY + _TAIL


class _Pool6(_Pool):
    __slots__ = ()
    KEY = 18
    STRIDE = KEY + _TAIL


_POOLS = (_Pool4, _Pool6)


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
        self.pools: list[_Pool | None] = [None] * 4
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
        six = len(key) > _Pool4.KEY
        for seed in (True, False):
            pool = self.pools[_place(seed=seed, six=six)]
            flags = pool.take(key) if pool else None
            if flags is not None:
                self.partial -= flags & _PARTIAL
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
                parts[place % 2] += pool.cut(chosen, 0, pool.KEY)
                if with_ids:
                    parts[2 + place % 2] += pool.cut(chosen, pool.KEY + 5, pool.STRIDE)
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
            swarm.partial -= pool.flags(index) & _PARTIAL
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
        flags &= ~_PARTIAL
        if request.event is Event.PAUSED and not seed:
            flags |= _PARTIAL
        if request.event is Event.COMPLETED and not was_seed and not flags & _COUNTED:
            flags |= _COUNTED
            swarm.downloaded += 1
        selection = swarm.choose(
            _ORDERS[seed or bool(flags & _PARTIAL), six, request.one_family],
            numwant,
            rng,
            with_ids=not (request.compact or request.no_peer_id),
            without=(place, index),
        )
        tail = b"%b%c%b" % (now.to_bytes(4), flags, request.peer_id)
        if pool and index >= 0:
            pool.refresh(index, tail)
            swarm.partial += flags & _PARTIAL
        else:
            self._insert(swarm, place, key + tail)
            swarm.tidy()
            self._forget(request.info_hash, swarm)
        return Answer(swarm.counts(), selection)

    def _insert(self, swarm: _Swarm, place: int, record: bytes) -> None:
        pool = swarm.pools[place]
        if pool is None:
            pool = swarm.pools[place] = _POOLS[place % 2]()
        network = record[:8] if place % 2 else record[:_IPV4]
        dropped = pool.make_room(network, self._limits.address_ports)
        if dropped:
            self.peers -= len(dropped)
            self.totals[place] -= len(dropped)
            swarm.partial -= sum(flags & _PARTIAL for flags in dropped)
        if self.peers < self._limits.peers and sum(swarm.sizes()) < self._limits.swarm_peers:
            pool.add(record)
            swarm.partial += record[pool.KEY + 4] & _PARTIAL
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
