# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of `narswarm.narinfosearch`: which server is asked for what, and when it is over."""

from __future__ import annotations

import threading

from narswarm import gcrypt, narinfo, sexp
from narswarm.acl import Acl
from narswarm.httpclient import HttpClient
from narswarm.narinfos import NarinfoLookup
from tests.narswarm import test_narinfos as world
from tests.narswarm.test_narinfos import (
    APP,
    NARINFOS,
    PATHS,
    PATIENT,
    TEXT,
    TRUSTED,
    Answer,
    Clock,
    Server,
    found,
)

# The fixtures of the look-up's tests.
servers, client, clock = world.servers, world.client, world.clock


def test_later_servers(servers: list[Server], client: HttpClient) -> None:
    """What the first server lacks comes from the next; what it has isn't asked of others."""
    servers[0].serve(*PATHS[:4])
    servers[1].serve(*PATHS[2:8])
    servers[2].serve(*PATHS)
    urls = [server.url for server in servers]
    lookup = NarinfoLookup(client, urls, TRUSTED, hedge=PATIENT)
    result = lookup.find(PATHS, PATIENT)
    assert found(result) == NARINFOS
    for index, path in enumerate(PATHS):
        server = servers[0 if index < 4 else 1 if index < 8 else 2]
        assert result[path].sources[0].url.startswith(server.url)
    assert [len(server.requests) for server in servers] == [11, 7, 3]


def test_slow_server(servers: list[Server], client: HttpClient) -> None:
    """While a server takes long, the next one is asked, and its answer taken."""
    gate = threading.Event()
    servers[0].say(APP, Answer(NARINFOS[APP], gate=gate))
    servers[1].serve(APP)
    urls = [server.url for server in servers]
    result = NarinfoLookup(client, urls, TRUSTED, hedge=0.01).find([APP], PATIENT)
    gate.set()
    assert result[APP].sources[0].url.startswith(servers[1].url)


def test_deadline(servers: list[Server], client: HttpClient, clock: Clock) -> None:
    """When time is up, what was found is given back; silence is not held against a short time."""
    gate = threading.Event()
    servers[0].serve(TEXT)
    servers[0].say(APP, Answer(NARINFOS[APP], gate=gate))
    lookup = NarinfoLookup(client, [servers[0].url], TRUSTED, clock=clock)
    warnings: list[str] = []
    assert lookup.find([APP], 0.05, warnings.append) == {}
    assert not lookup.is_down(servers[0].url)
    gate.set()
    assert set(lookup.find([APP, TEXT], PATIENT, warnings.append)) == {APP, TEXT}
    assert warnings == []


def test_many_paths(servers: list[Server], client: HttpClient) -> None:
    """A batch of hundreds of paths is answered on a few connections."""
    key = gcrypt.generate_key()
    paths = [f"/gnu/store/{number:032}-item" for number in range(300)]
    for path in paths[:200]:
        text = narinfo.compose(path, bytes(32), 100, [])
        servers[1].say(path, Answer(narinfo.sign(text, key, "h")))
    trusted = Acl([sexp.parse(key.public)])
    urls = [servers[0].url, servers[1].url]
    result = NarinfoLookup(client, urls, trusted, workers=4).find(paths, PATIENT)
    assert list(result) == paths[:200]


def test_few_connections_serve_many_paths(servers: list[Server], client: HttpClient) -> None:
    """Requests are sent without waiting; a server that doesn't like it gets single ones."""
    server = servers[0]
    server.serve(*PATHS)
    lookup = NarinfoLookup(client, [server.url], TRUSTED)
    assert list(lookup.find(PATHS, PATIENT)) == PATHS
    assert sorted(server.requests) == sorted(f"/{path[11:43]}.narinfo" for path in PATHS)
    for path in PATHS[::2]:
        server.say(path, Answer(NARINFOS[path], headers={"Connection": "close"}))
    assert list(lookup.find(PATHS, PATIENT)) == PATHS


def test_a_server_that_breaks_off_between_answers(client: HttpClient) -> None:
    """What it did answer counts; the rest is asked for again."""
    server = Server()
    server.serve(*PATHS)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        lookup = NarinfoLookup(client, [server.url], TRUSTED)
        server.say(PATHS[1], Answer(b"x", 500))
        assert list(lookup.find(PATHS, PATIENT)) == [PATHS[0], *PATHS[2:]]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
