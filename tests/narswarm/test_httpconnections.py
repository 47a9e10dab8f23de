# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of `narswarm.httpconnections`: what is kept, proxies, tunnels, and TLS."""

from __future__ import annotations

import datetime as dt
import ipaddress
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from narswarm.errors import NetworkError
from narswarm.httpclient import HttpClient
from narswarm.httpconnections import MAX_IDLE_AGE, Connections
from narswarm.httpwire import Connection, Deadline, split
from tests.narswarm.httpservers import Clock, Server, answer, running, scripted


@pytest.fixture
def server() -> Iterator[Server]:
    """A well-behaved HTTP/1.1 server."""
    with running(Server()) as started:
        yield started


@pytest.fixture
def connections() -> Iterator[Connections]:
    """Connections of nobody, of which two are kept."""
    made = Connections(2, {}, Clock())
    yield made
    made.close()


def opened(connections: Connections, url: str) -> Connection:
    """A new connection."""
    return connections.open(split(url), Deadline(Clock(), 120, 120))


def test_the_connection_that_was_used_last_is_taken(
    server: Server, connections: Connections
) -> None:
    """It is the one that the server will close last; those of other servers aren't."""
    with running(Server()) as other:
        one, two = opened(connections, server.url), opened(connections, f"{server.url}/x?y")
        assert connections.take(split(server.url)) is None
        connections.put(one)
        connections.put(two)
        assert connections.take(split(other.url)) is None
        assert connections.take(split(f"{server.url}/z")) is two
        assert connections.take(split(server.url)) is one
        assert connections.take(split(server.url)) is None
        one.close()
        two.close()


def test_only_so_many_are_kept(server: Server, connections: Connections) -> None:
    """Those that were used last, of whatever server."""
    with running(Server()) as other:
        made = [opened(connections, url) for url in (server.url, other.url, server.url)]
        for each in made:
            connections.put(each)
        assert connections.take(split(server.url)) is made[2]
        assert connections.take(split(server.url)) is None
        assert connections.take(split(other.url)) is made[1]
        made[1].close()
        made[2].close()


def test_a_connection_on_which_something_came_is_not_taken(connections: Connections) -> None:
    """Nothing was asked for, so it can't be an answer."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        one = opened(connections, url)
        connections.put(one)
        theirs, _ = listener.accept()
        theirs.sendall(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
        theirs.close()
        while one.is_quiet():
            pass
        assert connections.take(split(url)) is None


def test_no_idle_connections(server: Server) -> None:
    """A client may be told to keep none."""
    with HttpClient(120, max_idle=0, environ={}) as client:
        for _ in range(3):
            client.request("GET", f"{server.url}/a")
    assert len(server.handler.connections) == 3  # type: ignore[attr-defined]


def test_closed_client(server: Server) -> None:
    """A request that ends after the client was closed leaves no connection behind."""
    with HttpClient(120, environ={}) as client:
        with client.stream(f"{server.url}/size/9", keep=True) as stream:
            client.close()
            assert b"".join(stream) == b"x" * 9
        client.request("GET", f"{server.url}/a")
    assert len(server.handler.connections) == 2  # type: ignore[attr-defined]


def test_old_connections_are_not_used(server: Server) -> None:
    """A connection that was unused for long is closed, since the server may be closing it."""
    clock = Clock()
    with HttpClient(120, environ={}, clock=clock) as client:
        client.request("GET", f"{server.url}/a")
        clock.now += MAX_IDLE_AGE
        client.request("GET", f"{server.url}/a")
        assert len(server.handler.connections) == 1  # type: ignore[attr-defined]
        clock.now += MAX_IDLE_AGE + 1
        client.request("GET", f"{server.url}/a")
        assert len(server.handler.connections) == 2  # type: ignore[attr-defined]


def test_proxy(server: Server) -> None:
    """With a proxy for http, whole URLs go to it, with its credentials."""
    environ = {"http_proxy": f"http://me:a%20b@127.0.0.1:{server.server_port}/"}
    with HttpClient(120, environ=environ) as client:
        body = client.request("GET", "http://a.invalid/echo?x").body.decode()
    assert body.startswith("GET http://a.invalid/echo?x HTTP/1.1\n")
    assert "Host: a.invalid\n" in body
    assert "Proxy-Authorization: Basic bWU6YSBi\n" in body


@pytest.fixture
def localhost(monkeypatch: pytest.MonkeyPatch) -> None:
    """The name `localhost` is known, also where /etc/hosts is missing."""
    whole = socket.getaddrinfo

    def known(host: Any, *more: Any, **named: Any) -> Any:
        return whole("127.0.0.1" if host == "localhost" else host, *more, **named)

    monkeypatch.setattr(socket, "getaddrinfo", known)


@pytest.mark.parametrize(
    ("no_proxy", "host", "direct"),
    [
        ("", "127.0.0.1", False),
        ("127.0.0.1", "127.0.0.1", True),
        ("*", "127.0.0.1", True),
        ("a.example, localhost", "localhost", True),
        ("host", "localhost", False),
        (".localhost", "localhost", True),
    ],
)
@pytest.mark.usefixtures("localhost")
def test_no_proxy(server: Server, no_proxy: str, host: str, *, direct: bool) -> None:
    """Hosts and domains in no_proxy are reached directly."""
    environ = {"http_proxy": f"127.0.0.1:{server.server_port}", "no_proxy": no_proxy}
    url = f"http://{host}:{server.server_port}/echo"
    with HttpClient(120, environ=environ) as client:
        line = client.request("GET", url).body.partition(b"\n")[0].decode()
    assert line == f"GET {'/echo' if direct else url} HTTP/1.1"


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of 127.0.0.1 with its key, its own authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "narswarm test")])
    start = dt.datetime.now(dt.UTC) - dt.timedelta(days=1)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(start)
        .not_valid_after(start + dt.timedelta(days=3))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False
        )
        .add_extension(
            x509.KeyUsage(
                digital_signature=True,
                key_cert_sign=True,
                crl_sign=True,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    path.write_bytes(
        made.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return path


@pytest.fixture
def tls_server(certificate: Path) -> Iterator[Server]:
    """The same server behind TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server = Server()
    server.socket = context.wrap_socket(
        server.socket, server_side=True, do_handshake_on_connect=False
    )
    with running(server) as started:
        yield started


def test_https(tls_server: Server, certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's authorities vouch for https servers; connections are kept there, too."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    url = f"https://127.0.0.1:{tls_server.server_port}"
    with HttpClient(120, environ={}) as client:
        for _ in range(3):
            assert client.request("GET", f"{url}/size/200000").body == b"x" * 200000
        with client.stream(f"{url}/size/300000") as stream:
            assert sum(map(len, stream)) == 300000
        assert len(tls_server.handler.connections) == 2  # type: ignore[attr-defined]
        plain = f"http://127.0.0.1:{tls_server.server_port}/x"
        with pytest.raises(NetworkError) as error:
            client.request("GET", f"{url}/redirect/{plain}")
        assert str(error.value) == f"{url}/redirect/{plain}: redirects from https to http"


def test_https_by_redirect(
    server: Server, tls_server: Server, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A redirect may lead from http to https."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    target = f"https://127.0.0.1:{tls_server.server_port}/size/3"
    with HttpClient(120, environ={}) as client:
        assert client.request("GET", f"{server.url}/redirect/{target}").url == target


def test_unknown_authority(tls_server: Server) -> None:
    """A server whose certificate nobody vouches for is refused."""
    url = f"https://127.0.0.1:{tls_server.server_port}/"
    with HttpClient(120, environ={}) as client, pytest.raises(NetworkError) as error:
        client.request("GET", url)
    assert str(error.value).startswith(f"{url}: self")


@pytest.mark.usefixtures("localhost")
def test_wrong_host(tls_server: Server, certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A certificate for another host is refused."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    url = f"https://localhost:{tls_server.server_port}/"
    with HttpClient(120, environ={}) as client, pytest.raises(NetworkError) as error:
        client.request("GET", url)
    assert str(error.value) == (
        f"{url}: hostname mismatch, certificate is not valid for 'localhost'."
    )


def test_tunnel(
    server: Server, tls_server: Server, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a proxy for https, requests go through a tunnel, which is kept."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    environ = {"HTTPS_PROXY": f"http://me:pw@127.0.0.1:{server.server_port}"}
    with HttpClient(120, environ=environ) as client:
        for _ in range(2):
            url = f"https://127.0.0.1:{tls_server.server_port}/echo"
            assert client.request("GET", url).body.startswith(b"GET /echo HTTP/1.1\n")
    assert server.handler.connections == [  # type: ignore[attr-defined]
        f"CONNECT 127.0.0.1:{tls_server.server_port} HTTP/1.1",
        "Basic bWU6cHc=",
    ]


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (b"HTTP/1.1 403 No\r\n\r\n", "is behind a proxy that answers 403"),
        (b"nonsense\r\n\r\n", "is behind a proxy that answers nothing"),
        (b"HTTP/1.1 200 OK\r\n", "is behind a proxy that gives no tunnel"),
        (b"x" * 20000, "is behind a proxy that gives no tunnel"),
    ],
)
def test_no_tunnel(reply: bytes, reason: str) -> None:
    """A proxy that gives no tunnel is an error of the server behind it."""
    with (
        scripted(answer(reply)) as proxy,
        HttpClient(120, environ={"https_proxy": proxy}) as client,
        pytest.raises(NetworkError) as error,
    ):
        client.request("GET", "https://a.invalid/x")
    assert str(error.value) == f"https://a.invalid/x: {reason}"
