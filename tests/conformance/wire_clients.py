# SPDX-License-Identifier: GPL-3.0-or-later
"""Clients that take the steps of wire cases over HTTP and UDP, with no code of the tracker's."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Self

import bencodepy

from tests.conformance.wire_steps import (
    EVENTS,
    UNKNOWN_LEFT,
    Announce,
    Case,
    Crowd,
    H,
    Packet,
    Peers,
    Request,
    Scrape,
    Step,
    about,
    entry,
    peer,
    reply,
)

TIMEOUT = 120.0
MAGIC = 0x41727101980.to_bytes(8)
_SIX = "::1"


class Endpoint(NamedTuple):
    """Where a tracker listens.

    Attributes:
        http: port of HTTP.
        udp: port of UDP over IPv4.
        udp6: port of UDP over IPv6.
        six: whether it listens on IPv6.
    """

    http: int
    udp: int
    udp6: int
    six: bool = True


def observe(case: Case, protocol: str, endpoint: Endpoint) -> str:
    """Take all steps of a case; what the last one got."""
    seen = ""
    for step in case.steps:
        if not endpoint.six and getattr(step, "host", "") == _SIX:
            return "no IPv6"
        take = _http if protocol == "http" else _udp
        seen = take(case, step, endpoint)
    return seen


def _source(number: int) -> str:
    """The address of one of a crowd: ours takes few ports of one address."""
    return f"127.0.1.{1 + number}"


# -- HTTP -----------------------------------------------------------------------------------------


def _escaped(data: bytes) -> str:
    return "".join(f"%{byte:02X}" for byte in data)


def _query(case: Case, step: Announce) -> str:
    info_hash = case.infohash("http", step.infohash)
    query = f"info_hash={_escaped(info_hash)}&peer_id={step.peer_id.decode()}&port={step.port}"
    if step.left is not None:
        query += f"&left={step.left}"
    if step.event:
        query += f"&event={step.event}"
    if step.numwant is not None:
        query += f"&numwant={step.numwant}"
    if step.ip:
        query += f"&ip={step.ip}"
    return f"/announce?{query}&uploaded=0&downloaded=0&compact=1"


def _http(case: Case, step: Step, endpoint: Endpoint) -> str:
    if isinstance(step, Crowd):
        for number in range(step.size):
            request = Request(_query(case, Announce(1000)))
            _exchange("127.0.0.1", endpoint.http, request, _source(number))
        return "a crowd"
    if isinstance(step, Announce):
        request = Request(_query(case, step), show=step.show)
        asker = f"[::1]:{step.port}" if step.host == _SIX else str(step.port)
        return _seen(_exchange(step.host, endpoint.http, request), request, asker)
    if isinstance(step, Scrape):
        hashes = [case.infohash("http", number) for number in step.infohashes]
        query = "&".join(f"info_hash={_escaped(each)}" for each in hashes)
        answer = _exchange(step.host, endpoint.http, Request(f"/scrape?{query}"))
        return _scraped(answer, hashes, step)
    assert isinstance(step, Request)
    target = step.target.replace("{H}", _escaped(case.infohash("http", 0)))
    target = target.replace("{P}", Announce(1).peer_id.decode())
    return _seen(_exchange("127.0.0.1", endpoint.http, step._replace(target=target)), step, "1")


class Answer(NamedTuple):
    """An answer of HTTP."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def _exchange(host: str, port: int, request: Request, source: str = "") -> Answer:
    """Send a request on a connection of its own and read until that ends."""
    lines = [f"{request.method} {request.target} HTTP/{request.version}", "Host: tracker"]
    lines += [*request.headers, "Connection: close", "", ""]
    own = (source, 0) if source else None
    with socket.create_connection((host, port), TIMEOUT, own) as connection:
        connection.sendall("\r\n".join(lines).encode("latin-1"))
        raw = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, body = raw.partition(b"\r\n\r\n")
    first, *rest = head.decode("latin-1").split("\r\n")
    fields = (line.partition(":") for line in rest)
    headers = {name.strip().lower(): value.strip() for name, _, value in fields}
    if headers.get("transfer-encoding") == "chunked":
        body = _joined(body)
    status = re.match(r"HTTP/1\.[01] (\d{3})", first)
    return Answer(int(status[1]) if status else 0, headers, body)


def _joined(chunked: bytes) -> bytes:
    whole = b""
    while chunked:
        size, _, chunked = chunked.partition(b"\r\n")
        if not size.isalnum():
            return b""
        whole += chunked[: int(size, 16)]
        chunked = chunked[int(size, 16) + 2 :]
    return whole


def _decoded(answer: Answer) -> dict[bytes, Any] | str:
    """The dictionary that is the answer, or what there is instead of one."""
    if answer.status != 200:
        return f"status {answer.status}" if answer.status else "nothing"
    try:
        found = bencodepy.decode(answer.body)
    except bencodepy.BencodeDecodeError:
        return "no bencoding"
    if not isinstance(found, dict):
        return "no dictionary"
    if b"failure reason" in found:
        return "failure, retry" if b"retry in" in found else "failure"
    return found


def _seen(answer: Answer, request: Request, asker: str) -> str:
    shows: dict[str, Callable[[], str]] = {
        "type": lambda: f"status {answer.status}, {answer.headers.get('content-type', 'no type')}",
        "length": lambda: f"status {answer.status}, {len(answer.body)} bytes",
        "gzip": lambda: answer.headers.get("content-encoding", "plain"),
    }
    if request.show in shows:
        return shows[request.show]()
    if request.show == "refusal":
        return "failure" if b"14:failure reason" in answer.body else "an answer"
    found = _decoded(answer)
    if isinstance(found, str):
        return found
    if request.show == "interval":
        return about(found[b"interval"])
    four, six = found.get(b"peers", b""), found.get(b"peers6", b"")
    if request.show == "keys":
        return " ".join(sorted(key.decode().replace(" ", "_") for key in found))
    if request.show == "address":
        address = found.get(b"external ip", b"")
        return ".".join(map(str, address)) if address else "not told"
    if request.show == "form":
        if isinstance(four, bytes):
            return "packed"
        keys = sorted({key.decode().replace(" ", "_") for each in four for key in each})
        return f"dictionaries of {' '.join(keys)}"
    return reply(
        found[b"complete"],
        found[b"incomplete"],
        _peers(four) + _peers(six, 18),
        asker,
        request.show,
    )


def _peers(value: bytes | list[dict[bytes, Any]], stride: int = 6) -> list[str]:
    if isinstance(value, bytes):
        return list(Peers.of(value, stride).shown)
    shown = []
    for each in value:
        family = socket.AF_INET6 if b":" in each[b"ip"] else socket.AF_INET
        shown.append(peer(socket.inet_pton(family, each[b"ip"].decode()), each[b"port"]))
    return shown


def _scraped(answer: Answer, hashes: list[bytes], step: Scrape) -> str:
    found = _decoded(answer)
    if isinstance(found, str):
        return found
    files = found.get(b"files", {})
    if step.show == "number":
        return f"{len(files)} entries"
    if set(files) - set(hashes):
        return "entries of other infohashes"
    listed = list(files)
    return ("" if listed == sorted(listed) else "out of order: ") + "; ".join(
        entry(*(files[each][key] for key in (b"complete", b"downloaded", b"incomplete")))
        if each in files
        else "nothing"
        for each in hashes
    )


# -- UDP ------------------------------------------------------------------------------------------


class _Udp:
    """A socket that is connected to a tracker, and its connection id."""

    def __init__(self, host: str, endpoint: Endpoint, source: str = "") -> None:
        self.six = ":" in host
        self.socket = socket.socket(
            socket.AF_INET6 if self.six else socket.AF_INET, socket.SOCK_DGRAM
        )
        self.socket.settimeout(TIMEOUT)
        if source:
            self.socket.bind((source, 0))
        self.socket.connect((host, endpoint.udp6 if self.six else endpoint.udp))
        self._transaction = 0
        answer = self.ask(MAGIC, 0)
        assert answer is not None
        assert (answer[:4], len(answer)) == (bytes(4), 12)
        self.id = answer[4:]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def ask(
        self, connection: bytes, action: int, body: bytes = b"", cut: int = 65536
    ) -> bytes | None:
        """Send a datagram; the answer without its transaction, or None for silence.

        Two connects follow. If they are answered and the datagram before them isn't, it never is.
        """
        tags = [b"t%03d" % (self._transaction + number) for number in range(3)]
        self._transaction += 3
        self.socket.send((connection + action.to_bytes(4) + tags[0] + body)[:cut])
        answers: dict[bytes, bytes] = {}
        for tag in tags[1:]:
            self.socket.send(MAGIC + bytes(4) + tag)
            while tag not in answers:
                received = self.socket.recv(65536)
                answers[received[4:8]] = received[:4] + received[8:]
        return answers.get(tags[0])


def _udp(case: Case, step: Step, endpoint: Endpoint) -> str:
    if isinstance(step, Crowd):
        for number in range(step.size):
            with _Udp("127.0.0.1", endpoint, _source(number)) as client:
                client.ask(client.id, 1, _body(case, Announce(1000)))
        return "a crowd"
    if isinstance(step, Announce):
        with _Udp(step.host, endpoint) as client:
            answer = client.ask(client.id, 1, _body(case, step))
        return _announced(answer, step.port, step.show, six=step.host == _SIX)
    if isinstance(step, Scrape):
        with _Udp(step.host, endpoint) as client:
            body = b"".join(case.infohash("udp", number) for number in step.infohashes)
            answer = client.ask(client.id, 2, body)
        return _entries(answer, step.show)
    assert isinstance(step, Packet)
    return _packet(case, step, endpoint)


def _body(case: Case, step: Announce) -> bytes:
    left = UNKNOWN_LEFT if step.left is None else step.left
    numwant = -1 if step.numwant is None else step.numwant
    return (
        case.infohash("udp", step.infohash)
        + step.peer_id
        + bytes(8)
        + left.to_bytes(8)
        + bytes(8)
        + EVENTS[step.event].to_bytes(4)
        + (socket.inet_aton(step.ip) if step.ip else bytes(4))
        + bytes(4)
        + numwant.to_bytes(4, signed=True)
        + step.port.to_bytes(2)
    )


def _packet(case: Case, step: Packet, endpoint: Endpoint) -> str:
    body = step.body.replace(H, case.infohash("udp", 0))
    with _Udp("127.0.0.1", endpoint) as client, _Udp("127.0.0.1", endpoint, "127.0.0.9") as other:
        connections = {
            "own": client.id,
            "moved": client.id,
            "magic": MAGIC,
            "zero": bytes(8),
            "altered": (int.from_bytes(client.id) ^ 1).to_bytes(8),
            "foreign": other.id,
        }
        if step.connection == "moved":
            with _Udp("127.0.0.1", endpoint) as moved:
                answer = moved.ask(client.id, step.action, body, step.cut)
        else:
            answer = client.ask(connections[step.connection], step.action, body, step.cut)
    if step.show == "bytes" and answer is not None:
        return f"action {int.from_bytes(answer[:4])}, {len(answer) + 4} bytes"
    if step.show == "text" and answer is not None:
        end = "ends with NUL" if answer.endswith(b"\0") else "text"
        return f"action {int.from_bytes(answer[:4])}, {end if len(answer) > 4 else 'no text'}"
    if step.action == 2:
        return _entries(answer, step.show)
    return _announced(answer, 1, step.show, six=False)


def _announced(answer: bytes | None, port: int, show: str, *, six: bool) -> str:
    if answer is None:
        return "silence"
    action = int.from_bytes(answer[:4])
    if action == 3:
        return "failure"
    if action != 1 or len(answer) < 16:
        return f"action {action}, {len(answer) + 4} bytes"
    if show == "interval":
        return about(int.from_bytes(answer[4:8]))
    peers = Peers.of(answer[16:], 18 if six else 6).shown
    asker = f"[::1]:{port}" if six else str(port)
    seeds, leechers = int.from_bytes(answer[12:16]), int.from_bytes(answer[8:12])
    return reply(seeds, leechers, peers, asker, show)


def _entries(answer: bytes | None, show: str) -> str:
    if answer is None:
        return "silence"
    if answer[:4] != b"\0\0\0\2":
        return "failure"
    if (len(answer) - 4) % 12:
        return "broken"
    numbers = [int.from_bytes(answer[at : at + 4]) for at in range(4, len(answer), 4)]
    entries = [entry(*numbers[at : at + 3]) for at in range(0, len(numbers), 3)]
    return f"{len(entries)} entries" if show == "number" else "; ".join(entries) or "no entries"
