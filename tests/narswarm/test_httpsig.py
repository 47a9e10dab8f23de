# SPDX-License-Identifier: GPL-3.0-or-later
"""Who sent a request."""

from __future__ import annotations

import base64
import hashlib
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1
from cryptography.hazmat.primitives.asymmetric.ec import generate_private_key as ec_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from narswarm.errors import SettingsError
from narswarm.httpsig import (
    PublisherKey,
    SignatureError,
    content_digest,
    sign_request,
    signature_base,
    verify_request,
)

KEY = PublisherKey(Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
KEYID = "A6EHv/POEL4dcN0Y50vAmWfk1jCbpQ1fHdyGZBJVMbg="
BODY = b'{"hello": "world"}'
DIGEST = "sha-256=:X48E9qOokqqrvdts8nOJRJN3OWDUoyWxBf7kbu9DBPE=:"
PATH = "/v1/nar/x"
NOW = 1_700_000_000
BASE = (
    b'"@method": PUT\n'
    b'"@path": /v1/nar/x\n'
    b'"content-digest": ' + DIGEST.encode() + b"\n"
    b'"@signature-params": ("@method" "@path" "content-digest");created=1700000000'
    b';keyid="' + KEYID.encode() + b'";alg="ed25519"'
)


def _headers(**changes: str) -> dict[str, str]:
    headers = sign_request(KEY, "PUT", PATH, BODY, NOW)
    return headers | {name.replace("_", "-"): value for name, value in changes.items()}


def _signed(parameters: str, components: tuple[str, ...], label: str = "sig1") -> dict[str, str]:
    """Headers as another implementation may write them."""
    base = signature_base("PUT", PATH, DIGEST, components, parameters)
    signature = base64.b64encode(KEY.sign(base)).decode()
    return {
        "content-digest": DIGEST,
        "signature-input": f"{label}={parameters}",
        "signature": f"{label}=:{signature}:",
    }


def test_content_digest() -> None:
    """The digest is that of RFC 9530's own example."""
    assert content_digest(BODY) == DIGEST


def test_headers_and_base() -> None:
    """What is signed is, line by line, the signature base of RFC 9421."""
    headers = _headers()
    assert headers["Content-Digest"] == DIGEST
    assert headers["Signature-Input"] == (
        'sig1=("@method" "@path" "content-digest");created=1700000000;'
        f'keyid="{KEYID}";alg="ed25519"'
    )
    signature = base64.b64decode(headers["Signature"].removeprefix("sig1=:").removesuffix(":"))
    Ed25519PublicKey.from_public_bytes(base64.b64decode(KEYID)).verify(signature, BASE)
    assert verify_request("PUT", PATH, headers, BODY, NOW) == KEY.public


def test_openssl_verifies(tmp_path: Path) -> None:
    """Any Ed25519 verifies the signature over the base."""
    private = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    pem = private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    signature = base64.b64decode(_headers()["Signature"][6:-1])
    for name, data in (("key", pem), ("signature", signature), ("base", BASE)):
        (tmp_path / name).write_bytes(data)
    arguments = "pkeyutl -verify -pubin -inkey key -rawin -in base -sigfile signature"
    subprocess.run(["openssl", *arguments.split()], cwd=tmp_path, check=True, capture_output=True)


@pytest.mark.parametrize(
    "headers",
    [
        _headers(),
        {name.lower(): value for name, value in _headers().items()},
        list(_headers().items()),
        [("Host", "a"), ("Host", "b"), *_headers().items()],
        _signed(
            f'("content-digest" "@path" "@method");keyid="{KEYID}";created={NOW}',
            ("content-digest", "@path", "@method"),
            "other-label",
        ),
        _signed(
            f'("@method" "@path" "content-digest");created={NOW};keyid="{KEYID}";nonce="a b"',
            ("@method", "@path", "content-digest"),
        ),
    ],
)
def test_accepted(headers: dict[str, str] | list[tuple[str, str]]) -> None:
    """Names in any case, components and parameters in any order, other headers beside."""
    assert verify_request("PUT", PATH, headers, BODY, NOW) == KEY.public


@pytest.mark.parametrize(
    ("age", "reason"),
    [
        (-61, "was created too long ago or in the future"),
        (-60, None),
        (0, None),
        (300, None),
        (301, "was created too long ago or in the future"),
    ],
)
def test_replay_window(age: int, reason: str | None) -> None:
    """A signature holds for five minutes, and clocks may differ by one."""
    if reason is None:
        assert verify_request("PUT", PATH, _headers(), BODY, NOW + age) == KEY.public
    else:
        with pytest.raises(SignatureError) as caught:
            verify_request("PUT", PATH, _headers(), BODY, NOW + age)
        assert str(caught.value) == f"Signature-Input: {reason}"


@pytest.mark.parametrize(
    ("method", "path", "body", "message"),
    [
        ("POST", PATH, BODY, "Signature: does not verify"),
        ("put", PATH, BODY, "Signature: does not verify"),
        ("PUT", "/v1/nar/y", BODY, "Signature: does not verify"),
        ("PUT", PATH, BODY + b"\n", "Content-Digest: is not the SHA-256 of the body"),
        ("PUT", PATH, b"", "Content-Digest: is not the SHA-256 of the body"),
    ],
)
def test_other_requests(method: str, path: str, body: bytes, message: str) -> None:
    """A signature holds for one method, path and body."""
    with pytest.raises(SignatureError) as caught:
        verify_request(method, path, _headers(), body, NOW)
    assert str(caught.value) == message


INPUT = _headers()["Signature-Input"]
OTHER_KEY = base64.b64encode(PublisherKey.generate().public).decode()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"Content_Digest": content_digest(b"")}, "Content-Digest: is not the SHA-256 of the body"),
        ({"Content_Digest": DIGEST.upper()}, "Content-Digest: is not the SHA-256 of the body"),
        ({"Signature_Input": INPUT.replace(KEYID, OTHER_KEY)}, "Signature: does not verify"),
        ({"Signature_Input": INPUT.replace("=17", "=16")}, "was created"),
        ({"Signature_Input": INPUT.replace(f"{NOW}", f"{NOW + 1}")}, "Signature: does not verify"),
        ({"Signature_Input": INPUT.replace('"@path" ', "")}, "must cover"),
        ({"Signature_Input": INPUT.replace('"@path"', '"@path" "@path"')}, "must cover"),
        ({"Signature_Input": INPUT.replace('"@path"', '"@query"')}, "must cover"),
        ({"Signature_Input": INPUT.replace('"@path" ', '"@path"  ')}, "must cover"),
        ({"Signature_Input": INPUT.replace("ed25519", "hmac-sha256")}, "algorithm"),
        ({"Signature_Input": INPUT.replace(KEYID, KEYID[:-4])}, "isn't 32 bytes"),
        ({"Signature_Input": INPUT.replace(KEYID, "")}, "isn't 32 bytes"),
        ({"Signature_Input": INPUT.replace(f'keyid="{KEYID}"', "keyid=1")}, "isn't 32 bytes"),
        ({"Signature_Input": INPUT.replace(f";created={NOW}", "")}, "when it was created"),
        ({"Signature_Input": INPUT.replace(f"={NOW}", f'="{NOW}"')}, "when it was created"),
        ({"Signature_Input": f"{INPUT};created=1"}, "malformed or unknown parameters"),
        ({"Signature_Input": f"{INPUT};expires=1"}, "malformed or unknown parameters"),
        ({"Signature_Input": f"{INPUT} "}, "malformed or unknown parameters"),
        ({"Signature_Input": f"{INPUT},{INPUT}"}, "must cover"),
        ({"Signature_Input": ""}, "malformed or has several"),
        ({"Signature_Input": "sig1=()"}, "malformed or has several"),
        ({"Signature": "sig2" + _headers()["Signature"][4:]}, "another label"),
        ({"Signature": ""}, "isn't 64 bytes"),
        ({"Signature": "sig1=:AAAA:"}, "isn't 64 bytes"),
        ({"Signature": f"sig1=:{'A' * 85}B==:"}, "isn't 64 bytes"),
        ({"Signature": f"sig1=:{'A' * 86}==:"}, "Signature: does not verify"),
        ({"Signature": "s" * 1025}, "Signature: is too long"),
    ],
)
def test_refused(changes: dict[str, str], message: str) -> None:
    """Whatever is altered, missing or ambiguous in the headers, the request has no sender."""
    with pytest.raises(SignatureError) as caught:
        verify_request("PUT", PATH, _headers(**changes), BODY, NOW)
    assert message in str(caught.value)


@pytest.mark.parametrize("name", ["Content-Digest", "Signature-Input", "Signature"])
def test_missing_and_repeated_headers(name: str) -> None:
    """Each of the three headers is there once: of two, somebody could check the other."""
    headers = _headers()
    value = headers.pop(name)
    with pytest.raises(SignatureError) as caught:
        verify_request("PUT", PATH, headers, BODY, NOW)
    assert str(caught.value) == f"{name}: is missing"
    pairs = [*headers.items(), (name, value), (name.lower(), value)]
    with pytest.raises(SignatureError) as caught:
        verify_request("PUT", PATH, pairs, BODY, NOW)
    assert str(caught.value) == f"{name}: was sent twice"


@given(st.text(max_size=60), st.text(max_size=60))
def test_any_header_is_judged(signature_input: str, signature: str) -> None:
    """Nothing but a SignatureError comes of headers that strangers wrote."""
    headers = _headers(Signature_Input=f"sig1=({signature_input}", Signature=signature)
    with pytest.raises(SignatureError):
        verify_request("PUT", PATH, headers, BODY, NOW)


@given(st.binary(max_size=100), st.integers(0, 2**33))
def test_round_trip(body: bytes, now: int) -> None:
    """What is signed verifies."""
    headers = sign_request(KEY, "PUT", PATH, body, now)
    assert verify_request("PUT", PATH, headers, body, now) == KEY.public


def test_key_file(tmp_path: Path) -> None:
    """A key is made once, privately, and is one that other programs read."""
    path = tmp_path / "publisher.pem"
    key = PublisherKey.load_or_create(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert PublisherKey.load_or_create(path).public == key.public
    assert [entry.name for entry in tmp_path.iterdir()] == ["publisher.pem"]
    private = serialization.load_pem_private_key(path.read_bytes(), None)
    assert isinstance(private, Ed25519PrivateKey)
    assert PublisherKey(private).public == key.public


def test_losing_the_race_for_a_key_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two processes that find no file, both end with the key of the first."""
    path = tmp_path / "publisher.pem"
    first = PublisherKey.load_or_create(path)
    monkeypatch.setattr(Path, "exists", lambda _: False)
    assert PublisherKey.load_or_create(path).public == first.public


def _ec_pem() -> bytes:
    return ec_key(SECP256R1()).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


@pytest.mark.parametrize(
    ("content", "mode", "reason"),
    [
        (lambda: b"", 0o600, "is not a private key in PEM"),
        (lambda: b"x" * 10_000, 0o600, "is not a private key in PEM"),
        (_ec_pem, 0o600, "is not an Ed25519 key"),
        (_ec_pem, 0o640, "is a private key that others may read; chmod 600 it"),
    ],
)
def test_bad_key_files(
    tmp_path: Path, content: Callable[[], bytes], mode: int, reason: str
) -> None:
    """A file that isn't a private Ed25519 key is left alone and refused."""
    path = tmp_path / "publisher.pem"
    path.write_bytes(content())
    path.chmod(mode)
    before = hashlib.sha256(path.read_bytes()).digest()
    with pytest.raises(SettingsError) as caught:
        PublisherKey.load_or_create(path)
    assert str(caught.value) == f"{path}: {reason}"
    assert hashlib.sha256(path.read_bytes()).digest() == before


def test_key_file_that_cannot_be_made(tmp_path: Path) -> None:
    """A directory that isn't there is said."""
    path = tmp_path / "missing" / "publisher.pem"
    with pytest.raises(SettingsError) as caught:
        PublisherKey.load_or_create(path)
    assert str(caught.value) == f"{path}: No such file or directory"
