# SPDX-License-Identifier: GPL-3.0-or-later
"""Holdings and what is wanted, without a server."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from werkzeug.test import Client, TestResponse

from narswarm import base32, bencoding, httpsig
from narswarm.bencoding import Value
from narswarm.httpsig import PublisherKey
from narswarm.trackerclient import pack_hashes
from tracker import bulk as bulk_module
from tracker.aclfile import AclFile
from tracker.announcer import Announcer, UnavailableError
from tracker.app import TrackerApp
from tracker.blocks import BlockList
from tracker.bulk import BulkTotals
from tracker.holdings import LEASE, MAX_BODY, parse_update
from tracker.index import Index
from tracker.parking import ENVIRON, Poll, Reply
from tracker.settings import Settings
from tracker.swarmstore import MemorySwarms
from tracker.wanted import LIFETIME

if TYPE_CHECKING:
    MakeItem = Callable[..., Any]

NOW = 1_700_000_000
KEY, OTHER = PublisherKey.generate(), PublisherKey.generate()


def _body(*added: bytes, **numbers: int) -> bytes:
    """What a seeder sends, a complete list unless numbers say otherwise."""
    content: dict[bytes, Value] = {
        b"added": pack_hashes(added),
        b"base": 0,
        b"generation": 1,
        b"port": 6881,
        b"removed": b"",
    }
    return bencoding.encode(content | {name.encode(): value for name, value in numbers.items()})


class Site:
    """A tracker that is asked directly, at a time which the test sets."""

    def __init__(self, directory: Path, acl: Path, **changes: Any) -> None:
        self.now = NOW
        self.settings = replace(Settings(acl=acl), **changes)
        self.index = Index(directory)
        rng = Random(1)  # noqa: S311 - the same at each run
        swarms = MemorySwarms(self.settings.limits(), keep_downloads=True)
        self.announcer = Announcer(self.settings.policy(), swarms, self.index.is_listed, rng)
        acl_file = AclFile(acl, self.index)
        self.app = TrackerApp(self.settings, self.index, self.announcer, acl_file, lambda: self.now)
        self.client = Client(self.app.wsgi())

    def post(
        self,
        *added: bytes,
        key: PublisherKey = KEY,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        **numbers: int,
    ) -> TestResponse:
        """Say what a key holds."""
        body = _body(*added, **numbers) if body is None else body
        signed = httpsig.sign_request(key, "POST", "/v1/holdings", body, self.now)
        sent = {**signed, "Content-Type": "application/x-bencode", **(headers or {})}
        return self.client.post("/v1/holdings", data=body, headers=sent)

    def wanted(
        self, query: str = "", key: PublisherKey = KEY, headers: Mapping[str, str] | None = None
    ) -> TestResponse:
        """Ask what is wanted."""
        signed = httpsig.sign_request(key, "GET", "/v1/wanted", b"", self.now)
        return self.client.get(f"/v1/wanted?{query}", headers={**signed, **(headers or {})})

    def told(self, query: str = "", key: PublisherKey = KEY) -> list[str]:
        """The NARs that are wanted."""
        answer = self.wanted(query, key).json
        assert answer is not None
        return [item["nar_hash"] for item in answer["wanted"]]

    def put(self, item: Any, body: bytes | None = None) -> TestResponse:
        """Publish an item."""
        path = f"/v1/nar/{base32.encode(item.nar_hash)}"
        body = item.body if body is None else body
        headers = httpsig.sign_request(KEY, "PUT", path, body, self.now)
        return self.client.put(
            path, data=body, headers={**headers, "Content-Type": "application/x-bencode"}
        )

    def torrent(self, nar_hash: bytes, query: str = "") -> TestResponse:
        """Ask for a torrent."""
        return self.client.get(f"/v1/nar/{base32.encode(nar_hash)}.torrent{query}")

    def announce(self, info_hash: bytes, left: int = 0) -> None:
        """Announce a peer."""
        query = f"info_hash={quote(info_hash)}&peer_id={'p' * 20}&port=1&left={left}"
        environ = {"REMOTE_ADDR": "192.0.2.1"}
        self.client.get(f"/announce?{query}", environ_overrides=environ)


MakeSite = Callable[..., Site]


@pytest.fixture(name="make_site")
def make_site_fixture(tmp_path: Path, acl_text: bytes) -> Iterator[MakeSite]:
    """A maker of trackers with settings."""
    acl = tmp_path / "acl"
    acl.write_bytes(acl_text)
    sites: list[Site] = []

    def make(**changes: Any) -> Site:
        sites.append(Site(tmp_path / f"{len(sites)}", acl, **changes))
        return sites[-1]

    yield make
    for site in sites:
        site.app.close()
        site.index.close()


@pytest.fixture(name="site")
def site_fixture(make_site: MakeSite) -> Site:
    """A tracker with default settings."""
    return make_site()


def _assert_error(response: TestResponse, status: int, error: str) -> None:
    assert response.status_code == status
    assert response.json is not None
    assert response.json["error"] == error


def test_holdings(site: Site, make_item: MakeItem) -> None:
    """A list is taken, counted at each NAR, and changed."""
    item, other = make_item(1), make_item(2)
    response = site.post(item.nar_hash, other.nar_hash)
    assert (response.status_code, response.json) == (
        200,
        {"generation": 1, "held": 2, "lease": LEASE},
    )
    assert site.post(base=1, generation=1).status_code == 200
    site.put(item)
    name = base32.encode(item.nar_hash)
    entry = site.client.get(f"/v1/nar/{name}")
    assert entry.json is not None
    assert (entry.status_code, entry.json["holders"], len(entry.json["torrents"])) == (200, 1, 1)
    name = base32.encode(other.nar_hash)
    entry = site.client.get(f"/v1/nar/{name}")
    assert (entry.status_code, entry.headers["Retry-After"], entry.json) == (
        202,
        "2",
        {"nar_hash": f"sha256:{name}", "nar_size": None, "torrents": [], "holders": 1},
    )
    assert site.app.bulk.totals() == BulkTotals(1, 2, 0, 0, 0)


def test_preparing(site: Site, make_item: MakeItem) -> None:
    """A torrent that is asked for is wanted until somebody seeds it."""
    item = make_item()
    name = base32.encode(item.nar_hash)
    assert site.torrent(item.nar_hash).status_code == 404
    site.post(item.nar_hash)
    assert site.told() == []
    response = site.torrent(item.nar_hash)
    assert (response.status_code, response.headers["Retry-After"], response.json) == (
        202,
        "2",
        {"nar_hash": f"sha256:{name}", "holders": 1},
    )
    assert site.told() == [f"sha256:{name}"]
    assert site.app.bulk.totals() == BulkTotals(1, 1, 1, 0, 1)
    assert site.put(item).status_code == 201
    assert site.told() == [f"sha256:{name}"]
    site.announce(item.meta.infohash_v2[:20], left=1)
    assert site.told() == [f"sha256:{name}"]
    site.announce(item.meta.infohash_v2[:20])
    assert site.told() == []
    assert site.torrent(item.nar_hash).status_code == 200
    assert site.app.bulk.totals() == BulkTotals(1, 1, 0, 0, 1)


def test_torrents_without_seeds(site: Site, make_item: MakeItem) -> None:
    """A torrent that nobody seeds is given, and wanted of who could seed it."""
    item = make_item()
    site.put(item)
    assert site.torrent(item.nar_hash).status_code == 200
    assert site.app.bulk.totals().wanted == 0
    site.post(item.nar_hash)
    assert site.torrent(item.nar_hash).status_code == 200
    assert site.told() == [base32.format_hash(item.nar_hash)]
    assert site.app.bulk.totals().preparing == 0


def test_what_is_not_asked_for(site: Site, make_item: MakeItem) -> None:
    """Another torrent of a NAR than those there are isn't made, whoever holds the NAR."""
    item = make_item()
    site.post(item.nar_hash)
    assert site.torrent(item.nar_hash, f"?infohash={'ab' * 32}").status_code == 404
    assert site.app.bulk.totals().wanted == 0


def test_only_what_one_holds(site: Site, make_item: MakeItem) -> None:
    """A seeder is told of what it holds, and what came since it asked."""
    first, second = make_item(1), make_item(2)
    site.post(first.nar_hash, second.nar_hash)
    site.post(second.nar_hash, key=OTHER)
    site.torrent(first.nar_hash)
    answer = site.wanted().json
    assert answer is not None
    site.torrent(second.nar_hash)
    site.torrent(second.nar_hash)
    assert answer["wanted"] == [{"nar_hash": base32.format_hash(first.nar_hash), "requests": 1}]
    later = site.wanted(f"since={answer['cursor']}").json
    assert later is not None
    assert later["wanted"] == [{"nar_hash": base32.format_hash(second.nar_hash), "requests": 2}]
    assert site.told(key=OTHER) == [base32.format_hash(second.nar_hash)]


def test_time(site: Site, make_item: MakeItem) -> None:
    """What is wanted isn't any more after ten minutes, and nobody holds it after the lease."""
    item = make_item()
    site.post(item.nar_hash)
    site.torrent(item.nar_hash)
    site.now = NOW + LIFETIME - 1
    assert len(site.told()) == 1
    site.now = NOW + LIFETIME
    assert site.told() == []
    site.now = NOW + LEASE
    assert site.torrent(item.nar_hash).status_code == 404
    response = site.wanted()
    error = "base: is not the generation that this tracker has, 0"
    _assert_error(response, 409, error)
    assert response.json == {"error": error, "generation": 0}


def test_stale_and_early_lists(site: Site) -> None:
    """Who is to send something else is told what, or when."""
    site.post(bytes(32), generation=5)
    response = site.post(base=4, generation=6)
    assert response.json == {
        "error": "base: is not the generation that this tracker has, 5",
        "generation": 5,
    }
    response = site.post(bytes(32), generation=6)
    _assert_error(response, 429, "base: is 0 again too soon; wait 60 s or send a change")
    assert response.headers["Retry-After"] == "60"


def test_who_may_say_what_it_holds(make_site: MakeSite, make_item: MakeItem) -> None:
    """Where publishers are listed, the others are refused, and what they said before is void."""
    site, item = make_site(), make_item()
    site.post(item.nar_hash)
    site.post(item.nar_hash, key=OTHER)
    keyid = base64.b64encode(OTHER.public).decode()
    site.app.reconfigure(replace(site.settings, publishers=(keyid,)))
    error = "publisher: is not among those that may publish here"
    _assert_error(site.post(), 403, error)
    _assert_error(site.wanted(), 403, error)
    assert site.torrent(item.nar_hash).json == {
        "nar_hash": base32.format_hash(item.nar_hash),
        "holders": 1,
    }


def test_blocked_publishers(site: Site, make_item: MakeItem) -> None:
    """A key that the operator blocked holds nothing and is told nothing."""
    item = make_item()
    site.post(item.nar_hash)
    site.announcer.blocks = BlockList(publishers=[KEY.public])
    error = "publisher: is blocked by this tracker's operator"
    _assert_error(site.post(), 403, error)
    _assert_error(site.wanted(), 403, error)
    _assert_error(site.put(item), 403, error)
    assert site.torrent(item.nar_hash).status_code == 404


def test_blocked_nars(site: Site, make_item: MakeItem) -> None:
    """A NAR that the operator blocked or withdrew is wanted of nobody, also if it was before."""
    item = make_item()
    site.post(item.nar_hash)
    site.torrent(item.nar_hash)
    site.announcer.blocks = BlockList(nars=[item.nar_hash])
    assert site.told() == []
    assert site.torrent(item.nar_hash).status_code == 404
    assert site.client.get(f"/v1/nar/{base32.encode(item.nar_hash)}").status_code == 404


@pytest.mark.parametrize(
    ("changes", "status", "error"),
    [
        (
            {"headers": {"Content-Digest": "x"}},
            401,
            "Content-Digest: is not the SHA-256 of the body",
        ),
        (
            {"headers": {"Content-Type": "text/plain"}},
            400,
            "Content-Type: is not application/x-bencode",
        ),
        ({"body": b"x"}, 400, "holdings: bencoding has no canonical value at byte 0"),
        ({"port": 0}, 400, "port: is not between 1 and 65535"),
    ],
)
def test_bad_holdings(site: Site, changes: dict[str, Any], status: int, error: str) -> None:
    """What is wrong with a request is said in one line."""
    _assert_error(site.post(**changes), status, error)


def test_long_bodies(site: Site) -> None:
    """A body has a length, and no more than 32 MiB."""
    length = {"CONTENT_LENGTH": str(MAX_BODY + 1)}
    response = site.client.post("/v1/holdings", data=b"x", environ_overrides=length)
    _assert_error(response, 413, "/v1/holdings: request entity too large")
    response = site.client.post("/v1/holdings", headers={"Transfer-Encoding": "chunked"})
    _assert_error(response, 411, "/v1/holdings: length required")


def test_limits(make_site: MakeSite, make_item: MakeItem) -> None:
    """More holders or items than the operator grants are refused; settings change that at once."""
    site = make_site(max_holders=1, max_holder_items=1)
    hashes = [make_item(number).nar_hash for number in (1, 2)]
    _assert_error(site.post(*hashes), 413, "holdings: are more than 1 items")
    assert site.post(hashes[0]).status_code == 200
    error = "holdings: are full: too many keys have some"
    _assert_error(site.post(hashes[0], key=OTHER), 507, error)
    site.app.reconfigure(replace(site.settings, max_holders=2))
    assert site.post(hashes[0], key=OTHER).status_code == 200


def test_few_long_bodies_at_a_time(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long lists are read a few at a time; who comes then is told to come back."""
    monkeypatch.setattr(bulk_module, "_LARGE_BODY", 10)
    monkeypatch.setattr(site.app.bulk, "_large", threading.BoundedSemaphore(1))
    assert site.post().status_code == 200
    with site.app.bulk._room(11):
        response = site.post(base=1, generation=1)
        _assert_error(response, 503, "holdings: are being sent by others; try again")
        assert response.headers["Retry-After"] == "5"
    assert site.post(base=1, generation=1).status_code == 200


@pytest.mark.parametrize("name", ["since", "wait"])
@pytest.mark.parametrize("value", ["x", "-1", "1.5", "", "1" * 17])
def test_bad_questions(site: Site, name: str, value: str) -> None:
    """Cursor and wait are numbers."""
    site.post()
    _assert_error(site.wanted(f"{name}={value}"), 400, f"{name}: is not a number")


def test_without_a_server_to_wait(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the connection can't be kept the answer comes at once; if too many wait, a refusal."""
    site.post()
    response = site.wanted("wait=50")
    assert (response.status_code, response.json and response.json["wanted"]) == (200, [])
    monkeypatch.setattr(site.app.bulk.parking, "has_room", lambda: False)
    response = site.wanted("wait=50")
    _assert_error(response, 503, "wanted: is what too many wait for; try again")
    assert site.wanted("wait=0").status_code == 200


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_who_waits(site: Site, method: str) -> None:
    """A question may wait on its connection; one for headers only is answered at once."""
    site.post()
    seen: list[dict[str, Any]] = []
    wsgi = site.app.wsgi()

    def noting(environ: dict[str, Any], start_response: Any) -> Any:
        seen.append(environ)
        return wsgi(environ, start_response)

    headers = httpsig.sign_request(KEY, method, "/v1/wanted", b"", NOW)
    response = Client(noting).open("/v1/wanted?wait=50", method=method, headers=headers)
    assert response.status_code == 200
    assert seen[0].get(ENVIRON) == (Poll(KEY.public, 0, 50) if method == "GET" else None)


def _waits(site: Site, item: Any, query: str = "?wait=50", method: str = "GET") -> Any:
    """Ask for a torrent; what answers the request if it waits."""
    seen: list[dict[str, Any]] = []
    wsgi = site.app.wsgi()

    def noting(environ: dict[str, Any], start_response: Any) -> Any:
        seen.append(environ)
        return wsgi(environ, start_response)

    path = f"/v1/nar/{base32.encode(item.nar_hash)}.torrent{query}"
    assert Client(noting).open(path, method=method).status_code == 202
    return seen[0].get(ENVIRON)


def test_waiting_for_a_torrent(site: Site, make_item: MakeItem) -> None:
    """Who waits for a torrent gets it when it has a seed, or is told that it isn't made yet."""
    item = make_item()
    site.post(item.nar_hash)
    poll = _waits(site, item)
    assert (poll.key, poll.wait) == (b"nar " + item.nar_hash, 50)
    assert poll.own(False) is None
    later = poll.own(True)
    assert (later.status, later.content_type, later.retry_after) == (
        *("202 ACCEPTED", "application/json", 2),
    )
    assert json.loads(later.body) == {
        "nar_hash": base32.format_hash(item.nar_hash),
        "holders": 1,
    }
    woken: list[list[bytes]] = []
    site.app.bulk.parking.wake = woken.append  # type: ignore[method-assign, assignment]
    site.put(item)
    assert woken == [[poll.key]]
    assert poll.own(False) == bulk_module.LOOK
    expected = Reply(site.torrent(item.nar_hash).data, "application/x-bittorrent")
    assert poll.own(True) == expected
    site.announce(item.meta.infohash_v1)
    assert poll.own(False) == expected


def test_a_torrent_that_nobody_seeds(site: Site, make_item: MakeItem) -> None:
    """It is given all the same to who has waited for a seed for some seconds."""
    item = make_item()
    site.post(item.nar_hash)
    poll = _waits(site, item)
    site.put(item)
    assert poll.own(False) == bulk_module.LOOK
    site.now += int(bulk_module.SEED_SECONDS)
    assert poll.own(False).content_type == "application/x-bittorrent"


def test_who_does_not_wait_for_a_torrent(
    site: Site, make_item: MakeItem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits who didn't say so, asks for headers only, or finds no room."""
    item = make_item()
    site.post(item.nar_hash)
    assert _waits(site, item, "") is None
    assert _waits(site, item, method="HEAD") is None
    path = f"/v1/nar/{base32.encode(item.nar_hash)}.torrent?wait=x"
    _assert_error(site.client.get(path), 400, "wait: is not a number")
    monkeypatch.setattr(site.app.bulk.parking, "has_room", lambda *, own: not own)
    assert _waits(site, item) is None


def test_swarms_that_do_not_answer(
    site: Site, make_item: MakeItem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When it can't be told whether somebody seeds, it is wanted."""

    def down(_: object) -> None:
        raise UnavailableError("down")

    item = make_item()
    site.put(item)
    site.announce(item.meta.infohash_v1)
    site.post(item.nar_hash)
    site.torrent(item.nar_hash)
    assert site.told() == []
    monkeypatch.setattr(site.announcer, "counts", down)
    site.torrent(item.nar_hash)
    assert site.told() == [base32.format_hash(item.nar_hash)]


def test_requests_are_counted(site: Site) -> None:
    """Lists count as publications, questions as those of the index."""
    site.post()
    site.wanted()
    site.wanted(key=OTHER)
    counted = {
        (action, outcome): count
        for (_, _, action, outcome), count in site.announcer.metrics.requests.values().items()
    }
    assert counted == {("publish", "ok"): 1, ("index", "ok"): 1, ("index", "refused"): 1}


class Others:
    """Other trackers, as far as they are told and heard."""

    def __init__(self, site: Site) -> None:
        self.told: list[tuple[object, ...]] = []
        self.late: Callable[[], object] = list
        self.site = site
        site.app.bulk._others = self  # type: ignore[assignment]

    def refresh(self, key: bytes) -> None:
        """Read a list."""
        self.told.append(("refresh", key))
        self.late()

    def held(self, key: bytes) -> None:
        """Write a list."""
        self.told.append(("held", key))

    def wanted(self, nar_hash: bytes, info_hashes: list[bytes], *, is_new: bool) -> None:
        """Send a message."""
        self.told.append(("wanted", nar_hash, info_hashes, is_new))

    def sync(self) -> None:
        """Read all lists."""
        self.told.append(("sync",))
        self.late()

    def close(self) -> None:
        """End."""


def test_others_are_told(site: Site, make_item: MakeItem) -> None:
    """Lists, what is wanted and what was made are told to other trackers."""
    others, item = Others(site), make_item()
    site.post(item.nar_hash)
    site.torrent(item.nar_hash)
    site.torrent(item.nar_hash)
    site.put(item)
    assert others.told == [
        ("refresh", KEY.public),
        ("held", KEY.public),
        ("wanted", item.nar_hash, (), True),
        ("wanted", item.nar_hash, [item.meta.infohash_v2[:20], item.meta.infohash_v1], False),
    ]


def test_others_are_heard(site: Site, make_item: MakeItem) -> None:
    """What is wanted elsewhere is wanted here, of holders whose lists come only now, too."""
    others, item = Others(site), make_item()
    hear = site.app.bulk._hear
    hear(item.nar_hash, [], True)
    assert (others.told, site.app.bulk.totals().wanted) == ([("sync",)], 0)
    others.late = lambda: site.app.bulk._holdings.apply(
        KEY.public, parse_update(_body(item.nar_hash)), NOW
    )
    hear(item.nar_hash, [], True)
    assert site.told() == [base32.format_hash(item.nar_hash)]
    hear(item.nar_hash, [item.meta.infohash_v1], False)
    site.put(item)
    site.announce(item.meta.infohash_v1)
    assert site.told() == []


def test_a_list_that_another_tracker_has(site: Site) -> None:
    """Who asks what is wanted where its list isn't known yet isn't sent away."""
    others = Others(site)
    assert site.wanted().status_code == 409
    others.late = lambda: site.app.bulk._holdings.apply(KEY.public, parse_update(_body()), NOW)
    assert site.wanted().status_code == 200


_VALUES = st.recursive(
    st.integers() | st.binary(max_size=70),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.binary(max_size=9), inner),
    max_leaves=6,
)
_FUZZ = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@_FUZZ
@given(
    st.binary(min_size=1, max_size=300)
    | _VALUES.map(bencoding.encode)
    | st.fixed_dictionaries(
        {
            name: _VALUES | st.integers(0, 9) | st.sampled_from([b"", bytes(32), bytes(64)])
            for name in (b"added", b"base", b"generation", b"port", b"removed")
        }
    ).map(bencoding.encode)
)
def test_any_holdings_are_judged(site: Site, body: bytes) -> None:
    """Whatever a signed body says, it is taken or refused with one error."""
    response = site.post(body=body)
    assert response.json is not None
    if response.status_code != 200:
        assert response.status_code in {400, 409, 413, 429}
        assert ": " in response.json["error"]


@_FUZZ
@given(data=st.data())
def test_any_publication_is_judged(site: Site, make_item: MakeItem, data: st.DataObject) -> None:
    """Whatever a publication says, it is taken or refused with one error, and nothing breaks."""
    item = make_item()
    parts: dict[bytes, bytes] = {b"narinfo": item.narinfo, b"torrent": item.meta.encode()}
    name = data.draw(st.sampled_from([b"narinfo", b"torrent"]))
    kind = data.draw(st.sampled_from(["cut", "splice", "whole", "bencoded"]))
    part = parts[name]
    match kind:
        case "cut":
            parts[name] = part[: data.draw(st.integers(0, len(part)))]
        case "splice":
            at = data.draw(st.integers(0, len(part)))
            end = data.draw(st.integers(at, min(at + 40, len(part))))
            parts[name] = part[:at] + data.draw(st.binary(max_size=40)) + part[end:]
        case "whole":
            parts[name] = data.draw(st.binary(max_size=400))
        case _:
            parts[name] = bencoding.encode(data.draw(_VALUES))
    content: dict[bytes, Value] = dict(parts)
    body = bencoding.encode(content)
    if data.draw(st.booleans()):
        at = data.draw(st.integers(0, len(body) - 1))
        body = body[:at] + data.draw(st.binary(max_size=4)) + body[at + 1 :]
    response = site.put(item, body)
    assert response.json is not None
    if response.status_code not in {200, 201}:
        assert response.status_code in {400, 403, 409}
        assert ": " in response.json["error"]
        assert "\n" not in response.json["error"]
