# SPDX-License-Identifier: GPL-3.0-or-later
"""The tracker's page, without a server and without a browser."""

from __future__ import annotations

import html
import re
import threading
from array import array
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from werkzeug.test import Client, TestResponse

from narswarm import base32, narinfo
from narswarm.gcrypt import KeyPair
from narswarm.metainfo import decode_outside
from tests.tracker.conftest import Item
from tracker import blocks, database, page, search
from tracker.aclfile import AclFile
from tracker.announcer import Announcer
from tracker.app import TrackerApp
from tracker.blocks import Block, Kind
from tracker.holdings import Update
from tracker.index import Index
from tracker.metrics import RequestKey
from tracker.page import AT_A_TIME, EXAMINED, LISTED, POLICY, RESULTS
from tracker.publication import check
from tracker.settings import Settings
from tracker.swarmstore import MemorySwarms, StoreDownError

NOW = 1_700_000_000
EVIL = '"><script>alert(1)</script>'
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
MakeItem = Callable[..., Any]


class Site:
    """A tracker that is asked directly, with a clock."""

    def __init__(self, directory: Path, settings: Settings) -> None:
        self.now = float(NOW)
        self.directory = directory
        self.index = Index(directory)
        rng = Random(1)  # noqa: S311 - the same at each run
        self.swarms = MemorySwarms(settings.limits(), keep_downloads=True)
        self.announcer = Announcer(settings.policy(), self.swarms, self.index.is_listed, rng)
        self.acl_file = AclFile(settings.acl, self.index)
        self.app = TrackerApp(settings, self.index, self.announcer, self.acl_file, lambda: self.now)
        self.client = Client(self.app.wsgi())

    def get(self, target: str, accept: str = BROWSER, **headers: str) -> TestResponse:
        """One request, of a browser unless it says otherwise."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.client.get(
            target,
            headers={"Accept": accept, **named},
            environ_overrides={"REMOTE_ADDR": "127.0.0.1"},
        )

    def text(self, target: str) -> str:
        """A page that is there, as it is in the source."""
        response = self.get(target)
        assert response.status_code == 200
        assert response.content_type == "text/html; charset=utf-8"
        return response.text

    def publish(self, item: Item, publisher: bytes = bytes(32)) -> str:
        """Put an item into the index; its hash as in URLs."""
        acl = self.acl_file.refresh()
        assert acl is not None
        self.index.publish(check(item.nar_hash, item.body, acl, ()), publisher, NOW)
        return base32.encode(item.nar_hash)

    def hold(self, *nar_hashes: bytes) -> None:
        """A seeder says what it has."""
        numbers = array("Q", sorted(int.from_bytes(nar_hash[:8]) for nar_hash in nar_hashes))
        self.app.bulk._holdings.apply(bytes(32), Update(0, 1, numbers, array("Q")), self.now)

    def announce(self, item: Item, port: int, left: int = 0) -> None:
        """A client joins both swarms."""
        for info_hash in (item.meta.infohash_v1, item.meta.infohash_v2[:20]):
            quoted = "".join(f"%{byte:02x}" for byte in info_hash)
            query = f"info_hash={quoted}&peer_id={'p' * 20}&port={port}&left={left}"
            assert b"failure" not in self.get(f"/announce?{query}").data


@pytest.fixture(name="make_site")
def make_site_fixture(tmp_path: Path, acl_text: bytes) -> Iterator[Callable[..., Site]]:
    """A maker of trackers with settings."""
    acl = tmp_path / "acl"
    acl.write_bytes(acl_text)
    sites: list[Site] = []

    def make(**changes: Any) -> Site:
        sites.append(Site(tmp_path / f"{len(sites)}", replace(Settings(acl=acl), **changes)))
        return sites[-1]

    yield make
    for site in sites:
        site.index.close()


@pytest.fixture(name="site")
def site_fixture(make_site: Callable[..., Site]) -> Site:
    """A tracker with default settings."""
    return make_site()


def _words(text: str) -> str:
    """What a person reads of a page."""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", text)).split())


def test_first_page_of_an_empty_tracker(site: Site) -> None:
    """A new tracker says what it is, that nothing is there, and how to use it."""
    words = _words(site.text("/"))
    assert "closed · python engine" in words
    assert "There is no torrent yet." in words
    assert "Nothing yet." in words
    assert "Nobody waits for anything now." in words
    assert '[substituter] trackers = [ "http://localhost/announce", ]' in words
    assert '[seeder] trackers = [ "http://localhost/announce", ]' in words
    assert "http://localhost/announce udp://localhost:6969/announce" in words


def test_addresses(make_site: Callable[..., Site]) -> None:
    """Addresses are those of the settings, else those of the request."""
    site = make_site(url="https://t.example.org/x/", udp=False, open=True)
    words = _words(site.text("/"))
    assert '"https://t.example.org/x/announce"' in words
    assert "udp://" not in words
    assert "open · python engine" in words
    site = make_site(listen=("[::]:7000",))
    words = _words(site.get("/", Host="[2001:db8::1]:8080").text)
    assert "http://[2001:db8::1]:8080/announce udp://[2001:db8::1]:7000/announce" in words


@pytest.mark.parametrize("host", ["a b", "x/y", "a'b"])
def test_strange_hosts(site: Site, host: str) -> None:
    """A Host header that is none is refused, and never shown as an address."""
    response = site.get("/", Host=host)
    assert response.status_code == 400
    assert "/announce" not in response.text


def test_totals(site: Site, make_item: MakeItem) -> None:
    """The first page has the numbers of the index, the swarms and the holders."""
    items = [make_item(number) for number in range(1, 4)]
    for item in items:
        site.publish(item)
    for port in range(1, 7):
        site.announce(items[0], port)
    site.announce(items[1], 1)
    site.announce(items[1], 2, left=5)
    site.hold(bytes(32))
    words = _words(site.text("/"))
    for expected in ("NARs 3", "torrents 3", "swarms now 4", "seeds 14", "leechers 2", "holders 1"):
        assert expected in words
    assert "no seed: 1 1 seed: 1 2 to 4 seeds: 0 5 seeds or more: 1" in words
    assert "newest torrents" not in words


def test_lists(site: Site, make_item: MakeItem) -> None:
    """New items are listed, and those that are wanted most, by leechers and by requests."""
    items = [make_item(number, name=f"name{number}") for number in range(1, 14)]
    for item in items:
        site.publish(item)
    site.announce(items[0], 1, left=5)
    site.announce(items[1], 1, left=5)
    site.announce(items[1], 2, left=5)
    for _ in range(3):
        site.app.bulk._wanted.mark(items[2].nar_hash, (), NOW)
    site.app.bulk._wanted.mark(bytes(32), (), NOW)
    recent, _, wanted = _words(site.text("/")).partition("Recently added")[2].partition("Most")
    assert re.findall(r"name\d+", recent) == [f"name{13 - place}" for place in range(LISTED)]
    wanted = wanted.partition("Use it")[0]
    assert re.findall(r"name\d+", wanted) == ["name3", "name2", "name1"]
    assert "asked for 3 times 0 seeds" in wanted
    assert "0 seeds 2 leechers" in wanted


def test_cost_is_bounded(site: Site, make_item: MakeItem, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many look at the first page, numbers are worked out every few seconds."""
    asked: list[int] = []
    swarms = search.newest_swarms

    def counting(connection: Any, limit: int) -> Any:
        asked.append(limit)
        return swarms(connection, limit)

    monkeypatch.setattr(search, "newest_swarms", counting)
    assert "NARs 0" in _words(site.text("/"))
    site.publish(make_item())
    for later, nars in ((4.9, 0), (5, 1), (59, 1)):
        site.now = NOW + later
        assert f"NARs {nars}" in _words(site.text("/"))
        assert "no torrent yet" in site.text("/")
    assert asked == [EXAMINED]
    site.now = NOW + 64
    assert "no seed: 1" in _words(site.text("/"))
    assert asked == [EXAMINED] * 2


def test_many_torrents(site: Site, make_item: MakeItem, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seeds are counted of the newest torrents, which is said, and some at once."""
    for number in range(1, 6):
        site.publish(make_item(number))
    monkeypatch.setattr(page, "EXAMINED", 4)
    monkeypatch.setattr(page, "_AT_ONCE", 3)
    words = _words(site.text("/"))
    assert "no seed: 4" in words
    assert "Of the 4 newest torrents." in words


def test_swarms_that_do_not_answer(
    site: Site, make_item: MakeItem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without swarms there are no seeds, and all else is as it was."""

    def down(*_: object) -> None:
        raise StoreDownError("redis", "is gone")

    nar_hash = site.publish(make_item())
    monkeypatch.setattr(site.swarms, "counts", down)
    monkeypatch.setattr(site.swarms, "sample", down)
    assert "no seed: 1" in _words(site.text("/"))
    assert "0 seeds" in _words(site.text("/search?q=item"))
    assert "0 seeds" in _words(site.text(f"/item/{nar_hash}"))


def test_search(site: Site, make_item: MakeItem) -> None:
    """Items are found by words of their names, with their seeds."""
    item = make_item(1, name="hello-2.12")
    nar_hash = site.publish(item)
    site.publish(make_item(2, name="bash-5"))
    site.announce(item, 1)
    text = site.text("/search?q=2.12+HELLO")
    words = _words(text)
    assert "1 item with “2.12” and “hello”" in words
    assert "1 seed" in words
    assert f'href="/item/{nar_hash}"' in text
    assert "bash" not in words
    assert 'value="2.12 HELLO"' in text


def test_pages_of_results(site: Site, make_item: MakeItem) -> None:
    """Of many items, each page links to the next one until all were shown."""
    for number in range(1, 2 * RESULTS + 2):
        site.publish(make_item(number, name=f"x{number:03}"))
    target, found = "/search?q=x", list[str]()
    for size in (RESULTS, RESULTS, 1):
        text = site.text(target)
        names = re.findall(r">(x\d{3})<", text)
        assert len(names) == size
        found += names
        link = re.search(r'rel="next" href="([^"]*)"', text)
        target = html.unescape(link[1]) if link else ""
    assert (target, found) == ("", [f"x{number:03}" for number in range(1, 2 * RESULTS + 2)])


def test_a_search_out_of_time(
    site: Site, make_item: MakeItem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search has half a second; what is left is for the next request."""
    monkeypatch.setattr(page, "_SEARCH_SECONDS", 0)
    site.publish(make_item(1, name="x1"))
    site.publish(make_item(2, name="x2"))
    target, found = "/search?q=x", list[str]()
    for _ in range(20):
        text = site.text(target)
        found += re.findall(r">(x\d)<", text)
        link = re.search(r'rel="next" href="([^"]*)">Go on searching<', text)
        if link is None:
            break
        target = html.unescape(link[1])
    assert found == ["x1", "x2"]
    assert "That was all." in _words(text)


def test_exact_searches_lead_to_the_item(site: Site, make_item: MakeItem) -> None:
    """A hash, path, infohash or magnet link that is here goes straight to the item."""
    item = make_item(7, name="hello-2.12")
    nar_hash = site.publish(item)
    meta = item.meta
    for question in (
        nar_hash,
        f"sha256:{nar_hash}",
        item.nar_hash.hex(),
        item.hash_part,
        f"/gnu/store/{item.hash_part}-hello-2.12",
        meta.infohash_v1.hex(),
        meta.infohash_v2.hex(),
        meta.infohash_v2.hex()[:40],
        meta.magnet(),
    ):
        response = site.client.get("/search", query_string={"q": question})
        assert (response.status_code, response.location) == (302, f"/item/{nar_hash}"), question


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("", "A name or words of it"),
        ("nothing", "No item here has this in its name: nothing"),
        ("no thing", "No item here has all of these words in its name: no thing"),
        (EVIL, f"No item here has this in its name: {EVIL}"),
        ("0" * 52, "This tracker doesn't know that NAR."),
        ("0" * 40, "This tracker doesn't know that infohash."),
        ("0" * 64, "This tracker doesn't know that hash."),
        ("0" * 32, "This tracker doesn't know that store item."),
        ("\0%_'", "No item here has this in its name: \0%_'"),
    ],
)
def test_nothing_found(site: Site, make_item: MakeItem, question: str, expected: str) -> None:
    """Who finds nothing is told why, with what was asked for as text."""
    site.publish(make_item())
    response = site.client.get("/search", query_string={"q": question})
    assert response.status_code == 200
    assert expected in _words(response.text)
    assert "<script>alert" not in response.text


def test_several_nars_of_an_item(site: Site, make_item: MakeItem) -> None:
    """An item that was built in two ways is two results."""
    site.publish(make_item(1, path=5, name="x"))
    site.publish(make_item(2, b"other", path=5, name="x"))
    assert "2 items" in _words(site.text(f"/search?q={5:032}"))


def test_item(site: Site, make_item: MakeItem) -> None:
    """An item's page has paths, sizes, peers, claims, signer, links and what it refers to."""
    reference = f"{'7' * 32}-glibc-2.35"
    item = make_item(1, name="hello-2.12", references=(reference, f"{1:032}-hello-2.12"))
    nar_hash = site.publish(item)
    site.publish(item, b"\xff" * 32)
    site.publish(make_item(1, name="hi", path=2))
    site.announce(item, 1)
    site.announce(item, 2, left=5)
    site.now += 7200
    site.hold(item.nar_hash)
    text = site.text(f"/item/{nar_hash}")
    words = _words(text)
    for expected in (
        f"store paths /gnu/store/{1:032}-hello-2.12 /gnu/store/{2:032}-hi",
        "size 1000 B (1,000 bytes)",
        f"hash of the NAR sha256:{nar_hash}",
        "added 2 hours ago 2023-11-14 22:13 UTC",
        "holders 1 seeder said to have it",
        "peers 1 seed , 1 leecher",
        "payload 7 B nar.zst, 1 % of the NAR, pieces of 64.0 KiB",
        "claimed by AAAAAAAAAAAA… 2 hours ago , ////////////… 2 hours ago",
        f"infohash v1 {item.meta.infohash_v1.hex()}",
        f"infohash v2 {item.meta.infohash_v2.hex()}",
        "It needs 1 item glibc-2.35",
        f"StorePath: /gnu/store/{1:032}-hello-2.12 NarHash: sha256:{nar_hash}",
    ):
        assert expected in words, expected
    magnet = item.meta.magnet(["http://localhost/announce", "udp://localhost:6969/announce"])
    assert f'href="{html.escape(magnet)}"' in text
    assert f'href="/search?q={reference}"' in text
    links = re.findall(r'href="(/v1/[^"]*)"', text)
    assert links == [
        f"/v1/nar/{nar_hash}.torrent?infohash={item.meta.infohash_v2.hex()}",
        f"/v1/narinfo/{1:032}.narinfo",
        f"/v1/narinfo/{2:032}.narinfo",
    ]
    announce = decode_outside(site.get(links[0]).data, "torrent").trackers
    assert announce == ("http://localhost/announce",)
    assert site.get(links[1]).data.startswith(b"StorePath: ")


def test_hostile_narinfo(site: Site, make_item: MakeItem, signer: KeyPair) -> None:
    """What an authorised server signs is text all the same."""
    item = make_item()
    lines = item.narinfo.partition(b"Signature:")[0].partition(b"URL:")[0]
    raw = narinfo.sign(lines + f"Comment: {EVIL}\n".encode(), signer, "example.org")
    nar_hash = site.publish(item._replace(narinfo=raw))
    text = site.text(f"/item/{nar_hash}")
    assert f"Comment: {EVIL}" in html.unescape(text)
    assert "<script>alert" not in text


def test_many_claims(site: Site, make_item: MakeItem) -> None:
    """Of many publishers, some are named and the others counted."""
    item = make_item()
    for number in range(search.MAX_CLAIMS + 3):
        nar_hash = site.publish(item, bytes([number]) * 32)
    assert "and 3 more" in _words(site.text(f"/item/{nar_hash}"))


def test_what_was_withdrawn_or_blocked(site: Site, make_item: MakeItem) -> None:
    """What isn't to be seen any more isn't, and browsers get a page that says so."""
    withdrawn, blocked = site.publish(make_item(1)), site.publish(make_item(2))
    for nar_hash in (withdrawn, blocked):
        assert site.get(f"/item/{nar_hash}").status_code == 200
    with database.opened(site.directory) as connection, connection.transaction():
        blocks.withdraw(connection, base32.decode(withdrawn), "", NOW)
        blocks.add(connection, Block(Kind.NAR, base32.decode(blocked), "", NOW))
    for nar_hash in (withdrawn, blocked):
        response = site.get(f"/item/{nar_hash}")
        assert response.status_code == 404
        assert response.content_type == "text/html; charset=utf-8"
        assert f"404 {nar_hash}: is not in the index" in _words(response.text)
        assert response.headers["Cache-Control"] == "no-store"
        response = site.get(f"/item/{nar_hash}", accept="*/*")
        assert response.text == f"{nar_hash}: is not in the index\n"


@pytest.mark.parametrize(
    ("path", "status", "says"),
    [
        ("/nothing", 404, "There is nothing here"),
        ("/item/x", 404, "There is nothing here"),
        ("/static/x", 404, "There is nothing here"),
        (f"/item/{'u' * 52}", 400, "That didn't make sense"),
        (f"/{'0' * 32}.narinfo", 404, "There is nothing here"),
        ("/metrics", 403, "This isn't for you"),
        (f"/{EVIL}", 404, "There is nothing here"),
    ],
)
def test_errors(make_site: Callable[..., Site], path: str, status: int, says: str) -> None:
    """Browsers get errors as pages, also elsewhere; programs get them as ever."""
    site = make_site(metrics_from=("192.0.2.1",))
    response = site.get(path)
    assert response.status_code == status
    assert response.content_type == "text/html; charset=utf-8"
    assert says in _words(response.text)
    assert "<script>alert" not in response.text
    assert response.headers["Content-Security-Policy"] == POLICY
    assert response.headers["Vary"] == "Accept"
    for accept in ("*/*", "application/json", "text/html;q=0"):
        response = site.get(path, accept)
        assert (response.status_code, response.mimetype) == (status, "text/plain")


def test_errors_of_the_api_stay(site: Site) -> None:
    """Under /v1 an error is JSON, whoever asks, and so it is of other methods than GET."""
    response = site.get(f"/v1/nar/{'0' * 52}")
    assert (response.status_code, response.mimetype) == (404, "application/json")
    response = site.client.post("/", headers={"Accept": BROWSER})
    assert (response.status_code, response.mimetype) == (405, "text/plain")


def test_a_defect(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of the program is a page with a number, and without details."""

    def fail(*_: object) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr(search, "find_names", fail)
    response = site.get("/search?q=x")
    assert response.status_code == 500
    assert "Something went wrong here" in response.text
    assert "secret" not in response.text


def test_readers_take_turns(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """So many people are served at a time that threads are left for programs."""
    entered, go_on = threading.Semaphore(0), threading.Event()

    def wait(*_: object) -> search.NamePage:
        entered.release()
        assert go_on.wait(120)
        return search.NamePage([], None, in_time=True)

    monkeypatch.setattr(site.app.page, "_find", wait)
    statuses: list[int] = []

    def ask() -> None:
        client = Client(site.client.application)
        statuses.append(client.get("/search?q=x").status_code)

    readers = [threading.Thread(target=ask) for _ in range(AT_A_TIME)]
    for reader in readers:
        reader.start()
    for _ in readers:
        assert entered.acquire(timeout=120)
    response = site.get("/search?q=x")
    assert response.status_code == 503
    assert response.headers["Retry-After"] == "5"
    assert "Not just now" in response.text
    assert site.get("/nix-cache-info").status_code == 200
    go_on.set()
    for reader in readers:
        reader.join(120)
    assert statuses == [200] * AT_A_TIME
    assert site.get("/search?q=x").status_code == 200


@pytest.mark.parametrize(
    "path", ["/", "/search?q=x", "/item/{}", "/static/tracker.css", "/favicon.svg", "/robots.txt"]
)
def test_headers(site: Site, make_item: MakeItem, path: str) -> None:
    """Pages load nothing from elsewhere, are in no frame, and can be asked whether they changed."""
    path = path.format(site.publish(make_item()))
    response = site.get(path)
    assert response.status_code == 200
    assert response.headers["Content-Security-Policy"] == (
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    )
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Referrer-Policy"] == "no-referrer"
    assert response.cache_control.public
    assert "Set-Cookie" not in response.headers
    again = site.get(path, If_None_Match=response.headers["ETag"])
    assert (again.status_code, again.data) == (304, b"")
    head = site.client.head(path)
    assert (head.status_code, head.data) == (200, b"")


def test_the_api_has_no_headers_of_pages(site: Site) -> None:
    """Answers to programs are as they were."""
    assert "Content-Security-Policy" not in site.get("/nix-cache-info").headers


def test_files(site: Site) -> None:
    """What a page needs is on this tracker, and may be kept for a year under its address."""
    text = site.text("/")
    for link in re.findall(r'(?:src|href)="(/(?:static|favicon)[^"]*)"', text):
        response = site.get(html.unescape(link))
        assert response.status_code == 200
        assert response.cache_control.max_age == (31_536_000 if "?v=" in link else 3600)
    assert not re.search(r'(?:src|href)="(?!/|#|mailto:)', text)
    assert " style=" not in text
    assert site.get("/robots.txt").text == (
        "User-agent: *\nDisallow: /announce\nDisallow: /scrape\nDisallow: /search\nDisallow: /v1/\n"
    )


@pytest.mark.parametrize(
    ("contact", "link"),
    [
        ("ops@example.org", "mailto:ops@example.org"),
        ("https://example.org/about", "https://example.org/about"),
        ("javascript:alert(1)", None),
        ("room 5", None),
    ],
)
def test_title_and_contact(make_site: Callable[..., Site], contact: str, link: str | None) -> None:
    """The operator names tracker and contact; only addresses of mail and the web are links."""
    text = make_site(title="Ours & yours", contact=contact).text("/")
    assert "<h1>Ours &amp; yours</h1>" in text
    assert contact in text
    assert (f'href="{link}"' in text) is (link is not None)
    assert 'href="javascript' not in text


def test_no_page(make_site: Callable[..., Site]) -> None:
    """Without it there is nothing at its paths, and errors are text for browsers, too."""
    site = make_site(page=False)
    for path in ("/", "/search", f"/item/{'0' * 52}", "/static/tracker.css", "/robots.txt"):
        response = site.get(path)
        assert (response.status_code, response.mimetype) == (404, "text/plain")
        assert response.text == f"{path}: not found\n"
        assert "Content-Security-Policy" not in response.headers
    site.app.reconfigure(replace(site.app._settings, page=True))
    assert site.get("/").status_code == 200


def test_requests_are_counted(site: Site) -> None:
    """Pages are counted as what is read of the index."""
    site.get("/")
    values = site.announcer.metrics.requests.values()
    assert values == {RequestKey("http", "ipv4", "index", "ok"): 1}
