# SPDX-License-Identifier: GPL-3.0-or-later
"""Sessions with each other on loopback: everything here is real libtorrent."""

from __future__ import annotations

import gc
import hashlib
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple, Self
from urllib.parse import unquote

import pytest

from narswarm import bencoding, download, lt_compat
from narswarm.download import Progress, SwarmStalledError
from narswarm.errors import BusyError, InvalidInputError, NetworkError, NotFoundError
from narswarm.merkle import PieceHasher
from narswarm.metainfo import Metainfo
from narswarm.payload import file_name
from narswarm.swarm import Swarm
from tests.narswarm.sessions import PATIENCE, alone, wait_until

MIB = 2**20
PIECE = 64 * 1024


class Shared(NamedTuple):
    """A payload and its torrent."""

    data: bytes
    torrent: bytes
    infohash: str
    path: Path


Share = Callable[[int], Shared]
Open = Callable[..., Swarm]


@pytest.fixture
def share(tmp_path: Path) -> Share:
    """Make a payload of pseudo-random bytes, stored under another name than the torrent's."""

    def make(size: int) -> Shared:
        data = random.Random(size).randbytes(size)  # noqa: S311
        hasher = PieceHasher(None)
        hasher.update(data)
        meta = Metainfo.of(f"payload-{size}.bin", hasher.finish())
        path = tmp_path / "store" / f"{size}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        return Shared(data, meta.encode(), meta.infohash_v2.hex(), path)

    return make


@pytest.fixture
def swarm() -> Iterator[Open]:
    """Open sessions on loopback that talk to nobody else; closed at the end."""
    opened: list[Swarm] = []

    def make(**settings: Any) -> Swarm:
        opened.append(Swarm(alone(**settings)))
        return opened[-1]

    yield make
    for each in opened:
        each.close()


def address(swarm: Swarm, host: str = "127.0.0.1") -> tuple[str, int]:
    """Where a session can be connected to."""
    return host, swarm.listen_port


def lonely(progress: Progress) -> bool:
    """A rule for stalls: somebody was there, and nobody is there now."""
    return progress.received > 0 and progress.peers == 0


def too_long(progress: Progress) -> bool:
    """A rule that ends tests which would hang."""
    return progress.idle > PATIENCE


@pytest.mark.parametrize("size", [1, PIECE - 1, PIECE, PIECE + 1, 20 * MIB + 5])
def test_a_known_peer_serves_a_payload(
    share: Share, swarm: Open, tmp_path: Path, size: int
) -> None:
    """Bytes come in order and equal those that were seeded from an absolute path."""
    shared = share(size)
    seeder, leecher = swarm(role="seed"), swarm()
    assert seeder.seed(shared.torrent, shared.path, []) == shared.infohash
    fetched = leecher.fetch(shared.torrent, tmp_path / "got", peers=[address(seeder)])
    assert (fetched.infohash, fetched.length) == (shared.infohash, size)
    assert fetched.piece_length == PIECE
    assert b"".join(fetched.chunks(stall=too_long)) == shared.data
    assert fetched.progress().done == size
    assert fetched.progress().received == size
    fetched.cancel(keep=True)
    assert (tmp_path / "got" / f"payload-{size}.bin").read_bytes() == shared.data


def test_peers_are_found_in_the_dht_alone(share: Share, swarm: Open, tmp_path: Path) -> None:
    """A private DHT of nodes that know only one of them is enough to find a seeder."""
    shared = share(100_000)
    hub = swarm(dht=True, role="seed")
    nodes = (f"127.0.0.1:{hub.listen_port}",)
    others = [swarm(dht=True, dht_nodes=nodes, role="seed") for _ in range(2)]
    for other in others:
        assert other.listen_port
    seeder = swarm(dht=True, dht_nodes=nodes, role="seed")
    wait_until(lambda: seeder.counters()["dht_nodes"] >= 1)
    seeder.announce_in_dht(seeder.seed(shared.torrent, shared.path, []))
    leecher = swarm(dht=True, dht_nodes=nodes)
    fetched = leecher.fetch(shared.torrent, tmp_path)
    assert b"".join(fetched.chunks(stall=too_long)) == shared.data
    assert leecher.counters()["dht_nodes"] >= 1


def test_a_tracker_names_the_peer(share: Share, swarm: Open, tmp_path: Path) -> None:
    """Announce URLs of the caller are used; how they answered can be asked."""
    shared = share(100_000)
    seeder, leecher = swarm(role="seed"), swarm()
    seeder.seed(shared.torrent, shared.path, [])
    peer = bytes([127, 0, 0, 1]) + seeder.listen_port.to_bytes(2, "big")
    with tracker({b"interval": 1800, b"peers": peer}) as url:
        fetched = leecher.fetch(shared.torrent, tmp_path, trackers=[url])
        assert b"".join(fetched.chunks(stall=too_long)) == shared.data
        (state,) = leecher.trackers()
        assert (state.url, state.errors, state.message) == (url, 0, "")
        assert state.replies >= 1


def test_what_a_tracker_refuses_is_kept(share: Share, swarm: Open) -> None:
    """The failure reason of a tracker (BEP 3) is what `trackers` says of it."""
    shared = share(1000)
    seeder = swarm(role="seed")
    with tracker({b"failure reason": b"not in the index"}) as url:
        seeder.seed(shared.torrent, shared.path, [url])
        wait_until(lambda: any(state.errors for state in seeder.trackers()))
        (state,) = seeder.trackers()
    assert (state.url, state.message) == (url, "not in the index")
    assert state.errors >= 1


@pytest.mark.parametrize("role", ["seed", "fetch"])
def test_all_trackers_hear_of_a_torrent(
    share: Share, swarm: Open, tmp_path: Path, role: str
) -> None:
    """Not only the first that answers: they don't know each other's peers."""
    shared = share(1000)
    ours = swarm(role=role)
    answer: dict[bytes, bencoding.Value] = {b"interval": 1800, b"peers": b""}
    with tracker(answer) as first, tracker(answer) as second:
        if role == "seed":
            ours.seed(shared.torrent, shared.path, [first, second])
        else:
            ours.fetch(shared.torrent, tmp_path, trackers=[first, second])
        wait_until(
            lambda: {state.url for state in ours.trackers() if state.replies} == {first, second}
        )


def test_an_announce_can_be_repeated_at_once(share: Share, swarm: Open) -> None:
    """`reannounce` is for trackers that forgot us, whatever interval they had asked for."""
    shared = share(1000)
    seeder = swarm(role="seed")
    with tracker({b"interval": 1800, b"min interval": 900, b"peers": b""}) as url:
        infohash = seeder.seed(shared.torrent, shared.path, [url])
        # A hybrid torrent is announced under both of its infohashes.
        wait_until(lambda: [state.replies for state in seeder.trackers()] == [2])
        seeder.reannounce(infohash)
        wait_until(lambda: [state.replies for state in seeder.trackers()] == [4])


class tracker:  # noqa: N801  used as a context manager, like a function
    """An HTTP tracker with one answer."""

    def __init__(self, answer: dict[bytes, bencoding.Value]) -> None:
        body = bencoding.encode(dict(answer))

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    def __enter__(self) -> str:
        self._thread.start()
        return f"http://127.0.0.1:{self._server.server_port}/announce"

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def test_addresses_inside_a_torrent_are_ignored(share: Share, swarm: Open, tmp_path: Path) -> None:
    """A torrent can't make this machine call a tracker, a web seed or a node."""
    shared = share(1000)
    torrent = bencoding.decode(shared.torrent, "test")
    assert isinstance(torrent, dict)
    torrent[b"announce"] = b"http://127.0.0.1:9/announce"
    torrent[b"url-list"] = [b"http://127.0.0.1:9/"]
    torrent[b"nodes"] = [[b"127.0.0.1", 9]]
    leecher = swarm()
    fetched = leecher.fetch(bencoding.encode(torrent), tmp_path)
    handle = leecher._find(fetched.infohash).handle
    assert fetched.infohash == shared.infohash
    assert (handle.trackers(), handle.url_seeds()) == ([], [])


class directory:  # noqa: N801  used as a context manager, like a function
    """A web server with one file, which sends what is asked for of it."""

    def __init__(self, path: str, data: bytes) -> None:
        self.asked: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer.asked.append(unquote(self.path))
                span = re.fullmatch(r"bytes=([0-9]+)-([0-9]+)", self.headers.get("Range", ""))
                found = unquote(self.path) == path and span is not None
                part = data[int(span[1]) : int(span[2]) + 1] if found and span else b""
                self.send_response(206 if found else 404)
                if found and span:
                    self.send_header("Content-Range", f"bytes {span[1]}-{span[2]}/{len(data)}")
                self.send_header("Content-Length", str(len(part)))
                self.end_headers()
                self.wfile.write(part)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    def __enter__(self) -> Self:
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.mark.parametrize("size", [1, PIECE, PIECE + 1, 5 * MIB + 5])
@pytest.mark.parametrize("name", ["canonical", f"{'0' * 32}-a+b_1.0?x=y"])
def test_a_web_seed_is_enough(swarm: Open, tmp_path: Path, name: str, size: int) -> None:
    """A directory over HTTP that has the file under the torrent's name does without any peer."""
    data = random.Random(size).randbytes(size)  # noqa: S311
    hasher = PieceHasher()
    hasher.update(data)
    if name == "canonical":
        name = file_name(hashlib.sha256(data).digest())
    torrent = Metainfo.of(name, hasher.finish()).encode()
    with directory(f"/nar/{name}", data) as server:
        fetched = swarm().fetch(torrent, tmp_path, web_seeds=[f"{server.url}/nar/"])
        assert b"".join(fetched.chunks(stall=too_long)) == data
        assert (tmp_path / name).read_bytes() == data
        fetched.cancel(keep=False)
    assert set(server.asked) == {f"/nar/{name}"}


def test_a_web_seed_that_lies_is_no_harm(share: Share, swarm: Open, tmp_path: Path) -> None:
    """Pieces that aren't those of the torrent are thrown away, and a peer brings them."""
    shared = share(3 * PIECE)
    seeder, leecher = swarm(role="seed"), swarm()
    seeder.seed(shared.torrent, shared.path, [])
    name = shared.path.name
    with directory(f"/{name}", bytes(len(shared.data))) as server:
        fetched = leecher.fetch(
            shared.torrent, tmp_path, peers=[address(seeder)], web_seeds=[f"{server.url}/"]
        )
        assert b"".join(fetched.chunks(stall=too_long)) == shared.data


def test_a_swarm_that_dies_is_given_up(share: Share, swarm: Open, tmp_path: Path) -> None:
    """When the only seeder leaves, the caller's rule ends the wait; what came is the prefix."""
    shared = share(4 * MIB)
    seeder, leecher = swarm(role="seed"), swarm()
    infohash = seeder.seed(shared.torrent, shared.path, [])
    seeder._find(infohash).handle.set_upload_limit(100_000)
    fetched = leecher.fetch(shared.torrent, tmp_path, peers=[address(seeder)])
    chunks = fetched.chunks(stall=lonely, tick=0.05)
    got = next(chunks)
    seeder.close()
    rest: list[bytes] = []
    with pytest.raises(SwarmStalledError) as caught:
        rest.extend(chunks)
    assert shared.data.startswith(got + b"".join(rest))
    assert isinstance(caught.value, NetworkError)
    assert caught.value.subject == "payload-4194304.bin"
    assert caught.value.reason.startswith("the swarm stalled at ")
    assert caught.value.reason.endswith(" of 4194304 bytes with 0 peers")


def test_corrupt_bytes_are_never_delivered(share: Share, swarm: Open, tmp_path: Path) -> None:
    """A piece whose hash is wrong stays out, and so does everything after it."""
    shared = share(10 * PIECE)
    seeder, first, second = swarm(role="seed"), swarm(), swarm()
    seeder.seed(shared.torrent, shared.path, [])
    # A seeder checks each piece before it sends it for the first time, and then trusts its disk.
    whole = first.fetch(shared.torrent, tmp_path / "first", peers=[address(seeder)])
    assert b"".join(whole.chunks(stall=too_long)) == shared.data
    with shared.path.open("r+b") as file:
        file.seek(3 * PIECE + 7)
        file.write(b"\0\0\0\0")
    fetched = second.fetch(shared.torrent, tmp_path / "second", peers=[address(seeder)])
    got: list[bytes] = []

    def hopeless(progress: Progress) -> bool:
        return len(b"".join(got)) >= 3 * PIECE and progress.idle > 0.7

    with pytest.raises(SwarmStalledError):
        got.extend(fetched.chunks(stall=hopeless, tick=0.05))
    assert b"".join(got) == shared.data[: 3 * PIECE]


def test_a_damaged_payload_is_no_longer_called_seeding(
    share: Share, swarm: Open, tmp_path: Path
) -> None:
    """The seeder of a file that is gone sees it in the status, so that it can make it again."""
    shared = share(2 * PIECE)
    seeder, leecher = swarm(role="seed"), swarm()
    seeder.seed(shared.torrent, shared.path, [])
    assert [status.state for status in seeder.status()] == ["seeding"]
    shared.path.unlink()
    leecher.fetch(shared.torrent, tmp_path, peers=[address(seeder)])
    wait_until(lambda: seeder.status()[0].state != "seeding")


def test_a_partial_file_is_completed(share: Share, swarm: Open, tmp_path: Path) -> None:
    """Verified pieces of an earlier attempt aren't fetched again."""
    shared = share(2 * MIB)
    seeder, leecher = swarm(role="seed"), swarm()
    seeder.seed(shared.torrent, shared.path, [])
    (tmp_path / "payload-2097152.bin").write_bytes(shared.data[:MIB])
    fetched = leecher.fetch(shared.torrent, tmp_path, peers=[address(seeder)])
    assert b"".join(fetched.chunks(stall=too_long)) == shared.data
    assert fetched.progress().received == MIB


def test_a_complete_file_needs_no_peer(share: Share, swarm: Open, tmp_path: Path) -> None:
    """A payload that is on disk already is read from there."""
    shared = share(3 * PIECE)
    (tmp_path / "payload-196608.bin").write_bytes(shared.data)
    fetched = swarm().fetch(shared.torrent, tmp_path)
    assert b"".join(fetched.chunks(stall=too_long)) == shared.data
    assert fetched.progress().received == 0


@pytest.mark.parametrize("keep", [True, False])
def test_cancel_leaves_the_file_or_not(
    share: Share, swarm: Open, tmp_path: Path, *, keep: bool
) -> None:
    """After `cancel` the torrent is gone, its file as asked for, and reading it is an error."""
    shared = share(MIB)
    seeder, leecher = swarm(role="seed"), swarm()
    seeder.seed(shared.torrent, shared.path, [])
    fetched = leecher.fetch(shared.torrent, tmp_path, peers=[address(seeder)])
    next(fetched.chunks(stall=too_long))
    fetched.cancel(keep=keep)
    assert leecher.status() == []
    assert fetched.path.exists() is keep
    with pytest.raises(NetworkError) as caught:
        fetched.progress()
    assert str(caught.value) == "payload-1048576.bin: was cancelled"
    again = leecher.fetch(shared.torrent, tmp_path, peers=[address(seeder)])
    assert b"".join(again.chunks(stall=too_long)) == shared.data


def test_cancel_wakes_a_reader(share: Share, swarm: Open, tmp_path: Path) -> None:
    """A thread that waits for bytes is told when another one cancels."""
    fetched = swarm().fetch(share(1000).torrent, tmp_path)
    threading.Timer(0.1, fetched.cancel, kwargs={"keep": False}).start()
    with pytest.raises(NetworkError) as caught:
        next(fetched.chunks(stall=too_long, tick=60))
    assert str(caught.value) == "payload-1000.bin: was cancelled"


def test_closing_wakes_a_reader(share: Share, swarm: Open, tmp_path: Path) -> None:
    """The session's end is an error for those who wait, not a hang; nothing starts afterwards."""
    leecher = swarm()
    fetched = leecher.fetch(share(1000).torrent, tmp_path)
    threading.Timer(0.1, leecher.close).start()
    with pytest.raises(NetworkError) as caught:
        next(fetched.chunks(tick=60))
    assert str(caught.value) == "payload-1000.bin: the BitTorrent session was closed"
    with pytest.raises(NetworkError) as caught:
        leecher.status()
    assert str(caught.value) == "BitTorrent session: is closed"
    leecher.close()


def test_a_full_disk_ends_the_download(share: Share, swarm: Open, tmp_path: Path) -> None:
    """A file that can't be written is an error with the system's reason, not a stall."""
    shared = share(MIB)
    seeder, leecher = swarm(role="seed"), swarm()
    seeder.seed(shared.torrent, shared.path, [])
    (tmp_path / "payload-1048576.bin").symlink_to("/dev/full")
    fetched = leecher.fetch(shared.torrent, tmp_path, peers=[address(seeder)])
    with pytest.raises(NetworkError) as caught:
        list(fetched.chunks(stall=too_long))
    assert not isinstance(caught.value, SwarmStalledError)


def test_peers_reachable_by_utp_alone_are_reached(
    share: Share, swarm: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TCP is tried first for its speed; a download that starves then tries uTP."""
    monkeypatch.setattr(download, "STARVING", 0.2)
    shared = share(100_000)
    seeder = swarm(role="seed", extra={"enable_incoming_tcp": False, "enable_outgoing_tcp": False})
    leecher = swarm()
    seeder.seed(shared.torrent, shared.path, [])
    fetched = leecher.fetch(shared.torrent, tmp_path, peers=[address(seeder)])
    assert b"".join(fetched.chunks(stall=too_long, tick=0.05)) == shared.data
    assert not leecher._starved


def test_peers_can_be_named_later(share: Share, swarm: Open, tmp_path: Path) -> None:
    """`connect` adds peers to a running download."""
    shared = share(1000)
    seeder, leecher = swarm(role="seed"), swarm()
    seeder.seed(shared.torrent, shared.path, [])
    fetched = leecher.fetch(shared.torrent, tmp_path)
    leecher.connect(fetched.infohash, [address(seeder)])
    leecher.reannounce(fetched.infohash)
    assert b"".join(fetched.chunks(stall=too_long)) == shared.data


def meet(late: Swarm, share: Share, directory: Path, seeder: Swarm, member: Swarm) -> None:
    """Have a session fetch something slowly, beside a member, from a seeder."""
    shared = share(MIB)
    seeder.seed(shared.torrent, shared.path, [])
    (directory / "member").mkdir()
    (directory / "member" / f"payload-{MIB}.bin").write_bytes(shared.data[: MIB // 2])
    member.fetch(shared.torrent, directory / "member")
    fetched = late.fetch(shared.torrent, directory / "late")
    fetched.limit(20_000)
    late.connect(shared.infohash, [address(seeder), address(member, "127.0.0.2")])

    def met() -> bool:
        fetched.look()
        return bool(late.members() and late.crowd.seeds)

    wait_until(met)
    assert (late.members(), late.crowd.seeds) == (1, [address(seeder)])
    assert late.crowd.addresses(time.monotonic()) == [address(member, "127.0.0.2")]
    fetched.cancel(keep=False)


def test_members_of_a_crowd_are_asked_before_seeds(
    share: Share, swarm: Open, tmp_path: Path
) -> None:
    """What a member has doesn't cross the seeder's line again, unless somebody waits for it."""
    seeder, member, late = (
        swarm(role=role, listen=(f"127.0.0.{number}:0",))
        for number, role in ((1, "seed"), (2, "fetch"), (3, "fetch"))
    )
    meet(late, share, tmp_path, seeder, member)
    for size, in_order, sent in ((2 * MIB, False, 0), (3 * MIB, True, 3 * MIB)):
        shared = share(size)
        seeder.seed(shared.torrent, shared.path, [])
        if not in_order:
            member.seed(shared.torrent, shared.path, [])
        before = seeder.counters()["uploaded"]
        peers = [address(seeder), *([] if in_order else [address(member, "127.0.0.2")])]
        fetched = late.fetch(shared.torrent, tmp_path, peers=peers, in_order=in_order)
        assert b"".join(fetched.chunks(stall=too_long)) == shared.data
        assert seeder.counters()["uploaded"] - before == sent


def test_a_crowd_gets_from_seeds_what_no_member_has(
    share: Share, swarm: Open, tmp_path: Path
) -> None:
    """Where members bring nothing, seeds are asked after a moment."""
    seeder, member, late = (
        swarm(role=role, listen=(f"127.0.0.{number}:0",))
        for number, role in ((1, "seed"), (2, "fetch"), (3, "fetch"))
    )
    meet(late, share, tmp_path, seeder, member)
    shared = share(2 * MIB)
    seeder.seed(shared.torrent, shared.path, [])
    fetched = late.fetch(shared.torrent, tmp_path, peers=[address(seeder)], in_order=False)
    assert b"".join(fetched.chunks(stall=too_long)) == shared.data


def test_seeds_that_are_not_asked_yet_are_served(share: Share, swarm: Open, tmp_path: Path) -> None:
    """Whom a download leaves alone for a while may fetch other torrents here all the same."""
    shared = share(PIECE)
    both, other = swarm(role="seed"), swarm()
    both.seed(shared.torrent, shared.path, [])
    session, _ = both._start()
    lt_compat.keep_out(session, ["127.0.0.1"])
    fetched = other.fetch(shared.torrent, tmp_path / "got", peers=[address(both)])
    assert b"".join(fetched.chunks(stall=too_long)) == shared.data


def test_status_and_counters_say_what_moved(share: Share, swarm: Open, tmp_path: Path) -> None:
    """Both ends agree about the bytes of payload."""
    shared = share(MIB)
    seeder, leecher = swarm(role="seed"), swarm()
    seeder.seed(shared.torrent, shared.path, [])
    fetched = leecher.fetch(shared.torrent, tmp_path, peers=[address(seeder)])
    assert len(b"".join(fetched.chunks(stall=too_long))) == MIB
    # Each counts when its system says that bytes have gone, which may be later than they came.
    wait_until(lambda: seeder.counters()["uploaded"] >= MIB)
    wait_until(lambda: seeder.status()[0].uploaded >= MIB)
    wait_until(lambda: leecher.status()[0].state == "seeding")
    (sent,), (got,) = seeder.status(), leecher.status()
    assert (sent.infohash, sent.name, sent.state) == (shared.infohash, fetched.name, "seeding")
    assert (sent.uploaded, got.downloaded) == (MIB, MIB)
    assert (got.state, got.error) == ("seeding", "")
    assert seeder.counters()["uploaded"] == MIB
    assert leecher.counters()["downloaded"] == MIB
    assert seeder.counters()["incoming"] == 1
    assert leecher.counters()["incoming"] == 0


def test_a_refused_fetch_leaves_nothing(share: Share, swarm: Open, tmp_path: Path) -> None:
    """A daemon may be asked for what it fetches as often as somebody likes."""
    shared = share(MIB)
    leecher = swarm()
    kept = leecher.fetch(shared.torrent, tmp_path, in_order=False)
    for _ in range(3):
        with pytest.raises(BusyError):
            leecher.fetch(shared.torrent, tmp_path, in_order=False)
    gc.collect()
    downloads = (each for each in gc.get_objects() if isinstance(each, download.Download))
    assert [each for each in downloads if each.path.parent == tmp_path] == [kept]


def test_one_torrent_is_fetched_once(share: Share, swarm: Open, tmp_path: Path) -> None:
    """A second fetch is refused; seeding it again is the same torrent."""
    shared = share(1000)
    leecher = swarm()
    leecher.fetch(shared.torrent, tmp_path)
    with pytest.raises(BusyError) as caught:
        leecher.fetch(shared.torrent, tmp_path)
    assert str(caught.value) == "payload-1000.bin: this session has that torrent already"
    seeder = swarm(role="seed")
    assert seeder.seed(shared.torrent, shared.path, []) == shared.infohash
    assert seeder.seed(shared.torrent, shared.path, []) == shared.infohash
    assert len(seeder.status()) == 1


def test_removed_torrents_are_unknown(share: Share, swarm: Open) -> None:
    """`remove` leaves the file; everything else about the torrent is then an error."""
    shared = share(1000)
    seeder = swarm(role="seed")
    infohash = seeder.seed(shared.torrent, shared.path, [])
    seeder.remove(infohash)
    assert shared.path.read_bytes() == shared.data
    for call in (seeder.remove, seeder.reannounce):
        with pytest.raises(NotFoundError) as caught:
            call(infohash)
        assert str(caught.value) == f"{infohash}: is not in this session"


def test_garbage_is_not_a_torrent(swarm: Open, tmp_path: Path) -> None:
    """What a tracker sends in place of a torrent is refused."""
    with pytest.raises(InvalidInputError) as caught:
        swarm().fetch(b"<html>", tmp_path)
    assert str(caught.value) == "torrent: is not a torrent"


def test_seeding_pauses(share: Share, swarm: Open, tmp_path: Path) -> None:
    """A paused seed sends nothing; resumed, it is found again."""
    shared = share(PIECE)
    seeder, leecher = swarm(role="seed"), swarm()
    seeder.seed(shared.torrent, shared.path, [])
    seeder.pause_seeding(paused=True)
    fetched = leecher.fetch(shared.torrent, tmp_path / "got", peers=[address(seeder)])
    with pytest.raises(SwarmStalledError):
        next(fetched.chunks(stall=lambda progress: progress.idle > 0.5, tick=0.1))
    fetched.cancel(keep=False)
    seeder.pause_seeding(paused=False)
    seeder.limit_rates(0, 0)
    again = leecher.fetch(shared.torrent, tmp_path / "again", peers=[address(seeder)])
    assert b"".join(again.chunks(stall=too_long)) == shared.data


def test_a_session_for_the_local_network(share: Share, swarm: Open, tmp_path: Path) -> None:
    """What is seeded and what is fetched there comes from private addresses, as loopback's."""
    shared = share(PIECE)
    seeder, leecher = swarm(role="seed", lan_only=True), swarm(lan_only=True)
    seeder.seed(shared.torrent, shared.path, [])
    fetched = leecher.fetch(shared.torrent, tmp_path / "got", peers=[address(seeder)])
    assert b"".join(fetched.chunks(stall=too_long)) == shared.data
