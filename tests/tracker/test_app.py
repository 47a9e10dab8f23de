# SPDX-License-Identifier: GPL-3.0-or-later
"""The tracker's pages, without a server."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import pytest
from werkzeug.test import Client, TestResponse

from narswarm import base32, bencoding, gcrypt, httpsig, narinfo
from narswarm.errors import NarswarmError, SettingsError
from narswarm.httpsig import PublisherKey
from narswarm.metainfo import decode, decode_outside
from tracker import app as app_module
from tracker.aclfile import AclFile
from tracker.announcer import Announcer
from tracker.app import TrackerApp, with_announce
from tracker.blocks import BlockList
from tracker.index import Index, IndexFullError
from tracker.publication import MAX_BODY
from tracker.settings import Settings
from tracker.swarmstore import MemorySwarms

if TYPE_CHECKING:
    from typing import Any

    MakeItem = Callable[..., Any]

NOW = 1_700_000_000
KEY = PublisherKey.generate()


class Site:
    """A tracker that is asked directly, at a fixed time."""

    def __init__(self, directory: Path, settings: Settings) -> None:
        self.index = Index(directory)
        self.settings = settings
        rng = Random(1)  # noqa: S311 - the same at each run
        swarms = MemorySwarms(settings.limits(), keep_downloads=True)
        announcer = Announcer(settings.policy(), swarms, self.index.is_listed, rng)
        acl_file = AclFile(settings.acl, self.index)
        self.app = TrackerApp(settings, self.index, announcer, acl_file, lambda: NOW)
        self.announcer = announcer
        self.client = Client(self.app.wsgi())

    def announce(self, query: str, address: str = "192.0.2.1", method: str = "GET") -> TestResponse:
        """One announce from an address."""
        return self.client.open(
            "/announce",
            method=method,
            query_string=query,
            environ_overrides={"REMOTE_ADDR": address},
        )

    def scrape(self, query: str = "", address: str = "192.0.2.1") -> TestResponse:
        """One scrape from an address."""
        return self.client.get(f"/scrape?{query}", environ_overrides={"REMOTE_ADDR": address})

    def get(
        self, target: str, address: str = "127.0.0.1", headers: dict[str, str] | None = None
    ) -> TestResponse:
        """One request from an address."""
        return self.client.get(target, headers=headers, environ_overrides={"REMOTE_ADDR": address})

    def put(
        self,
        item: Any,
        *,
        key: PublisherKey = KEY,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> TestResponse:
        """Publish an item, with some headers replaced."""
        path = f"/v1/nar/{base32.encode(item.nar_hash)}"
        body = item.body if body is None else body
        signed = httpsig.sign_request(key, "PUT", path, body, NOW)
        sent = {**signed, "Content-Type": "application/x-bencode", **(headers or {})}
        return self.client.put(path, data=body, headers=sent)


MakeSite = Callable[..., Site]


@pytest.fixture(name="make_site")
def make_site_fixture(tmp_path: Path, acl_text: bytes) -> Iterator[MakeSite]:
    """A maker of trackers with settings."""
    acl = tmp_path / "acl"
    acl.write_bytes(acl_text)
    sites: list[Site] = []

    def make(**changes: Any) -> Site:
        settings = replace(Settings(acl=acl), **changes)
        sites.append(Site(tmp_path / f"{len(sites)}", settings))
        return sites[-1]

    yield make
    for site in sites:
        site.index.close()


@pytest.fixture(name="site")
def site_fixture(make_site: MakeSite) -> Site:
    """A tracker with default settings."""
    return make_site()


def _quoted(data: bytes) -> str:
    return "".join(f"%{byte:02x}" for byte in data)


def _query(info_hash: bytes, port: int, left: int = 0) -> str:
    return f"info_hash={_quoted(info_hash)}&peer_id={'p' * 20}&port={port}&left={left}"


def test_announce_page(site: Site, make_item: MakeItem) -> None:
    """Raw bytes go in and raw bytes come out, whatever UTF-8 would say about them."""
    item = make_item()
    site.put(item)
    response = site.announce(_query(item.meta.infohash_v1, 0x80FF))
    assert response.status_code == 200
    assert response.content_type == "text/plain"
    assert response.headers["Cache-Control"] == "no-store"
    assert response.data.endswith(b"5:peers0:e")
    response = site.announce(_query(item.meta.infohash_v1, 1, 1))
    assert response.data.endswith(b"5:peers6:\xc0\0\2\1\x80\xffe")


def test_announce_failures_are_answers(site: Site) -> None:
    """Clients read a failure reason in an answer with status 200, and only there."""
    response = site.announce("")
    assert (response.status_code, response.data) == (
        200,
        b"d14:failure reason21:info_hash: is missinge",
    )
    response = site.announce(_query(bytes(20), 1))
    assert b"8:retry ini5e" in response.data
    response = site.scrape()
    assert (response.status_code, response.data[:18]) == (200, b"d14:failure reason")


def test_head_and_other_methods(site: Site) -> None:
    """HEAD has the headers of GET; other methods are not allowed."""
    got = site.announce("", method="GET")
    head = site.announce("", method="HEAD")
    assert (head.status_code, head.data) == (200, b"")
    assert head.headers["Content-Length"] == str(len(got.data))
    post = site.announce("", method="POST")
    assert (post.status_code, post.headers["Allow"]) == (405, "GET, HEAD")


def test_blocked_addresses(site: Site) -> None:
    """Who is blocked is told so, and never to come back, whatever it asked."""
    site.announcer.blocks = BlockList(networks=[ip_network("198.51.100.0/24")])
    expected = {
        b"failure reason": b"address: is blocked by this tracker's operator",
        b"interval": 86400,
        b"retry in": b"never",
    }
    for response in (site.announce("", "198.51.100.7"), site.scrape("", "::ffff:198.51.100.7")):
        assert (response.status_code, bencoding.decode(response.data, "reply")) == (200, expected)
    assert b"is missing" in site.announce("", "198.51.101.7").data


@pytest.mark.parametrize(
    "target", ["/v1/nar/" + "0" * 52, "/nix-cache-info", "/nowhere", "/healthz", "/metrics"]
)
def test_blocked_addresses_at_the_index(site: Site, target: str) -> None:
    """Who is blocked gets nothing else either, and others do."""
    site.announcer.blocks = BlockList(networks=[ip_network("127.0.0.0/8")])
    assert site.get(target, "127.0.0.1").status_code == 403
    assert site.get(target, "::1").status_code in {200, 404}
    site.announcer.blocks = BlockList()
    assert site.get(target, "127.0.0.1").status_code in {200, 404}


def test_health(site: Site) -> None:
    """It is well while its database can be read."""
    response = site.get("/healthz", "192.0.2.1")
    assert (response.status_code, response.data) == (200, b"ok\n")
    site.index.close()
    response = site.get("/healthz", "192.0.2.1")
    assert response.status_code == 503
    assert response.text.endswith("index.sqlite: Cannot operate on a closed database.\n")


@pytest.mark.parametrize(
    ("remote", "forwarded", "status"),
    [
        ("127.0.0.1", None, 200),
        ("::1", None, 200),
        ("::ffff:127.0.0.1", None, 200),
        ("192.0.2.1", None, 403),
        ("127.0.0.1", "127.0.0.1", 403),
        ("127.0.0.1", "", 200),
        ("192.0.2.1", "127.0.0.1", 403),
        ("10.0.0.1", None, 403),
        ("10.0.0.1", "127.0.0.1", 200),
        ("10.0.0.1", "192.0.2.1", 403),
        ("10.0.0.1", "127.0.0.1, 192.0.2.1", 403),
        ("10.0.0.1", "nonsense", 403),
        ("", None, 403),
    ],
)
def test_who_may_read_metrics(
    make_site: MakeSite, remote: str, forwarded: str | None, status: int
) -> None:
    """This machine may, but not whoever comes through a proxy on it."""
    site = make_site(trusted_proxies=("10.0.0.0/8",))
    headers = {} if forwarded is None else {"X-Forwarded-For": forwarded}
    assert site.get("/metrics", remote, headers).status_code == status


def test_metrics_of_a_proxy_itself(make_site: MakeSite) -> None:
    """A machine whose proxy is trusted may ask for itself."""
    site = make_site(trusted_proxies=("127.0.0.1",))
    assert site.get("/metrics", "127.0.0.1").status_code == 200
    assert site.get("/metrics", "127.0.0.1", {"X-Forwarded-For": "192.0.2.1"}).status_code == 403


def test_metrics(site: Site, make_item: MakeItem) -> None:
    """Every request but those of operators is counted by what came of it."""
    item = make_item()
    site.put(item)
    site.put(item, body=b"x", headers={"Content-Digest": ""})
    page = f"/v1/nar/{base32.encode(item.nar_hash)}"
    for target in (page, page + "x", "/v1/nar/" + "e" * 52, "/nowhere", "/healthz", "/metrics"):
        site.get(target, "::1")
    site.announce(_query(item.meta.infohash_v1, 1))
    response = site.get("/metrics")
    assert response.content_type == "text/plain; version=0.0.4; charset=utf-8"
    lines = [line for line in response.text.splitlines() if "requests_total{" in line]
    label = 'narswarm_tracker_requests_total{action="%s",family="%s",outcome="%s",protocol="http"}'
    assert lines == [
        f"{label % ('announce', 'ipv4', 'ok')} 1.0",
        f"{label % ('index', 'ipv6', 'malformed')} 1.0",
        f"{label % ('index', 'ipv6', 'ok')} 1.0",
        f"{label % ('index', 'ipv6', 'unlisted')} 2.0",
        f"{label % ('publish', 'unknown', 'ok')} 1.0",
        f"{label % ('publish', 'unknown', 'refused')} 1.0",
    ]
    assert 'narswarm_tracker_peers{family="ipv4",role="seeder"} 1.0' in response.text
    assert "narswarm_tracker_index_nars 1.0" in response.text


def test_whether_a_port_is_open_is_asked_by_its_owner(site: Site) -> None:
    """The call is there, and doesn't look at the tracker's own machine."""
    response = site.get("/v1/reachable?port=6881")
    _assert_refused(response, 403, "address: is not one that others could connect to")
    site.app.close()


def test_failures_of_the_tracker_are_counted(
    site: Site, make_item: MakeItem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An index that is full is not the publisher's mistake."""

    def full(*_: object) -> None:
        raise IndexFullError("index", "is full")

    monkeypatch.setattr(site.index, "publish", full)
    assert site.put(make_item()).status_code == 507
    assert site.announcer.metrics.requests.values() == {("http", "unknown", "publish", "failed"): 1}


def test_other_settings(site: Site, make_item: MakeItem) -> None:
    """Settings that change while it runs hold from the next request on; wrong ones never."""
    keyid = base64.b64encode(KEY.public).decode()
    site.app.reconfigure(replace(site.settings, publishers=(keyid,), url="http://t.example"))
    assert site.put(make_item(1), key=PublisherKey.generate()).status_code == 403
    item = make_item(2)
    assert site.put(item).status_code == 201
    page = f"/v1/nar/{base32.encode(item.nar_hash)}.torrent"
    assert site.client.get(page).data.startswith(b"d8:announce25:http://t.example/announce")
    with pytest.raises(SettingsError):
        site.app.reconfigure(replace(site.settings, publishers=(), metrics_from=("x",)))
    assert site.put(make_item(3), key=PublisherKey.generate()).status_code == 403


def test_scrape_page(site: Site, make_item: MakeItem) -> None:
    """Both infohashes of a hybrid torrent can be asked for at once."""
    item = make_item()
    site.put(item)
    hashes = [item.meta.infohash_v1, item.meta.infohash_v2[:20]]
    site.announce(_query(hashes[0], 1))
    query = "&".join(f"info_hash={_quoted(info_hash)}" for info_hash in hashes)
    reply = bencoding.decode(site.scrape(query).data, "reply")
    assert isinstance(reply, dict)
    files = reply[b"files"]
    assert isinstance(files, dict)
    complete = {key: entry[b"complete"] for key, entry in files.items() if isinstance(entry, dict)}
    assert complete == {hashes[0]: 1, hashes[1]: 0}


def test_proxy_header(make_site: MakeSite, make_item: MakeItem) -> None:
    """The header of a trusted proxy gets through to the announce."""
    site, item = make_site(trusted_proxies=("127.0.0.1",)), make_item()
    site.put(item)
    response = site.client.get(
        f"/announce?{_query(item.meta.infohash_v1, 1)}",
        headers={"X-Forwarded-For": "198.51.100.7"},
        environ_overrides={"REMOTE_ADDR": "127.0.0.1"},
    )
    assert b"11:external ip4:\xc6\x33\x64\x07" in response.data


def test_publish_and_look_up(site: Site, make_item: MakeItem) -> None:
    """What is published is found, with who has it: seeds first, of both swarms together."""
    item = make_item()
    name = base32.encode(item.nar_hash)
    assert site.client.get(f"/v1/nar/{name}").status_code == 404
    answers = [site.put(item), site.put(item), site.put(item, key=PublisherKey.generate())]
    assert [answer.status_code for answer in answers] == [201, 200, 201]
    assert answers[1].json == {
        "nar_hash": f"sha256:{name}",
        "infohash_v2": item.meta.infohash_v2.hex(),
        "new": False,
    }
    for info_hash in (item.meta.infohash_v1, item.meta.infohash_v2[:20]):
        site.announce(_query(info_hash, 9))
    site.announce(_query(item.meta.infohash_v1, 1, 1))
    site.announce(_query(item.meta.infohash_v2[:20], 3), "2001:db8::1")
    assert site.client.get(f"/v1/nar/{name}").json == {
        "nar_hash": f"sha256:{name}",
        "nar_size": 1000,
        "torrents": [
            {
                "kind": "nar.zst",
                "name": f"{name}.nar.zst",
                "length": 7,
                "piece_length": 65536,
                "infohash_v1": item.meta.infohash_v1.hex(),
                "infohash_v2": item.meta.infohash_v2.hex(),
                "seeders": 2,
                "leechers": 1,
                "publishers": 2,
                "peers": ["[2001:db8::1]:3", "192.0.2.1:9", "192.0.2.1:1"],
            }
        ],
        "holders": 0,
    }


@pytest.mark.parametrize(
    ("url", "host", "announce"),
    [
        (None, "tracker.example:6969", "http://tracker.example:6969/announce"),
        (None, "[2001:db8::1]", "http://[2001:db8::1]/announce"),
        (None, 'x"y', None),
        ("https://public.example/tracker/", "inside", "https://public.example/tracker/announce"),
    ],
)
def test_torrent(
    make_site: MakeSite, make_item: MakeItem, url: str | None, host: str, announce: str | None
) -> None:
    """The best torrent comes with this tracker in it, as far as that is known."""
    site, item = make_site(url=url), make_item()
    path = f"/v1/nar/{base32.encode(item.nar_hash)}.torrent"
    assert site.client.get(path).status_code == 404
    site.put(make_item(payload=b"other"))
    for _ in range(2):
        site.put(item, key=PublisherKey.generate())
    response = site.client.get(path, headers={"Host": host})
    assert response.content_type == "application/x-bittorrent"
    assert response.data == item.meta.encode([announce] if announce else [])
    assert decode_outside(response.data, "x").trackers == ((announce,) if announce else ())


def test_a_certain_torrent(site: Site, make_item: MakeItem) -> None:
    """With an infohash that very torrent of the NAR comes, or none."""
    best, other = make_item(), make_item(payload=b"other")
    for item in (best, other):
        site.put(item)
    path = f"/v1/nar/{base32.encode(best.nar_hash)}.torrent?infohash="
    for item in (best, other):
        data = site.client.get(path + item.meta.infohash_v2.hex()).data
        assert decode(data, "x") == item.meta
    assert site.client.get(path + "00" * 32).status_code == 404
    assert site.client.get(path).status_code == 404


def test_with_announce(make_item: MakeItem) -> None:
    """Inserting the tracker gives what encoding with it would."""
    meta = make_item().meta
    url = "http://tracker.example/announce"
    assert with_announce(meta.encode(), url) == meta.encode([url])
    assert with_announce(meta.encode(), None) == meta.encode()


def test_narinfos(site: Site, make_item: MakeItem) -> None:
    """Stock Guix gets narinfos with at least one URL, without which it fails; ours as they are."""
    full, bare = make_item(1), make_item(2, urls=("nar/relative",))
    for item in (full, bare):
        site.put(item)

    def get(prefix: str, item: Any) -> tuple[int, bytes]:
        response = site.client.get(f"{prefix}/{item.hash_part}.narinfo")
        return response.status_code, response.data

    assert get("", full) == (200, full.narinfo)
    assert get("/v1/narinfo", full) == (200, full.narinfo)
    placeholder = narinfo.Source(f"nar/{bare.hash_part}-item", "none")
    assert get("", bare) == (200, narinfo.with_sources(bare.narinfo, [placeholder]))
    assert site.client.get(f"/{placeholder.url}").status_code == 404
    assert site.client.get(f"/{'0' * 32}.narinfo").data == (
        f"{'0' * 32}: has no narinfo here\n".encode()
    )
    assert get("/v1/narinfo", bare) == (200, narinfo.with_sources(bare.narinfo, []))
    content_type = site.client.get(f"/{full.hash_part}.narinfo").content_type
    assert content_type == "application/x-nix-narinfo;charset=utf-8"


def test_cache_info(site: Site) -> None:
    """The mirror presents itself as a substitute server of low priority."""
    response = site.client.get("/nix-cache-info")
    assert response.data == b"StoreDir: /gnu/store\nWantMassQuery: 0\nPriority: 100\n"


@pytest.mark.parametrize(
    ("method", "path", "status", "error"),
    [
        ("GET", "/v1/nar/x", 404, "/v1/nar/x: not found"),
        ("GET", f"/v1/nar/{'e' * 52}", 400, None),
        ("GET", f"/v1/nar/{'e' * 52}.torrent", 400, None),
        ("GET", f"/v1/nar/{'0' * 51}", 404, f"/v1/nar/{'0' * 51}: not found"),
        ("GET", f"/v1/nar/{'0' * 52}", 404, f"{'0' * 52}: is not in the index"),
        ("DELETE", f"/v1/nar/{'0' * 52}", 405, f"/v1/nar/{'0' * 52}: method not allowed"),
        ("PUT", f"/v1/nar/{'0' * 52}", 411, f"/v1/nar/{'0' * 52}: length required"),
        ("GET", f"/v1/narinfo/{'0' * 32}.narinfo", 404, f"{'0' * 32}: has no narinfo here"),
    ],
)
def test_errors_for_programs(
    site: Site, method: str, path: str, status: int, error: str | None
) -> None:
    """Under /v1, errors are JSON with one sentence."""
    response = site.client.open(path, method=method)
    assert response.status_code == status
    assert response.json is not None
    assert list(response.json) == ["error"]
    assert error is None or response.json["error"] == error
    assert ("Allow" in response.headers) is (status == 405)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nothing", 404), ("GET", "/announce/x", 404), ("POST", "/nix-cache-info", 405)],
)
def test_errors_for_people(site: Site, method: str, path: str, status: int) -> None:
    """Elsewhere they are plain text."""
    response = site.client.open(path, method=method)
    assert response.status_code == status
    assert response.content_type == "text/plain;charset=utf-8"
    assert response.data.startswith(f"{path}: ".encode())


def _assert_refused(response: TestResponse, status: int, error: str) -> None:
    assert (response.status_code, response.json) == (status, {"error": error})


def test_unsigned_or_altered_publications(site: Site, make_item: MakeItem) -> None:
    """The sender must be known, and the body be what it sent."""
    item = make_item()
    response = site.client.put(f"/v1/nar/{base32.encode(item.nar_hash)}", data=item.body)
    _assert_refused(response, 401, "Content-Digest: is missing")
    assert response.headers["WWW-Authenticate"] == "Signature"
    error = "Content-Digest: is not the SHA-256 of the body"
    digest = httpsig.content_digest(b"")
    _assert_refused(site.put(item, headers={"Content-Digest": digest}), 401, error)
    other = PublisherKey.generate()
    path = f"/v1/nar/{base32.encode(item.nar_hash)}"
    stolen = httpsig.sign_request(other, "PUT", path, item.body, NOW)["Signature"]
    _assert_refused(
        site.put(item, headers={"Signature": stolen}), 401, "Signature: does not verify"
    )
    assert site.index.nar(item.nar_hash) is None


def test_allowed_publishers(make_site: MakeSite, make_item: MakeItem) -> None:
    """Where publishers are listed, others are turned away."""
    headers = httpsig.sign_request(KEY, "PUT", "/", b"", NOW)
    keyid = headers["Signature-Input"].split('keyid="')[1].split('"')[0]
    site, item = make_site(publishers=(keyid,)), make_item()
    error = "publisher: is not among those that may publish here"
    _assert_refused(site.put(item, key=PublisherKey.generate()), 403, error)
    assert site.put(item).status_code == 201


def test_unauthorized_narinfo(site: Site, make_item: MakeItem) -> None:
    """Any publisher may publish, but nothing that no known server signed."""
    item = make_item(key=gcrypt.generate_key())
    error = (
        f"/gnu/store/{item.hash_part}-item: has a narinfo with a signature by a key that is not "
        "authorised here"
    )
    _assert_refused(site.put(item), 403, error)


def test_without_acl(make_site: MakeSite, tmp_path: Path, make_item: MakeItem) -> None:
    """Without a list of keys nothing can be published, and the answer says why."""
    missing = tmp_path / "missing"
    site = make_site(acl=missing)
    error = f"{missing}: can't be read, so nothing can be published"
    _assert_refused(site.put(make_item()), 403, error)


def test_malformed_publications(site: Site, make_item: MakeItem) -> None:
    """Malformed, mismatching and oversized bodies each have their status."""
    item, other = make_item(1), make_item(2)
    error = "publication: is not a dictionary of narinfo and torrent"
    _assert_refused(site.put(item, body=b"de"), 400, error)
    error = "Content-Type: is not application/x-bencode"
    _assert_refused(site.put(item, headers={"Content-Type": "text/plain"}), 400, error)
    assert site.put(item, body=other.body).status_code == 409
    path = f"/v1/nar/{base32.encode(item.nar_hash)}"
    error = f"{path}: request entity too large"
    _assert_refused(site.put(item, body=bytes(MAX_BODY + 1)), 413, error)
    assert site.put(item, body=bytes(MAX_BODY)).status_code == 400
    error = f"{path}: length required"
    _assert_refused(site.client.put(path, headers={"Transfer-Encoding": "chunked"}), 411, error)


@pytest.mark.parametrize(
    ("error", "status"),
    [(IndexFullError("index", "is full"), 507), (NarswarmError("x", "broke"), 500)],
)
def test_troubles_of_the_tracker(
    site: Site,
    make_item: MakeItem,
    monkeypatch: pytest.MonkeyPatch,
    error: NarswarmError,
    status: int,
) -> None:
    """What isn't the sender's fault is a status of 500 and more."""

    def fail(*_: object) -> bool:
        raise error

    monkeypatch.setattr(Index, "publish", fail)
    _assert_refused(site.put(make_item()), status, str(error))


def test_named_peers_are_bounded(
    site: Site, make_item: MakeItem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The index names some peers, and counts all."""
    monkeypatch.setattr(app_module, "MAX_PEERS", 3)
    item = make_item()
    site.put(item)
    for port in range(1, 6):
        site.announce(_query(item.meta.infohash_v1, port))
    answer = site.client.get(f"/v1/nar/{base32.encode(item.nar_hash)}").json
    assert answer is not None
    (torrent,) = answer["torrents"]
    assert (torrent["seeders"], len(set(torrent["peers"]))) == (5, 3)


def test_digest_of_the_path(site: Site, make_item: MakeItem) -> None:
    """A publication for one NAR can't be sent to another's path."""
    item = make_item()
    other = base32.encode(hashlib.sha256(b"").digest())
    path = f"/v1/nar/{base32.encode(item.nar_hash)}"
    headers = httpsig.sign_request(KEY, "PUT", path, item.body, NOW)
    response = site.client.put(f"/v1/nar/{other}", data=item.body, headers=headers)
    _assert_refused(response, 401, "Signature: does not verify")
