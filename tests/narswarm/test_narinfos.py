# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of `narswarm.narinfos` against servers on loopback that serve Guix's own narinfos."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from narswarm import gcrypt, narinfo, narinfos
from narswarm.acl import Acl
from narswarm.errors import NetworkError
from narswarm.httpclient import HttpClient
from narswarm.httpmessage import Validator
from narswarm.httpwire import UnreachableError
from narswarm.narinfo import Narinfo
from narswarm.narinfos import NarinfoCache, NarinfoLookup
from tests.ports import free_port

FIXTURES = Path(__file__).parents[1] / "fixtures/guix"
TRUSTED = Acl.load(FIXTURES / "keys/acl")
NARINFOS = {
    parsed.store_path: parsed.raw
    for path in sorted((FIXTURES / "narinfo-none").iterdir())
    for parsed in [narinfo.parse(path.read_bytes())]
}
PATHS = list(NARINFOS)
APP = "/gnu/store/5qz5dk6nl8x0ks3cxcjdb8h97phh4b5f-lab-app"
TEXT = "/gnu/store/2g00k9rk4f49769ps7bblcbvy1byaz19-lab-text"
DATE = "Sun, 06 Nov 1994 08:49:37 GMT"
UNKNOWN = "/gnu/store/00000000000000000000000000000000-nope"
PATIENT = 120.0
"""Seconds that a look-up may take here which is expected to end much earlier."""


@dataclass
class Answer:
    """What a server says of one item."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    gate: threading.Event | None = None
    asked: threading.Event = field(default_factory=threading.Event)


class Handler(BaseHTTPRequestHandler):
    """Answers from the table of its server."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        """Answer by the hash part."""
        with self.server.lock:
            self.server.requests.append(self.path)
        answer = self.server.answers.get(self.path[1:33], Answer(status=404))
        answer.asked.set()
        if answer.gate is not None:
            answer.gate.wait(PATIENT)
        asked = {self.headers[name] for name in ("If-None-Match", "If-Modified-Since")} - {None}
        self.server.conditions.append(asked)
        if asked & {answer.headers.get(name) for name in ("ETag", "Last-Modified")}:
            answer = Answer(status=304, headers=answer.headers | {"Cache-Control": "max-age=99"})
        self.send_response(answer.status)
        self.send_header("Content-Length", str(len(answer.body)))
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer.body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class Server(ThreadingHTTPServer):
    """A substitute server with some narinfos."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.requests: list[str] = []
        self.conditions: list[set[str]] = []
        self.lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), Handler)

    def handle_error(self, *_: object) -> None:
        """A client that goes away is no news."""

    def serve(self, *paths: str) -> None:
        """Have these items, as Guix published them."""
        for path in paths:
            self.say(path, Answer(NARINFOS[path]))

    def say(self, path: str, answer: Answer) -> None:
        """Answer this about an item."""
        self.answers[path[11:43]] = answer

    @property
    def url(self) -> str:
        """Where the server is."""
        return f"http://127.0.0.1:{self.server_port}"


class Clock:
    """A clock that stands still."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        """Give the time."""
        return self.now


@pytest.fixture
def servers() -> Iterator[list[Server]]:
    """Three servers without any item."""
    started = [Server() for _ in range(3)]
    threads = [threading.Thread(target=server.serve_forever, args=(0.01,)) for server in started]
    for thread in threads:
        thread.start()
    yield started
    for server, thread in zip(started, threads, strict=True):
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def client() -> Iterator[HttpClient]:
    """A client without a proxy."""
    with HttpClient(PATIENT, environ={}) as made:
        yield made


@pytest.fixture
def clock() -> Clock:
    """The time."""
    return Clock()


@pytest.fixture
def cache(tmp_path: Path) -> NarinfoCache:
    """An empty cache."""
    return NarinfoCache(tmp_path / "cache")


@pytest.fixture
def dead() -> str:
    """URL of a server which isn't there."""
    return f"http://127.0.0.1:{free_port()}"


def found(result: dict[str, Narinfo]) -> dict[str, bytes]:
    """Give the texts that were found."""
    return {path: answer.raw for path, answer in result.items()}


def test_all_items(servers: list[Server], client: HttpClient) -> None:
    """Many paths are looked up at once; URLs are absolute in the results."""
    servers[0].serve(*PATHS)
    result = NarinfoLookup(client, [servers[0].url], TRUSTED).find(PATHS, PATIENT)
    assert found(result) == NARINFOS
    assert list(result) == PATHS
    for answer in result.values():
        assert answer.sources[0].url.startswith(f"{servers[0].url}/nar/")


def test_unknown_items(servers: list[Server], client: HttpClient) -> None:
    """What no server has, and what is no store path, is left out."""
    servers[0].serve(APP)
    lookup = NarinfoLookup(client, [server.url for server in servers], TRUSTED)
    odd = ["", "/gnu/store", "/etc/passwd", APP[11:], f"{APP}/bin", "/gnu/store/../x"]
    assert found(lookup.find([UNKNOWN, APP, *odd, APP], PATIENT)) == {APP: NARINFOS[APP]}
    assert {path[:5] for server in servers for path in server.requests} == {"/5qz5", "/0000"}
    assert lookup.find([], PATIENT) == {}
    assert lookup.find_one(UNKNOWN, PATIENT) is None


def test_no_servers(client: HttpClient) -> None:
    """Without a server nothing is found."""
    assert NarinfoLookup(client, [], TRUSTED).find(PATHS, PATIENT) == {}


BAD = {
    path.stem: path.read_bytes()
    for path in FIXTURES.glob("bad/*.narinfo")
    if not path.stem.startswith("VALID") and path.stem != "duplicate-signed-fields-below"
}


@pytest.mark.parametrize(
    "answer",
    [
        *(pytest.param(Answer(raw), id=name) for name, raw in BAD.items()),
        pytest.param(Answer(NARINFOS[TEXT]), id="another-item"),
        pytest.param(Answer(b""), id="empty"),
        pytest.param(Answer(b"\xff" * 100), id="garbage"),
        pytest.param(Answer(b"StorePath: x\n" * 100_000), id="huge"),
        pytest.param(Answer(NARINFOS[APP], status=404), id="status-404"),
        pytest.param(Answer(NARINFOS[APP], status=500), id="status-500"),
        pytest.param(Answer(status=302, headers={"Location": "/loop"}), id="redirect"),
        pytest.param(Answer(NARINFOS[APP][:-30], headers={"Content-Length": "9"}), id="lengths"),
    ],
)
def test_bad_answers(servers: list[Server], client: HttpClient, answer: Answer) -> None:
    """No bad answer of one server counts, and none hides the good one of another."""
    servers[0].say(APP, answer)
    lookup = NarinfoLookup(client, [servers[0].url], TRUSTED)
    assert lookup.find([APP], PATIENT) == {}
    servers[1].serve(APP)
    lookup = NarinfoLookup(client, [servers[0].url, servers[1].url], TRUSTED, hedge=PATIENT)
    result = lookup.find([APP], PATIENT)
    assert found(result) == {APP: NARINFOS[APP]}
    assert result[APP].sources[0].url.startswith(servers[1].url)


def test_name_of_the_path(servers: list[Server], client: HttpClient) -> None:
    """The narinfo has to be about the whole path: the hash part alone doesn't name an item."""
    servers[0].serve(APP)
    assert NarinfoLookup(client, [servers[0].url], TRUSTED).find([f"{APP}-x"], PATIENT) == {}


def test_silent_server(
    servers: list[Server], client: HttpClient, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server is left alone while it answers nothing, and used again when it does."""
    gate, answered = threading.Event(), threading.Event()
    servers[0].serve(TEXT)
    silent = Answer(NARINFOS[APP], gate=gate)
    servers[0].say(APP, silent)
    servers[1].serve(TEXT)
    servers[1].say(APP, Answer(NARINFOS[APP], gate=silent.asked))
    urls = [server.url for server in servers[:2]]
    lookup = NarinfoLookup(client, urls, TRUSTED, clock=clock, hedge=0.01)
    warnings: list[str] = []
    assert set(lookup.find([APP], PATIENT, warnings.append)) == {APP}
    assert not lookup.is_down(urls[0])
    clock.now += narinfos.SILENCE
    assert set(lookup.find([TEXT], PATIENT, warnings.append)) == {TEXT}
    assert lookup.is_down(urls[0])
    assert warnings == [f"{urls[0]}: does not answer"]
    assert len(servers[0].requests) == 1
    note = lookup.succeeded

    def succeeded(server: str) -> None:
        note(server)
        if server == urls[0]:
            answered.set()

    monkeypatch.setattr(lookup, "succeeded", succeeded)
    gate.set()
    assert answered.wait(PATIENT)
    assert not lookup.is_down(urls[0])


def test_failures(client: HttpClient, clock: Clock) -> None:
    """One failure is enough of a server that can't be reached or was silent before it."""
    url, error = "http://a.invalid", NetworkError("http://a.invalid/x", "timed out")
    lookup = NarinfoLookup(client, [url], TRUSTED, clock=clock)
    lookup.failed(url, error, in_time=True)
    assert not lookup.is_down(url)
    lookup.failed(url, UnreachableError("http://a.invalid/x", "timed out"), in_time=False)
    assert not lookup.is_down(url)
    lookup.failed(url, UnreachableError("http://a.invalid/x", "timed out"), in_time=True)
    assert lookup.is_down(url)


def test_failure_after_silence(
    client: HttpClient, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request that fails after a long wait counts although time was up by then."""
    url = "http://a.invalid"
    lookup = NarinfoLookup(client, [url], TRUSTED, clock=clock)
    error = NetworkError(f"{url}/x", "timed out")

    def request(*_args: object, **_kwargs: object) -> None:
        clock.now += narinfos.SILENCE
        raise error

    monkeypatch.setattr(client, "pipeline", request)
    with pytest.raises(NetworkError):
        lookup.ask(url, APP, 1)
    lookup.failed(url, error, in_time=False)
    assert lookup.is_down(url)
    clock.now += narinfos.BREAK
    assert not lookup.is_down(url)


def test_dead_server(servers: list[Server], client: HttpClient, clock: Clock, dead: str) -> None:
    """A server that can't be reached is skipped, named once, and tried again after a while."""
    servers[0].serve(*PATHS)
    lookup = NarinfoLookup(client, [dead, servers[0].url], TRUSTED, clock=clock, hedge=PATIENT)
    warnings: list[str] = []
    assert found(lookup.find(PATHS, PATIENT, warnings.append)) == NARINFOS
    assert warnings == [f"{dead}: connection refused"]
    assert lookup.is_down(dead)
    assert not lookup.is_down(servers[0].url)
    assert found(lookup.find(PATHS, PATIENT, warnings.append)) == NARINFOS
    clock.now += narinfos.BREAK
    assert not lookup.is_down(dead)
    assert found(lookup.find(PATHS, PATIENT, warnings.append)) == NARINFOS
    assert lookup.is_down(dead)
    assert len(warnings) == 1


def test_clock_that_goes_back(client: HttpClient, clock: Clock, dead: str) -> None:
    """A server isn't left alone for an hour because the clock was set back by one."""
    lookup = NarinfoLookup(client, [dead], TRUSTED, clock=clock)
    assert lookup.find([APP], PATIENT) == {}
    clock.now -= 3600
    assert not lookup.is_down(dead)


def test_server_that_breaks_off(client: HttpClient, clock: Clock, servers: list[Server]) -> None:
    """A server that doesn't complete its answers is left alone after some of them."""
    broken = Answer(NARINFOS[APP], headers={"Transfer-Encoding": "chunked"})
    for path in PATHS:
        servers[0].say(path, broken)
    lookup = NarinfoLookup(client, [servers[0].url], TRUSTED, clock=clock, workers=1)
    warnings: list[str] = []
    assert lookup.find(PATHS, PATIENT, warnings.append) == {}
    assert lookup.is_down(servers[0].url)
    assert lookup.find(PATHS, PATIENT) == {}
    assert len(servers[0].requests) <= narinfos.MAX_FAILURES * len(PATHS)
    assert warnings == [f"{servers[0].url}: ended before its end"]


def test_failures_in_a_row(client: HttpClient, clock: Clock, servers: list[Server]) -> None:
    """A good answer between bad ones keeps a server in use."""
    lookup = NarinfoLookup(client, [servers[0].url], TRUSTED, clock=clock)
    for _ in range(narinfos.MAX_FAILURES):
        lookup.failed(servers[0].url, NetworkError("x", "broke off"), in_time=True)
        lookup.succeeded(servers[0].url)
    assert not lookup.is_down(servers[0].url)


def test_cached_answers(
    servers: list[Server], client: HttpClient, cache: NarinfoCache, clock: Clock
) -> None:
    """What was answered isn't asked again, neither by another look-up on the same cache."""
    servers[0].serve(APP)
    urls = [servers[0].url, servers[1].url]
    for _ in range(3):
        lookup = NarinfoLookup(client, urls, TRUSTED, cache, clock=clock, hedge=PATIENT)
        assert set(lookup.find([APP, UNKNOWN], PATIENT)) == {APP}
    assert [len(server.requests) for server in servers] == [2, 1, 0]


@pytest.mark.parametrize(
    ("answer", "ttl"),
    [
        (Answer(NARINFOS[APP]), 36 * 3600),
        (Answer(NARINFOS[APP], headers={"Cache-Control": "max-age=77"}), 77),
        (Answer(NARINFOS[APP], headers={"Cache-Control": "public, Max-Age=78"}), 78),
        (Answer(NARINFOS[APP], headers={"Cache-Control": "s-max-age=5"}), 36 * 3600),
        (Answer(NARINFOS[APP], headers={"Cache-Control": "max-age=999999999"}), 30 * 86400),
        (Answer(BAD["unauthorized-key"]), 36 * 3600),
        (Answer(status=404), 120),
        (Answer(status=404, headers={"Cache-Control": "max-age=1"}), 120),
        (Answer(status=404, headers={"Cache-Control": "max-age=300", "X-Baking": "1"}), 300),
        (Answer(status=404, headers={"Cache-Control": "max-age=86400"}), 3600),
        (Answer(status=202, headers={"Cache-Control": "max-age=300"}), 300),
        (Answer(status=504, headers={"Cache-Control": "max-age=300"}), 60),
        (Answer(b"garbage", headers={"Cache-Control": "max-age=300"}), 60),
        (Answer(NARINFOS[TEXT]), 60),
    ],
)
def test_times(
    servers: list[Server],
    client: HttpClient,
    cache: NarinfoCache,
    clock: Clock,
    answer: Answer,
    ttl: int,
) -> None:
    """An answer is kept for as long as the server says, within limits, else as long as in Guix."""
    servers[0].say(APP, answer)
    lookup = NarinfoLookup(client, [servers[0].url], TRUSTED, cache, clock=clock)
    for seconds, requests in ((0, 1), (ttl - 1, 1), (1, 2)):
        clock.now += seconds
        lookup.find([APP], PATIENT)
        assert len(servers[0].requests) == requests


@pytest.mark.parametrize(
    ("version", "other"),
    [
        ({"ETag": '"1"'}, {"ETag": '"2"'}),
        ({"ETag": 'W/"1"', "Last-Modified": DATE}, {"ETag": 'W/"2"'}),
        ({"Last-Modified": DATE}, {"Last-Modified": DATE.replace("06", "07")}),
    ],
)
def test_what_has_not_changed_is_not_sent_again(
    servers: list[Server],
    client: HttpClient,
    cache: NarinfoCache,
    clock: Clock,
    version: dict[str, str],
    other: dict[str, str],
) -> None:
    """The server is told which version is here; its no counts as long as it says."""
    short = {"Cache-Control": "max-age=10"}
    servers[0].say(APP, Answer(NARINFOS[APP], headers=version | short))
    lookup = NarinfoLookup(client, [servers[0].url], TRUSTED, cache, clock=clock)
    for seconds, requests in ((0, 1), (10, 2), (98, 2), (1, 3)):
        clock.now += seconds
        assert found(lookup.find([APP, TEXT], PATIENT)) == {APP: NARINFOS[APP]}
        assert len([path for path in servers[0].requests if APP[11:43] in path]) == requests
    asked = set(version.values())
    assert [each for each in servers[0].conditions if each] == [asked, asked]
    servers[0].say(APP, Answer(NARINFOS[APP] + b"URL: x\n", headers=other | short))
    clock.now += 99
    assert found(lookup.find([APP], PATIENT)) == {APP: NARINFOS[APP] + b"URL: x\n"}
    clock.now += 10
    lookup.find([APP], PATIENT)
    assert servers[0].conditions[-1] == set(other.values())


def test_what_was_damaged_here_is_sent_again(
    servers: list[Server], client: HttpClient, cache: NarinfoCache, clock: Clock
) -> None:
    """A server isn't asked whether what doesn't count has changed, nor heard if it says so."""
    url = servers[0].url
    servers[0].say(APP, Answer(NARINFOS[APP], headers={"ETag": '"1"'}))
    for raw in (BAD["tampered-narhash"], NARINFOS[TEXT], b"garbage"):
        cache.put(url, APP[11:43], raw, clock.now, 60, Validator('"1"'))
        clock.now += 60
        lookup = NarinfoLookup(client, [url], TRUSTED, cache, clock=clock)
        assert set(lookup.find([APP], PATIENT)) == {APP}
    servers[0].say(APP, Answer(status=304))
    assert NarinfoLookup(client, [url], TRUSTED, clock=clock).find([APP], PATIENT) == {}
    assert servers[0].conditions == [set()] * 4


@pytest.mark.parametrize(
    ("status", "after", "seconds"),
    [
        (429, "7", 10),
        (429, "60", 60),
        (503, "", 10),
        (503, "soon", 10),
        (503, "-5", 10),
        (503, "99999", 3600),
        (503, "9" * 9, 10),
    ],
)
def test_a_server_that_has_enough(
    servers: list[Server],
    client: HttpClient,
    cache: NarinfoCache,
    clock: Clock,
    status: int,
    after: str,
    seconds: int,
) -> None:
    """It is left alone, and what it said before counts meanwhile."""
    server = servers[0]
    server.say(APP, Answer(status=status, headers={"Retry-After": after}))
    cache.put(server.url, APP[11:43], NARINFOS[APP], clock.now - 60, 60)
    lookup = NarinfoLookup(client, [server.url], TRUSTED, cache, clock=clock)
    warnings: list[str] = []
    assert set(lookup.find([APP], PATIENT, warnings.append)) == {APP}
    assert warnings == [f"{server.url}: answered {status}: it has too much to do"]
    server.serve(APP, TEXT)
    clock.now += seconds - 1
    assert set(lookup.find([APP, TEXT], PATIENT)) == {APP}
    assert len(server.requests) == 1
    clock.now += 1
    assert set(lookup.find([APP, TEXT], PATIENT)) == {APP, TEXT}


def test_cached_later_server(
    servers: list[Server], client: HttpClient, cache: NarinfoCache, clock: Clock
) -> None:
    """When the first server's no is old, only that one is asked again."""
    servers[1].serve(APP)
    urls = [servers[0].url, servers[1].url]
    lookup = NarinfoLookup(client, urls, TRUSTED, cache, clock=clock, hedge=PATIENT)
    for _ in range(2):
        assert set(lookup.find([APP], PATIENT)) == {APP}
        clock.now += narinfos.MISS_TTL
    assert [len(server.requests) for server in servers] == [2, 1, 0]


def test_cache_is_not_trusted(
    servers: list[Server], client: HttpClient, cache: NarinfoCache, clock: Clock
) -> None:
    """What is in the cache is verified at each use, with the access control list of that time."""
    url = servers[0].url
    for raw in (BAD["tampered-narhash"], NARINFOS[TEXT], b"garbage"):
        cache.put(url, APP[11:43], raw, clock.now, 60)
        assert NarinfoLookup(client, [url], TRUSTED, cache, clock=clock).find([APP]) == {}
    cache.put(url, APP[11:43], NARINFOS[APP], clock.now, 60)
    assert NarinfoLookup(client, [url], Acl(), cache, clock=clock).find([APP]) == {}
    assert set(NarinfoLookup(client, [url], TRUSTED, cache, clock=clock).find([APP])) == {APP}
    assert servers[0].requests == []


def test_old_answers_while_servers_are_down(
    client: HttpClient, cache: NarinfoCache, clock: Clock, dead: str
) -> None:
    """A narinfo that was kept serves on while its server can't be reached."""
    cache.put(dead, APP[11:43], NARINFOS[APP], clock.now, 60)
    cache.put(dead, TEXT[11:43], BAD["tampered-narhash"], clock.now, 60)
    clock.now += 86400
    lookup = NarinfoLookup(client, [dead], TRUSTED, cache, clock=clock)
    assert set(lookup.find([APP, TEXT, UNKNOWN], PATIENT)) == {APP}
    assert set(lookup.find([APP, TEXT, UNKNOWN], PATIENT)) == {APP}


def test_old_answers_do_not_outlive_their_server(
    servers: list[Server], client: HttpClient, cache: NarinfoCache, clock: Clock
) -> None:
    """When the server can be asked and has the item no longer, the old answer doesn't count."""
    cache.put(servers[0].url, APP[11:43], NARINFOS[APP], clock.now, 60)
    clock.now += 60
    lookup = NarinfoLookup(client, [servers[0].url], TRUSTED, cache, clock=clock)
    assert lookup.find([APP], PATIENT) == {}


def test_cache_that_cannot_be_written(
    servers: list[Server], client: HttpClient, clock: Clock, tmp_path: Path
) -> None:
    """Without a directory for the cache everything is found all the same."""
    (tmp_path / "file").write_text("")
    servers[0].serve(*PATHS)
    cache = NarinfoCache(tmp_path / "file/cache")
    lookup = NarinfoLookup(client, [servers[0].url], TRUSTED, cache, clock=clock)
    assert found(lookup.find(PATHS, PATIENT)) == NARINFOS


def test_missing_library(
    servers: list[Server], client: HttpClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That signatures can't be checked at all is not passed over in silence."""

    def fail(_signature: object) -> bool:
        raise gcrypt.GcryptMissingError

    monkeypatch.setattr(gcrypt, "verify", fail)
    servers[0].serve(APP)
    lookup = NarinfoLookup(client, [servers[0].url], TRUSTED)
    with pytest.raises(gcrypt.GcryptMissingError):
        lookup.find([APP], PATIENT)


def test_server_urls(client: HttpClient) -> None:
    """Servers are named without a slash at the end, and once."""
    lookup = NarinfoLookup(client, ["http://a/", "http://b/x", "http://a"], TRUSTED)
    assert lookup.servers == ("http://a", "http://b/x")
