# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of substituter.sources: servers that misbehave, swarms that stall, and ones that don't."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
import zstandard

from narswarm import metainfo, narinfo
from narswarm.candidates import Candidate
from narswarm.download import Progress, SwarmStalledError
from narswarm.errors import InvalidInputError, NarswarmError, NetworkError
from narswarm.httpclient import HttpClient
from narswarm.merkle import PieceHasher
from narswarm.metainfo import Metainfo
from narswarm.payload import Kind, file_name
from narswarm.swarm import Swarm
from narswarm.swarm_settings import SwarmSettings
from substituter.report import Report, Transfer
from substituter.sources import MIN_RATE, HttpSource, Patience, SwarmSource, swarm_label
from tests.substituter.conftest import COMPRESS, Item, Site, torrent_of

Make = Callable[..., Item]
PATIENT = Patience(20.0, 20.0, 20.0)
LOOPBACK = {"listen": ("127.0.0.1:0",), "dht": False, "lsd": False, "upnp": False}


@pytest.fixture
def shown() -> list[str]:
    """What the user saw."""
    return []


class Seen:
    """A race with one participant; shows without a heartbeat."""

    def __init__(self, shown: list[str]) -> None:
        self._report = Report("/dest", "a", trace=True, columns=79, write=shown.append)
        self.dropped = False
        self.alone = False
        self.drop: Callable[[], None] = lambda: None

    def source(self, transfer: Transfer) -> None:
        """Show it at once."""
        self._report.source(transfer)

    def on_drop(self, callback: Callable[[], None]) -> None:
        """Keep it for the test."""
        self.drop = callback


@pytest.fixture
def report(shown: list[str]) -> Seen:
    """What the source sees of the race."""
    return Seen(shown)


@pytest.fixture
def client() -> Iterator[HttpClient]:
    """The connections."""
    with HttpClient(10.0) as made:
        yield made


@pytest.fixture
def item(make_item: Make) -> Item:
    """The item that is fetched."""
    return make_item("a", bytes(range(256)) * 400)


def progress(*, idle: float = 0.0, received: int = 0, done: int | None = None) -> Progress:
    """A download as patience sees it."""
    return Progress(received if done is None else done, 10**9, 1, 0, idle, received)


@pytest.mark.parametrize(
    ("idle", "received", "elapsed", "gives_up"),
    [
        (0.0, 0, 0.0, False),
        (2.0, 0, 2.0, False),
        (2.01, 0, 2.01, True),
        (2.01, 1, 2.01, False),
        (5.0, 100_000, 9.0, False),
        (5.01, 100_000, 9.0, True),
    ],
)
def test_a_swarm_may_be_silent_for_some_time(
    idle: float, received: int, elapsed: float, gives_up: bool
) -> None:
    """Until the first byte there is one limit, and between two bytes another."""
    seen = progress(idle=idle, received=received)
    assert Patience(2.0, 5.0, 30.0).is_over(seen, elapsed, alone=False) is gives_up
    assert not Patience(2.0, 5.0, 30.0).is_over(seen, elapsed, alone=True)


@pytest.mark.parametrize(
    ("done", "elapsed", "gives_up"),
    [
        (MIN_RATE * 100 - 1, 105.0, True),
        (MIN_RATE * 100, 105.0, False),
        (MIN_RATE * 100 + 1, 105.0, False),
        (1, 5.1, True),
    ],
)
def test_a_swarm_that_drips_is_given_up(done: int, elapsed: float, gives_up: bool) -> None:
    """A peer that sends a byte now and then, or wrong bytes, doesn't hold an item for ever."""
    seen = progress(idle=0.1, received=10**8, done=done)
    assert Patience(2.0, 5.0, 30.0).is_over(seen, elapsed, alone=False) is gives_up


def fetch(
    client: HttpClient, report: Seen, source: narinfo.Source, item: Item, size: int | None = None
) -> bytes:
    """The NAR as one URL gives it."""
    with HttpSource(client, source, len(item.nar) if size is None else size).nar(report) as nar:
        return b"".join(nar)


def answer(
    body: bytes, *, length: int | None = None, until: threading.Event | None = None
) -> Callable[[BaseHTTPRequestHandler], None]:
    """A server's answer with this Content-Length; the connection is closed after an event."""

    def handle(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        if length is not None:
            handler.send_header("Content-Length", str(length))
        handler.end_headers()
        handler.wfile.write(body)
        handler.wfile.flush()
        if until is not None:
            until.wait(120)
        handler.close_connection = True

    return handle


@pytest.mark.parametrize("status", [404, 500])
def test_a_server_without_the_nar_says_so(
    client: HttpClient, report: Seen, shown: list[str], site: Site, item: Item, status: int
) -> None:
    """Another status than 200 is an error, and no download has started then."""

    def refuse(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    site.bodies["/nar"] = refuse
    with pytest.raises(NetworkError) as caught:
        fetch(client, report, narinfo.Source(f"{site.url}/nar", "none"), item)
    assert str(caught.value) == f"{site.url}/nar: the server answered {status}"
    assert shown == []


@pytest.mark.parametrize("kind", ["none", "zstd"])
def test_a_body_shorter_than_announced_is_an_error(
    client: HttpClient, report: Seen, site: Site, item: Item, kind: str
) -> None:
    """A connection that ends early is the server's fault, not that of the data."""
    data = item.nar if kind == "none" else zstandard.compress(item.nar)
    site.bodies["/nar"] = answer(data[:-10], length=len(data))
    with pytest.raises(NetworkError) as caught:
        fetch(client, report, narinfo.Source(f"{site.url}/nar", kind), item)
    assert str(caught.value) == (
        f"{site.url}/nar: ended after {len(data) - 10} of {len(data)} bytes"
    )


def test_a_longer_body_is_cut_at_the_size_of_the_nar(
    client: HttpClient, report: Seen, site: Site, item: Item
) -> None:
    """What an uncompressed answer has beyond NarSize is never looked at."""
    site.bodies["/nar"] = item.nar + b"more"
    assert fetch(client, report, narinfo.Source(f"{site.url}/nar", "none"), item) == item.nar


@pytest.mark.parametrize("beyond", [0, 1])
def test_a_bomb_stops_at_the_size_of_the_nar(
    client: HttpClient, report: Seen, site: Site, item: Item, beyond: int
) -> None:
    """A small body that decompresses to more than NarSize is an error as soon as it does."""
    size = 1 << 20
    site.bodies["/nar"] = zstandard.compress(bytes(size + beyond * (64 << 20)))
    source = narinfo.Source(f"{site.url}/nar", "zstd")
    if not beyond:
        assert fetch(client, report, source, item, size) == bytes(size)
        return
    received = bytearray()
    with (
        pytest.raises(InvalidInputError) as caught,
        HttpSource(client, source, size).nar(report) as nar,
    ):
        received.extend(itertools.chain.from_iterable(nar))
    assert str(caught.value) == f"{site.url}/nar: decompresses to more than {size} bytes"
    assert len(received) <= size


def test_a_connection_that_stays_open_is_left_after_the_nar(
    client: HttpClient, report: Seen, shown: list[str], site: Site, item: Item
) -> None:
    """`guix publish` sends plain NARs without a length and doesn't close the connection."""
    over = threading.Event()
    site.bodies["/nar"] = answer(item.nar, until=over)
    try:
        assert fetch(client, report, narinfo.Source(f"{site.url}/nar", "none"), item) == item.nar
    finally:
        over.set()
    # There is a size to show all the same: that of the NAR.
    assert shown == [f"@ download-started /dest {site.url}/nar {len(item.nar)}\n"]


def test_without_a_length_the_narinfo_says_how_much_will_come(
    client: HttpClient, report: Seen, shown: list[str], site: Site, item: Item
) -> None:
    """FileSize is shown where the server doesn't say; nothing is, where nobody does."""
    site.bodies["/nar"] = answer(zstandard.compress(item.nar))
    url = f"{site.url}/nar"
    for size in (77, None):
        assert fetch(client, report, narinfo.Source(url, "zstd", size), item) == item.nar
    assert shown == [f"@ download-started /dest {url} {size}\n" for size in ("77", "-")]


@pytest.mark.parametrize("url", ["ftp://h/nar", "http://user@127.0.0.1:9/nar", "http://[/nar"])
def test_a_url_that_cannot_be_fetched_is_an_error(
    client: HttpClient, report: Seen, item: Item, url: str
) -> None:
    """URLs aren't signed; an impossible one leads to the next source."""
    with pytest.raises(NetworkError):
        fetch(client, report, narinfo.Source(url, "none"), item)


@pytest.mark.parametrize(
    ("url", "host"),
    [("http://h:8181/nar", "h:8181"), ("https://h/nar", "h"), ("ftp://h/nar", "")],
)
def test_the_host_tells_servers_apart(client: HttpClient, url: str, host: str) -> None:
    """Those with the same are silent together."""
    assert HttpSource(client, narinfo.Source(url, "none"), 1).host == host


def candidate(item: Item, directory: Path, kind: Kind) -> tuple[Candidate, Path]:
    """The torrent of an item and its payload."""
    directory.mkdir()
    if kind is Kind.ZSTD:
        torrent, payload = torrent_of(item, directory)
    else:
        server = kind is Kind.SERVER
        name = item.path.rpartition("/")[2] if server else file_name(item.nar_hash, kind)
        payload = directory / name
        payload.write_bytes(COMPRESS["gzip"](item.nar) if server else item.nar)
        hasher = PieceHasher()
        hasher.update(payload.read_bytes())
        torrent = Metainfo.of(payload.name, hasher.finish()).encode()
    meta = metainfo.decode(torrent, "torrent")
    return Candidate(torrent, meta.infohash_v2.hex(), meta.length, kind), payload


def swarm_source(
    swarm: Swarm, found: Candidate, item: Item, downloads: Path, patience: Patience
) -> SwarmSource:
    """Fetch from a swarm without trackers."""
    downloads.mkdir(exist_ok=True)
    return SwarmSource(swarm, found, len(item.nar), downloads, (), patience, "a")


@pytest.mark.parametrize("kind", list(Kind))
def test_a_swarm_delivers_all_kinds_of_payload(
    report: Seen, shown: list[str], item: Item, tmp_path: Path, kind: Kind
) -> None:
    """What is compressed is decompressed, plain NARs are passed on; nothing is left on disk."""
    found, payload = candidate(item, tmp_path / "seed", kind)
    with (
        Swarm(SwarmSettings(**LOOPBACK, role="seed")) as seed,  # type: ignore[arg-type]
        Swarm(SwarmSettings(**LOOPBACK)) as swarm,  # type: ignore[arg-type]
    ):
        seed.seed(found.torrent, payload, [])
        found = found._replace(peers=(("127.0.0.1", seed.listen_port),))
        source = swarm_source(swarm, found, item, tmp_path / "downloads", PATIENT)
        assert source.peers == 0
        with source.nar(report) as nar:
            assert b"".join(nar) == item.nar
            assert source.peers in (0, 1)  # a seed goes when it isn't needed any more
        assert source.peers == 0
    assert list((tmp_path / "downloads").iterdir()) == []
    line = f"@ download-started /dest bittorrent://{found.infohash}/a,swarm"
    assert len(shown) == 1
    assert shown[0] in [f"{line}{peers} {found.length}\n" for peers in ("", ",1-peer")]


def test_a_swarm_without_peers_stalls_and_leaves_nothing(
    report: Seen, item: Item, tmp_path: Path
) -> None:
    """When patience is over the next source is tried, and the partial download is gone."""
    found, payload = candidate(item, tmp_path / "seed", Kind.ZSTD)
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    (downloads / payload.name).write_bytes(b"left by a killed helper")
    with Swarm(SwarmSettings(**LOOPBACK)) as swarm:  # type: ignore[arg-type]
        source = swarm_source(swarm, found, item, downloads, Patience(0.3, 0.3, 0.3))
        with pytest.raises(SwarmStalledError) as caught, source.nar(report) as nar:
            next(nar)
        assert str(caught.value) == (
            f"{payload.name}: the swarm stalled at 0 of {found.length} bytes with 0 peers"
        )
        assert list(downloads.iterdir()) == []
        # The torrent has left the session, too: it can be tried again.
        with pytest.raises(SwarmStalledError), source.nar(report) as nar:
            next(nar)


class Impatient(Patience):
    """Gives up at once, and remembers what it was told."""

    def __init__(self) -> None:
        super().__init__(0.0, 0.0, 0.0)
        self.told: list[bool] = []

    def is_over(self, progress: Progress, elapsed: float, *, alone: bool) -> bool:
        """Give up."""
        del progress, elapsed
        self.told.append(alone)
        return True


@pytest.mark.parametrize(
    ("members", "kept", "patient"), [(0, True, False), (1, True, True), (1, False, False)]
)
def test_a_crowd_is_waited_for_by_those_who_have_time(
    report: Seen,
    item: Item,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    members: int,
    *,
    kept: bool,
    patient: bool,
) -> None:
    """Its members listen before they ask seeds, and bring what is fetched ahead in the end."""
    found, _ = candidate(item, tmp_path / "seed", Kind.ZSTD)
    patience = Impatient()
    with Swarm(SwarmSettings(**LOOPBACK)) as swarm:  # type: ignore[arg-type]
        monkeypatch.setattr(swarm, "members", lambda: members)
        source = SwarmSource(
            swarm,
            found,
            len(item.nar),
            tmp_path,
            (),
            patience,
            "a",
            keep=(lambda _: None) if kept else None,
        )
        with pytest.raises(SwarmStalledError), source.nar(report) as nar:
            next(nar)
    assert patience.told == [patient]


def test_a_source_that_lost_the_race_leaves(report: Seen, item: Item, tmp_path: Path) -> None:
    """A swarm looks now and then whether its bytes are still wanted."""
    found, _ = candidate(item, tmp_path / "seed", Kind.ZSTD)
    with Swarm(SwarmSettings(**LOOPBACK)) as swarm:  # type: ignore[arg-type]
        source = swarm_source(swarm, found, item, tmp_path / "downloads", PATIENT)
        report.dropped = True
        with pytest.raises(SwarmStalledError), source.nar(report) as nar:
            next(nar)


def test_a_server_that_lost_the_race_is_left(
    client: HttpClient, report: Seen, site: Site, item: Item
) -> None:
    """Also while it is silent: nobody waits for its time-out."""
    over = threading.Event()
    site.bodies["/nar"] = answer(item.nar[:100], length=len(item.nar), until=over)
    source = HttpSource(client, narinfo.Source(f"{site.url}/nar", "none"), len(item.nar))
    try:
        with source.nar(report) as nar:
            assert next(nar) == item.nar[:100]
            report.drop()
            with pytest.raises(NetworkError):
                next(nar)
    finally:
        over.set()


def test_a_reader_that_stops_leaves_the_swarm(report: Seen, item: Item, tmp_path: Path) -> None:
    """What the gate refuses in the middle ends the download."""
    found, _ = candidate(item, tmp_path / "seed", Kind.ZSTD)
    with Swarm(SwarmSettings(**LOOPBACK)) as swarm:  # type: ignore[arg-type]
        source = swarm_source(swarm, found, item, tmp_path / "downloads", PATIENT)
        with pytest.raises(NarswarmError, match="x: not wanted"), source.nar(report):
            raise NarswarmError("x", "not wanted")
        assert swarm.status() == []
    assert list((tmp_path / "downloads").iterdir()) == []


@pytest.mark.parametrize(
    ("peers", "label"), [(0, "swarm"), (1, "swarm, 1 peer"), (7, "swarm, 7 peers")]
)
def test_a_swarm_is_named_by_its_peers(peers: int, label: str) -> None:
    """Without any, as when everything was here already, it is just a swarm."""
    assert swarm_label(peers) == label
