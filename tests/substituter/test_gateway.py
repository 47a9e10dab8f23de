# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of substituter.gateway: what clients get, over real connections."""

from __future__ import annotations

import hashlib
import http.client
import http.server
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zstandard

from substituter import gateway
from substituter.gateway import Server
from substituter.gatewayitems import Items
from substituter.gatewaypool import Pool
from tests.substituter.conftest import Item, Site, World
from tests.substituter.test_gatewaypool import NOISE, WAIT, Script, packed

Make = Callable[..., Item]
Enter = Callable[..., World]
RANDOM = hashlib.shake_128(b"gateway").digest(400_000)
"""What doesn't get smaller: more than is held back."""


class Client:
    """A connection to the gateway."""

    def __init__(self, port: int) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT)

    def __call__(
        self, path: str, method: str = "GET", **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        self.connection.request(method, path, headers=sent)
        response = self.connection.getresponse()
        return response.status, dict(response.getheaders()), response.read()


@pytest.fixture
def script() -> Script:
    """Where payloads come from."""
    return Script()


@pytest.fixture
def client(enter: Enter, site: Site, script: Script, tmp_path: Path) -> Iterator[Client]:
    """The gateway in front of a server."""
    context = enter(site.url).context
    with Server(
        ("127.0.0.1", 0), Items(context), Pool(tmp_path / "pool", 8 << 20, script)
    ) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        made = Client(server.server_port)
        yield made
        made.connection.close()
        server.shutdown()
        thread.join()


@pytest.fixture
def item(make_item: Make, site: Site) -> Item:
    """An item that the server has."""
    made = make_item("a", NOISE)
    site.offer(made, "gzip")
    return made


def urls(item: Item) -> tuple[str, str]:
    """The paths of an item's payload and NAR."""
    return f"/nar/zstd/{item.path[11:]}", f"/nar/{item.path[11:]}"


def test_the_narinfo(client: Client, item: Item, site: Site) -> None:
    """What is signed and the signature are upstream's; where to fetch is here."""
    status, headers, body = client(f"/{item.hash_part}.narinfo")
    assert (status, headers["Content-Type"]) == (200, "application/x-nix-narinfo")
    assert body.startswith(item.narinfo)
    assert body[len(item.narinfo) :].decode() == (
        f"URL: {urls(item)[0][1:]}\nCompression: zstd\n"
        f"URL: {urls(item)[1][1:]}\nCompression: none\nFileSize: {len(item.nar)}\n"
    )
    assert client(f"/{item.hash_part}.narinfo", "HEAD")[2] == b""
    assert site.requests == [f"/{item.hash_part}.narinfo"]


def test_requests_that_wait_are_asked_together(client: Client, make_item: Make, site: Site) -> None:
    """Of those that a client sends in one go, none has to wait for the answer to another."""
    items = [make_item(name, name.encode()) for name in "abc"]
    together = threading.Barrier(2)
    for item in items:
        site.offer(item, "gzip")
    for item in items[1:]:
        data = site.bodies[f"/{item.hash_part}.narinfo"]
        assert isinstance(data, bytes)

        def meet(handler: http.server.BaseHTTPRequestHandler, data: bytes = data) -> None:
            together.wait(WAIT)
            handler.send_response(200)
            handler.send_header("Content-Length", str(len(data)))
            handler.end_headers()
            handler.wfile.write(data)

        site.bodies[f"/{item.hash_part}.narinfo"] = meet
    assert client.connection.port
    with socket.create_connection(("127.0.0.1", client.connection.port), WAIT) as raw:
        requests = [f"GET /{item.hash_part}.narinfo HTTP/1.1\r\nHost: x\r\n\r\n" for item in items]
        last = f"GET /{'0' * 32}.narinfo HTTP/1.1\r\nConnection: close\r\n\r\n"
        raw.sendall("".join([*requests, last]).encode())
        with raw.makefile("rb") as answers:
            text = answers.read()
    assert [text.count(item.narinfo) for item in items] == [1, 1, 1]
    assert text.count(b"HTTP/1.1 200") == 3
    assert text.count(b"HTTP/1.1 404") == 1


def test_the_cache_info(client: Client) -> None:
    """What Guix looks at first."""
    status, _, body = client("/nix-cache-info")
    assert (status, body) == (200, b"StoreDir: /gnu/store\nWantMassQuery: 0\nPriority: 40\n")


def test_payload_and_nar(client: Client, item: Item, script: Script) -> None:
    """One fetch serves both; the NAR is decompressed on the way out."""
    data = packed(item)
    script.add("zstd", data, length=len(data))
    zstd, nar = urls(item)
    status, headers, body = client(zstd)
    assert (status, headers["Content-Length"], body) == (200, str(len(data)), data)
    status, headers, body = client(nar)
    assert (status, headers["Content-Length"], body) == (200, str(len(item.nar)), item.nar)
    for path, size in ((zstd, len(data)), (nar, len(item.nar))):
        status, headers, body = client(path, "HEAD")
        assert (status, headers["Content-Length"], body) == (200, str(size), b"")
    assert script.asked == 1


def test_other_compressions(client: Client, item: Item, script: Script) -> None:
    """What came as something else is compressed anew, to the end of the connection."""
    script.add("none", item.nar)
    status, headers, body = client(urls(item)[0])
    assert (status, headers["Connection"], "Content-Length" in headers) == (200, "close", False)
    assert zstandard.ZstdDecompressor().decompressobj().decompress(body) == item.nar
    assert client(urls(item)[1])[2] == item.nar


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=700-", 700, None),
        ("bytes=5-9", 5, 10),
        ("bytes=-3", -3, None),
        ("bytes=100-99999999", 100, None),
    ],
)
def test_parts(
    client: Client, item: Item, script: Script, asked: str, start: int, end: int | None
) -> None:
    """Of the payload as of the NAR."""
    data = packed(item)
    script.add("zstd", data, length=len(data))
    for path, whole in zip(urls(item), (data, item.nar), strict=True):
        status, headers, body = client(path, Range=asked)
        assert (status, body) == (206, whole[start:end])
        begin = start % len(whole)
        last = begin + len(body) - 1
        assert headers["Content-Range"] == f"bytes {begin}-{last}/{len(whole)}"


@pytest.mark.parametrize("asked", ["bytes=9-5", "bytes=-", "bytes=0-1,5-6", "lines=1-2"])
def test_parts_that_are_not_understood(
    client: Client, item: Item, script: Script, asked: str
) -> None:
    """They are answered by the whole (RFC 9110, section 14.2)."""
    script.add("none", item.nar)
    status, _, body = client(urls(item)[1], Range=asked)
    assert (status, body) == (200, item.nar)


def test_parts_beyond_the_end(client: Client, item: Item, script: Script) -> None:
    """There are none, and the length is told."""
    script.add("none", item.nar)
    status, headers, _ = client(urls(item)[1], Range=f"bytes={len(item.nar)}-")
    assert (status, headers["Content-Range"]) == (416, f"bytes */{len(item.nar)}")


def test_parts_of_something_else(client: Client, item: Item, script: Script) -> None:
    """A payload from another source has other bytes: If-Range gives the whole then."""
    data = packed(item)
    script.add("zstd", data, length=len(data))
    tag = client(urls(item)[0], "HEAD")[1]["ETag"]
    assert client(urls(item)[0], Range="bytes=0-9", If_Range=tag)[0] == 206
    assert client(urls(item)[0], Range="bytes=0-9", If_Range='"x"')[0] == 200


def test_a_part_of_what_is_on_its_way(client: Client, item: Item, script: Script) -> None:
    """It comes as soon as it is there, and what is still missing is waited for."""
    gate = threading.Event()
    script.add("none", item.nar[:-5], item.nar[-5:], gate=gate)
    assert client(urls(item)[1], Range="bytes=10-19")[2] == item.nar[10:20]
    client.connection.request("GET", urls(item)[1], headers={"Range": "bytes=-5"})
    gate.set()
    assert client.connection.getresponse().read() == item.nar[-5:]


def test_another_source_takes_over_within_a_nar(client: Client, item: Item, script: Script) -> None:
    """The NAR is the same wherever it comes from; a client doesn't notice."""
    script.add("none", item.nar[:200_000], error="is gone")
    script.add("zstd", packed(item))
    assert client(urls(item)[1])[2] == item.nar


def test_a_payload_that_turns_out_wrong_is_cut_off(
    client: Client, make_item: Make, script: Script, site: Site
) -> None:
    """The client sees that something is missing, and gets the right one the next time."""
    other = make_item("b", RANDOM[:-1] + b"x")
    item = make_item("a", RANDOM)
    site.offer(item, "gzip")
    data, gate = packed(other), threading.Event()
    script.add("zstd", data[:-9], data[-9:], length=len(data), gate=gate)
    script.add("zstd", packed(item), length=len(packed(item)))
    client.connection.request("GET", urls(item)[0])
    response = client.connection.getresponse()
    gate.set()
    with pytest.raises(http.client.IncompleteRead):
        response.read()
    client.connection.close()
    assert client(urls(item)[0])[2] == packed(item)
    assert script.refused == ["hash0"]


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/nar/",
        "/nar/zstd/",
        "/nar/gzip/{name}",
        "/nar/../etc/passwd",
        "/nar/..%2Fx",
        "/nar/zstd/{name}/x",
        "/{name}",
        "http://example.org/nix-cache-info",
        "/http://example.org/x.narinfo",
        "/eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee.narinfo",
        "/00000000000000000000000000000000.narinfo",
        "/nar/00000000000000000000000000000000-x",
    ],
)
def test_what_is_not_here(client: Client, item: Item, script: Script, path: str) -> None:
    """Nothing can be had but items that an authorised narinfo vouches for."""
    status, _, _ = client(path.format(name=item.path[11:]))
    assert status == 404
    assert script.asked == 0


@pytest.mark.parametrize("method", ["POST", "PUT", "CONNECT", "DELETE"])
def test_other_methods(client: Client, method: str) -> None:
    """There are none."""
    assert client("/nix-cache-info", method)[0] == 501


def test_items_that_nobody_vouches_for(client: Client, make_item: Make, site: Site) -> None:
    """A narinfo without an authorised signature is as none."""
    item = make_item("a")
    site.bodies[f"/{item.hash_part}.narinfo"] = item.narinfo.replace(b"Signature", b"Remark")
    assert client(f"/{item.hash_part}.narinfo")[0] == 404
    assert client(urls(item)[1])[0] == 404


def test_a_narinfo_of_what_nobody_has(client: Client, make_item: Make, site: Site) -> None:
    """Who is told that an item is available doesn't build it."""
    item = make_item("a")
    site.bodies[f"/{item.hash_part}.narinfo"] = item.narinfo
    assert client(f"/{item.hash_part}.narinfo")[0] == 404


def test_sources_that_fail(client: Client, item: Item, script: Script) -> None:
    """The gateway has the item, and can't get it now."""
    status, _, body = client(urls(item)[1])
    assert (status, body.decode()) == (502, f"{item.path}: nobody has it\n")
    assert client(urls(item)[0])[0] == 502
    assert script.asked == 1


def test_no_room(client: Client, make_item: Make, site: Site) -> None:
    """Another time maybe."""
    item = make_item("large", bytes(9 << 20))
    site.offer(item, "gzip")
    status, headers, _ = client(urls(item)[1])
    assert (status, headers["Retry-After"]) == (503, "5")


def test_connections_are_bounded(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """One more than there may be is closed; those that are there go on."""
    assert client("/nix-cache-info")[0] == 200
    monkeypatch.setattr(gateway, "MAX_FROM_ONE", 1)
    assert client.connection.port
    with socket.create_connection(("127.0.0.1", client.connection.port), WAIT) as second:
        assert second.recv(1) == b""
    assert client("/nix-cache-info")[0] == 200


def test_requests_that_never_end(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are cut off; whoever sends a byte now and then holds no thread for ever."""
    monkeypatch.setattr(gateway, "HEAD_SECONDS", 0.05)
    assert client.connection.port
    with socket.create_connection(("127.0.0.1", client.connection.port), WAIT) as slow:
        try:
            slow.sendall(b"GET /nix-cache-info HTTP/1.1\r\nA: b")
            received = slow.recv(1)
        except ConnectionError:
            received = b""  # the time was over before all was sent
        assert received == b""
