# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of `narswarm.httpclient` against servers on loopback, well-behaved and hostile ones."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from narswarm import httpclient
from narswarm.errors import NetworkError
from narswarm.httpclient import HttpClient
from tests.narswarm.httpservers import GOOD, Clock, Server, answer, running, scripted
from tests.ports import free_port


@pytest.fixture
def server() -> Iterator[Server]:
    """A well-behaved HTTP/1.1 server."""
    with running(Server()) as started:
        yield started


@pytest.fixture
def client() -> Iterator[HttpClient]:
    """A client without a proxy."""
    with HttpClient(120, environ={}) as made:
        yield made


def test_get(server: Server, client: HttpClient) -> None:
    """An answer has its status, its header fields by lower-case name, and its whole body."""
    response = client.request("GET", f"{server.url}/x")
    assert (response.status, response.body) == (200, b"hello")
    assert response.headers["content-length"] == "5"
    assert response.url == f"{server.url}/x"
    assert client.request("GET", f"{server.url}/missing").status == 404
    assert client.request("GET", f"{server.url}/empty").body == b""
    assert client.request("GET", f"{server.url}/chunked").body == b"hello"


def test_request_header(server: Server, client: HttpClient) -> None:
    """The server learns the program, the host, and the fields that were given."""
    body = client.request("GET", f"{server.url}/echo?a=b", headers={"X-A": "b"}).body.decode()
    lines = body.splitlines()
    assert lines[0] == "GET /echo?a=b HTTP/1.1"
    assert f"User-Agent: {httpclient.USER_AGENT}" in lines
    assert f"Host: 127.0.0.1:{server.server_port}" in lines
    assert "X-A: b" in lines


def test_version() -> None:
    """The User-Agent says the version of the package."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert f"narswarm/{project['project']['version']}" == httpclient.USER_AGENT


def test_put(server: Server, client: HttpClient) -> None:
    """A body is sent."""
    response = client.request(
        "PUT", f"{server.url}/x", body=b"abc" * 9999, headers={"Content-Type": "text/x"}
    )
    assert response.status == 201
    assert response.body == b"abc" * 9999
    assert response.headers["x-type"] == "text/x"


def test_connections_are_kept(server: Server, client: HttpClient) -> None:
    """Requests one after another use one connection, whatever they were answered with."""
    for path in ("a", "missing", "chunked", "empty", "size/300000"):
        client.request("GET", f"{server.url}/{path}")
    assert len(server.handler.connections) == 1  # type: ignore[attr-defined]


def test_threads(server: Server, client: HttpClient) -> None:
    """Threads share the client, each with a connection of its own at a time."""
    results: list[int] = []

    def work() -> None:
        for size in range(20):
            results.append(len(client.request("GET", f"{server.url}/size/{size}").body) - size)  # noqa: PERF401

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [0] * 120
    assert len(server.handler.connections) <= 6  # type: ignore[attr-defined]


def test_stale_connection(client: HttpClient) -> None:
    """A kept connection that the server closed meanwhile is replaced unseen."""
    with scripted(answer(GOOD)) as url:
        assert [client.request("GET", url).body for _ in range(4)] == [b"ok"] * 4


@pytest.mark.parametrize("reset", [False, True])
def test_connection_closed_at_the_next_request(client: HttpClient, *, reset: bool) -> None:
    """A kept connection that ends when it is used again costs one retry on a new one."""

    def script(connection: socket.socket, number: int) -> None:
        connection.sendall(GOOD)
        if number == 0:
            connection.recv(10 if reset else 65536)

    with scripted(script) as url:
        assert client.request("GET", url).body == b"ok"
        assert client.request("GET", url).body == b"ok"


def test_no_retry_of_post(client: HttpClient) -> None:
    """A request that might do something twice is not repeated."""

    def script(connection: socket.socket, _number: int) -> None:
        connection.sendall(GOOD)
        received = b""
        while not received.endswith(b"\r\n\r\nx") and (more := connection.recv(65536)):
            received += more

    with scripted(script) as url:
        assert client.request("POST", url, body=b"x").body == b"ok"
        with pytest.raises(NetworkError) as error:
            client.request("POST", url, body=b"x")
        assert str(error.value) == f"{url}/: closed the connection without an answer"


@pytest.mark.parametrize(
    ("pieces", "reason"),
    [
        ([], "closed the connection without an answer"),
        ([b"SSH-2.0-x\r\n"], "did not answer in HTTP"),
        ([b"HTTP/1.1 x\r\n\r\n"], "did not answer in HTTP"),
        ([b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort"], "ended after 5 of 9 bytes"),
        ([b"HTTP/1.1 200 OK\r\nContent-Length: 101\r\n\r\n"], "is longer than 100 bytes"),
        ([b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 101], "is longer than 100 bytes"),
        (
            [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n65\r\n", b"x" * 101],
            "is longer than 100 bytes",
        ),
        (
            [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nshort"],
            "ended before its end",
        ),
        (
            [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n"],
            "ended before its end",
        ),
        (
            [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nx\r\n"],
            "ended before its end",
        ),
        ([b"HTTP/1.1 200 OK\r\n", b"A: b\r\n" * 101, b"\r\n"], "did not answer in HTTP"),
        ([b"HTTP/1.1 200 OK\r\nA: ", b"b" * 70000, b"\r\n\r\n"], "did not answer in HTTP"),
        (
            [b"HTTP/1.1 200 OK\r\n", (b"A: " + b"b" * 60000 + b"\r\n") * 6, b"\r\n"],
            "has a header that is too long",
        ),
        ([b"HTTP/1.1 100 Continue\r\n\r\n" * 20000], "has a header that is too long"),
    ],
)
def test_bad_answers(client: HttpClient, pieces: list[bytes], reason: str) -> None:
    """An answer that breaks off, or is none, or goes beyond a limit, is an error with a reason."""
    with scripted(answer(*pieces)) as url:
        with pytest.raises(NetworkError) as error:
            client.request("GET", f"{url}/a?secret", max_bytes=100)
        assert str(error.value) == f"{url}/a: {reason}"


@pytest.mark.parametrize(
    "pieces",
    [
        [b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n", b"x" * 100],
        [b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 100],
        [b"HTTP/1.0 200 OK\r\n\r\n", b"x" * 100],
        [b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 100],
    ],
)
def test_largest_answer(client: HttpClient, pieces: list[bytes]) -> None:
    """A body of exactly the limit is taken, with and without an announced length."""
    with scripted(answer(*pieces)) as url:
        assert client.request("GET", url, max_bytes=100).body == b"x" * 100


@pytest.mark.parametrize(
    "first", [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx"]
)
def test_silence(first: bytes) -> None:
    """A server that falls silent is given up after the time-out."""
    over = threading.Event()

    def script(connection: socket.socket, _number: int) -> None:
        connection.sendall(first)
        over.wait(120)

    with scripted(script) as url, HttpClient(0.05, environ={}) as client:
        with pytest.raises(NetworkError) as error:
            client.request("GET", url)
        over.set()
        assert str(error.value) == f"{url}/: timed out"


@pytest.mark.parametrize(
    ("first", "drop"),
    [
        (b"HTTP/1.1 200 OK\r\n", b"A"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n", b"x"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    ],
)
def test_drops(first: bytes, drop: bytes) -> None:
    """A server that sends drop by drop is given up after the total time."""
    over = threading.Event()

    def script(connection: socket.socket, _number: int) -> None:
        connection.sendall(first)
        while not over.is_set():
            connection.sendall(drop)

    with scripted(script) as url, HttpClient(60, environ={}, clock=Clock(0.1)) as client:
        with pytest.raises(NetworkError) as error:
            client.request("GET", url, timeout=1, max_bytes=1 << 30)
        over.set()
        assert str(error.value) == f"{url}/: timed out"


def test_redirects(server: Server, client: HttpClient) -> None:
    """Redirects are followed, relative and absolute ones, and the answer says from where it is."""
    response = client.request("GET", f"{server.url}/redirect//size/3")
    assert (response.body, response.url) == (b"xxx", f"{server.url}/size/3")
    with running(Server()) as other:
        response = client.request("GET", f"{server.url}/redirect/{other.url}/echo")
        assert f"Host: 127.0.0.1:{other.server_port}" in response.body.decode()


def test_redirects_end(server: Server, client: HttpClient) -> None:
    """A chain of five redirects is followed, a sixth one not, a loop neither."""
    five = "/redirect/" * 5
    assert client.request("GET", f"{server.url}{five}/size/3").body == b"xxx"
    for path in (f"/redirect/{five}/size/3", "/loop"):
        with pytest.raises(NetworkError) as error:
            client.request("GET", f"{server.url}{path}")
        assert str(error.value) == f"{server.url}{path}: redirects more than 5 times"


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://127.0.0.1/x"])
def test_redirect_to_other_schemes(server: Server, client: HttpClient, location: str) -> None:
    """A redirect can't lead out of HTTP."""
    with pytest.raises(NetworkError) as error:
        client.request("GET", f"{server.url}/redirect/{location}")
    assert str(error.value) == f"{location}: is not an http or https URL"


def test_put_is_not_redirected(client: HttpClient) -> None:
    """Redirects of other methods are answers."""
    with scripted(answer(b"HTTP/1.1 307 X\r\nLocation: /\r\nContent-Length: 0\r\n\r\n")) as url:
        assert client.request("PUT", url, body=b"x").status == 307


def test_refused_connection(client: HttpClient) -> None:
    """A server that isn't there says so."""
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(NetworkError) as error:
        client.request("GET", url)
    assert str(error.value) == f"{url}/: connection refused"


def test_second_address(
    server: Server, client: HttpClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host of several addresses is reached at the first one that answers."""
    dead = free_port()
    addresses = [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))
        for port in (dead, server.server_port)
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_kwargs: addresses)
    assert client.request("GET", "http://a.invalid/x").body == b"hello"


def test_unknown_host(client: HttpClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that the resolver doesn't know says so."""

    def fail(*_args: object, **_kwargs: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with pytest.raises(NetworkError) as error:
        client.request("GET", "http://a.invalid/x")
    assert str(error.value) == "http://a.invalid/x: name or service not known"


def test_bad_url(client: HttpClient) -> None:
    """What can't be fetched is refused before anything is sent."""
    with pytest.raises(NetworkError) as error:
        client.request("GET", "file:///x")
    assert str(error.value) == "file:///x: is not an http or https URL"


def test_ipv6(client: HttpClient) -> None:
    """An IPv6 address stands in brackets in the URL and in the Host field."""
    with running(Server(socket.AF_INET6)) as server:
        url = f"http://[::1]:{server.server_port}/echo"
        response = client.request("GET", url)
    assert f"Host: [::1]:{server.server_port}" in response.body.decode()
    assert response.url == url


def test_stream(server: Server, client: HttpClient) -> None:
    """A stream gives its header at once and its body in pieces, without Keep-Alive."""
    with client.stream(f"{server.url}/size/1000000") as stream:
        assert (stream.status, stream.length) == (200, 1000000)
        assert stream.headers["content-length"] == "1000000"
        pieces = list(stream)
    assert sum(map(len, pieces)) == 1000000
    assert len(pieces) > 1
    with client.stream(f"{server.url}/echo") as stream:
        assert b"Connection: close" in b"".join(stream)
    assert len(server.handler.connections) == 2  # type: ignore[attr-defined]


def test_stream_on_kept_connection(server: Server, client: HttpClient) -> None:
    """Streams may keep their connection, except after one that was left half-way."""
    for _ in range(3):
        with client.stream(f"{server.url}/size/300000", keep=True) as stream:
            assert sum(map(len, stream)) == 300000
    assert len(server.handler.connections) == 1  # type: ignore[attr-defined]
    with client.stream(f"{server.url}/size/300000", keep=True) as stream:
        next(iter(stream))
    assert client.request("GET", f"{server.url}/size/3").body == b"xxx"
    assert len(server.handler.connections) == 2  # type: ignore[attr-defined]


def test_stream_without_length(client: HttpClient) -> None:
    """A body without a length ends where the server closes, as `guix publish` sends NARs."""
    with (
        scripted(answer(b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 920)) as url,
        client.stream(url) as stream,
    ):
        assert stream.length is None
        assert b"".join(stream) == b"x" * 920


def test_stream_breaks_off(client: HttpClient) -> None:
    """A stream that ends early gives what came and then raises."""
    script = answer(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n", b"x" * 40)
    with scripted(script) as url, client.stream(url) as stream:
        received: list[bytes] = []
        with pytest.raises(NetworkError) as error:
            received.extend(stream)
    assert b"".join(received) == b"x" * 40
    assert str(error.value) == f"{url}/: ended after 40 of 100 bytes"


def test_stream_may_take_long() -> None:
    """Bytes extend the time of a stream that has no deadline of its own, drops don't."""
    size = 600 * httpclient.MIN_RATE
    with (
        scripted(answer(b"HTTP/1.1 200 OK\r\n\r\n", b"x" * size)) as url,
        HttpClient(50, 60, environ={}, clock=Clock(1)) as client,
        client.stream(url) as stream,
    ):
        assert sum(map(len, stream)) == size
    over = threading.Event()

    def drip(connection: socket.socket, _number: int) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while not over.is_set():
            connection.sendall(b"x")

    with scripted(drip) as url, HttpClient(5, 60, environ={}, clock=Clock(20)) as client:
        with pytest.raises(NetworkError) as error, client.stream(url) as stream:
            list(stream)
        over.set()
        assert str(error.value) == f"{url}/: timed out"


def test_lazy_loading() -> None:
    """Importing the module loads neither http.client nor ssl."""
    code = (
        "import sys, narswarm.httpclient; "
        "sys.exit('ssl' in sys.modules or 'http.client' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_pipeline(server: Server, client: HttpClient) -> None:
    """Several requests go out together, on one connection, which is kept."""
    urls = [f"{server.url}{path}" for path in ("/x", "/missing", "/empty", "/chunked")]
    for _ in range(2):
        responses = list(client.pipeline(urls))
        assert [response.status for response in responses] == [200, 404, 200, 200]
        assert [response.body for response in responses][2:] == [b"", b"hello"]
        assert [response.url for response in responses] == urls


def test_pipeline_with_headers(server: Server, client: HttpClient) -> None:
    """Each request has its own fields, also after a redirect and what follows one by one."""
    paths = ("/echo", "/echo/2", "/redirect//echo/3", "/echo/4")
    urls = [f"{server.url}{path}" for path in paths]
    fields = [{"If-None-Match": f'"{number}"'} for number in range(3)]
    responses = list(client.pipeline(urls, headers=[*fields, {}]))
    sent = [re.findall(r'If-None-Match: "(.)"', response.body.decode()) for response in responses]
    assert sent == [["0"], ["1"], ["2"], []]
    assert client.request("GET", urls[0], headers=fields[1]).body.count(b"If-None-Match") == 1
    with pytest.raises(ValueError, match="shorter"):
        list(client.pipeline(urls, headers=fields))


@pytest.mark.parametrize("answers", [0, 1, 2, 3])
def test_pipeline_that_breaks_off(client: HttpClient, answers: int) -> None:
    """What a server doesn't answer on the first connection is asked for again, one by one."""

    def script(connection: socket.socket, number: int) -> None:
        if number == 0:
            connection.sendall(GOOD * answers)
        else:
            connection.sendall(GOOD)

    with scripted(script) as url:
        responses = list(client.pipeline([f"{url}/{number}" for number in range(3)]))
        assert [response.body for response in responses] == [b"ok"] * 3


def test_pipeline_limits(client: HttpClient) -> None:
    """Each answer has its limit."""
    long = b"HTTP/1.1 200 OK\r\nContent-Length: 101\r\n\r\n" + b"x" * 101
    with scripted(answer(GOOD, long)) as url:
        made = client.pipeline([f"{url}/a", f"{url}/b"], max_bytes=100)
        assert next(made).body == b"ok"
        with pytest.raises(NetworkError) as error:
            next(made)
        assert str(error.value) == f"{url}/b: is longer than 100 bytes"
