# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of `narswarm.narinfo` on files of a real Guix and on doctored copies of them."""

from __future__ import annotations

import base64
import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from narswarm import acl, gcrypt, narinfo, sexp
from narswarm.acl import Acl
from narswarm.errors import InvalidInputError
from narswarm.gcrypt import KeyPair
from narswarm.narinfo import Source, Verdict
from narswarm.sexp import Sexp

FIXTURES = Path(__file__).parents[1] / "fixtures/guix"
TRUSTED = Acl.load(FIXTURES / "keys/acl")
KEY = KeyPair(
    (FIXTURES / "keys/signing-key.pub").read_bytes(),
    (FIXTURES / "keys/TEST-ONLY-signing-key.sec").read_bytes(),
)
GOOD = sorted(FIXTURES.glob("narinfo-*/*.narinfo"))
APP = (FIXTURES / "narinfo-none/5qz5dk6nl8x0ks3cxcjdb8h97phh4b5f.narinfo").read_bytes()
PATH = "/gnu/store/5qz5dk6nl8x0ks3cxcjdb8h97phh4b5f-lab-app"
TEXT = "/gnu/store/2g00k9rk4f49769ps7bblcbvy1byaz19-lab-text"
HASH = hashlib.sha256(b"nar").digest()

VERDICTS = {
    "VALID-extra-unsigned-lines": "valid-signature",
    "VALID-no-url": "valid-signature",
    "VALID-other-host-in-signature": "valid-signature",
    "VALID-other-url": "valid-signature",
    "bad-s-value": "invalid-signature",
    "crlf": "unsigned",
    "duplicate-field-above": "hash-mismatch",
    "duplicate-signed-fields-below": "valid-signature",
    "not-an-sexp": "unsigned",
    "signature-first": "unsigned",
    "signature-garbage-base64": "unsigned",
    "signature-of-other-item": "hash-mismatch",
    "signature-two-fields": "unsigned",
    "signature-version-2": "unsigned",
    "signature-without-key": "corrupt-signature",
    "storepath-below": "unsigned",
    "tampered-narhash": "hash-mismatch",
    "tampered-narsize": "hash-mismatch",
    "tampered-references": "hash-mismatch",
    "tampered-storepath": "hash-mismatch",
    "unauthorized-key": "unauthorized-key",
    "unsigned": "unsigned",
}


def bad(name: str) -> bytes:
    """Give a doctored narinfo."""
    return (FIXTURES / f"bad/{name}.narinfo").read_bytes()


@pytest.mark.parametrize("path", GOOD, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_good_narinfos(path: Path) -> None:
    """Every narinfo of `guix publish` is valid, in all variants, and nobody's for another ACL."""
    raw = path.read_bytes()
    parsed = narinfo.parse(raw, "http://a.example")
    assert parsed.hash_part == path.stem
    assert narinfo.verdict(raw, TRUSTED) == narinfo.verdict(parsed, TRUSTED) == "valid-signature"
    assert narinfo.verdict(raw, Acl()) is Verdict.UNAUTHORIZED_KEY
    nar = next((FIXTURES / "nar").glob(f"{path.stem}-*.nar"), None)
    if nar is not None:
        assert parsed.nar_hash == hashlib.sha256(nar.read_bytes()).digest()
        assert parsed.nar_size == nar.stat().st_size


def test_all_doctored_files_are_judged() -> None:
    """The table of verdicts has every doctored narinfo."""
    assert {path.stem for path in FIXTURES.glob("bad/*.narinfo")} == set(VERDICTS)


@pytest.mark.parametrize(("name", "expected"), VERDICTS.items())
def test_doctored_narinfos(name: str, expected: str) -> None:
    """Doctored narinfos get the verdict that Guix gives."""
    assert narinfo.verdict(bad(name), TRUSTED) == expected


def test_every_changed_byte() -> None:
    """No byte above the signature can be changed without losing the signature."""
    end = APP.index(b"Signature:")
    assert end == 339
    for position in range(end):
        changed = APP[:position] + bytes([APP[position] ^ 1]) + APP[position + 1 :]
        try:
            assert narinfo.verdict(changed, TRUSTED) in ("hash-mismatch", "unsigned")
        except InvalidInputError:
            continue


def test_fields() -> None:
    """All fields are read; names stay base names and URLs become absolute."""
    parsed = narinfo.parse(APP, "http://a.example:8080/")
    assert parsed.store_path == PATH
    assert parsed.references == (
        "29njd8lb2x08jbvrfljsrwcqw7fvcdff-lab-dep2",
        "5qz5dk6nl8x0ks3cxcjdb8h97phh4b5f-lab-app",
        "csm6b5q3m03yb93k7pmbgk8253s7y55q-lab-busybox",
    )
    assert parsed.deriver == "nd4akxxy7p862fv06lclm1pais6rd92j-lab-app.drv"
    assert parsed.nar_size == 920
    assert parsed.sources == (
        Source("http://a.example:8080/nar/5qz5dk6nl8x0ks3cxcjdb8h97phh4b5f-lab-app", "none", 920),
    )
    assert parsed.raw == APP
    assert parsed.signed == APP[: APP.index(b"Signature:")]
    assert parsed.signature is not None
    assert parsed.signature.startswith(b"(signature \n (data \n")


def test_item_without_references_and_deriver() -> None:
    """Empty References are none, and a missing Deriver is None."""
    raw = (FIXTURES / f"narinfo-none/{TEXT[11:43]}.narinfo").read_bytes()
    assert b"\nReferences: \n" in raw
    parsed = narinfo.parse(raw)
    assert parsed.references == ()
    assert parsed.deriver is None
    assert parsed.sources == (Source(f"nar/{TEXT[11:]}", "none", 128),)


def test_several_sources() -> None:
    """Each URL goes with the lines that follow it, whether or not it has a FileSize."""
    name = "5qz5dk6nl8x0ks3cxcjdb8h97phh4b5f"
    cached = narinfo.parse((FIXTURES / f"narinfo-cached/{name}.narinfo").read_bytes())
    assert [source.compression for source in cached.sources] == ["zstd", "lzip", "none"]
    assert cached.sources[2].file_size == 920
    multi = narinfo.parse((FIXTURES / f"narinfo-multi/{name}.narinfo").read_bytes())
    assert {source.compression: source.file_size for source in multi.sources} == {
        "lzip": None,
        "zstd": None,
    }


def test_unsigned_fields_do_not_count() -> None:
    """What stands below the signature can't change what is signed, only where to fetch."""
    below = narinfo.parse(bad("duplicate-signed-fields-below"))
    assert below.nar_hash == narinfo.parse(APP).nar_hash
    assert below.references == narinfo.parse(APP).references
    assert narinfo.parse(bad("VALID-no-url")).sources == ()
    assert narinfo.parse(bad("VALID-other-url")).sources[0].url.startswith("http://mirror.example/")


def test_first_occurrence_counts() -> None:
    """Of two fields above the signature the first one counts, as in Guix."""
    parsed = narinfo.parse(bad("duplicate-field-above"))
    assert parsed.nar_hash == narinfo.parse(APP).nar_hash


def unsigned(**changes: str | None) -> bytes:
    """Write a narinfo with some fields replaced or left out."""
    fields: dict[str, str | None] = {
        "StorePath": PATH,
        "NarHash": "sha256:1m6xdrcmf2ajhxi0bd5llp5fxcgdw425hhz7b19j5xh646n73n8g",
        "NarSize": "920",
        "References": "",
        **changes,
    }
    return "".join(
        f"{key}: {value}\n" for key, value in fields.items() if value is not None
    ).encode()


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "narinfo: has no StorePath above its signature"),
        (unsigned(StorePath=None), "narinfo: has no StorePath above its signature"),
        (unsigned(NarHash=None), "narinfo: has no NarHash above its signature"),
        (unsigned(NarSize=None), "narinfo: has no NarSize above its signature"),
        (unsigned(References=None), "narinfo: has no References above its signature"),
        (b"Signature: 1;h;\n" + unsigned(), "narinfo: has no StorePath above its signature"),
        (unsigned(StorePath=PATH[11:]), f"{PATH[11:]}: is not in /gnu/store"),
        (unsigned(StorePath=f"/nix{PATH[4:]}"), f"/nix{PATH[4:]}: is not in /gnu/store"),
        (unsigned(StorePath=f"{PATH}/x"), f"{PATH}/x: is not the name of a store item"),
        (unsigned(NarHash="md5:00"), "md5:00: is not a sha256 hash"),
        (unsigned(NarSize="-1"), f"{PATH}: has a NarSize that is not a number of bytes"),
        (unsigned(NarSize=""), f"{PATH}: has a NarSize that is not a number of bytes"),
        (unsigned(NarSize="٣"), f"{PATH}: has a NarSize that is not a number of bytes"),
        (unsigned(NarSize=str(1 << 63)), f"{PATH}: has a NarSize that is not a number of bytes"),
        (unsigned(References="../../etc"), "../../etc: is not the name of a store item"),
        (unsigned(References=TEXT), f"{PATH}: refers to {TEXT}, which is not a base name"),
        (unsigned(References=f"{PATH[11:]} " * 20_001), f"{PATH}: has more than 20000 references"),
        (unsigned(Deriver="x"), "x: is not the name of a store item"),
        (unsigned() + b"nonsense\n", "narinfo: has a line without a colon: 'nonsense'"),
        (b" " + unsigned(), f"narinfo: has a line that is no field: ' StorePath: {PATH}'"),
        (b"+ x\n", "narinfo: has a line that is no field: '+ x'"),
        (unsigned() + b"\xff", f"narinfo: is not UTF-8 at byte {len(unsigned())}"),
        (unsigned() + b"X" * (1 << 20), "narinfo: is longer than 1048576 bytes"),
    ],
)
def test_refusals(raw: bytes, message: str) -> None:
    """A narinfo that can't be used says why."""
    with pytest.raises(InvalidInputError) as error:
        narinfo.parse(raw)
    assert str(error.value) == message


def test_largest_size() -> None:
    """NarSize goes up to what fits a signed 64-bit number."""
    assert narinfo.parse(unsigned(NarSize=str((1 << 63) - 1))).nar_size == (1 << 63) - 1


def test_recutils_lines() -> None:
    """Comments, continued lines, leading blank lines and the end of a record are Guix's."""
    raw = b"\n\n# comment\n" + unsigned(Note="a") + b"+ b\n+c\n\nDeriver: x\n"
    parsed = narinfo.parse(raw)
    assert parsed.deriver is None
    assert parsed.signature is None
    assert parsed.signed == raw
    assert narinfo.verdict(raw, TRUSTED) is Verdict.UNSIGNED


def test_signature_after_the_record() -> None:
    """A signature below an empty line is outside of the record, so there is none."""
    assert narinfo.verdict(APP.replace(b"Signature:", b"\nSignature:"), TRUSTED) == "unsigned"


def test_signature_inside_a_line() -> None:
    """The signed part ends where `Signature:` first occurs, in the middle of a line, too."""
    raw = narinfo.sign(unsigned(), KEY, "h")
    assert narinfo.verdict(raw, TRUSTED) == "valid-signature"
    prefixed = raw.replace(b"Signature:", b"Deriver: Signature:\nSignature:")
    assert narinfo.parse(prefixed).deriver is None
    assert narinfo.verdict(prefixed, TRUSTED) == "hash-mismatch"


@pytest.mark.parametrize(
    ("lines", "sources"),
    [
        ("URL: nar/x\nCompression: gzip\n", (Source("http://a/s/nar/x", "gzip"),)),
        ("URL: nar/x\n", ()),
        ("Compression: none\nURL: nar/x\n", ()),
        ("URL: nar/x\nURL: nar/y\nCompression: none\n", (Source("http://a/s/nar/y", "none"),)),
        ("URL: HTTPS://b/x\nCompression: none\n", (Source("HTTPS://b/x", "none"),)),
        ("URL: //b/x\nCompression: none\n", (Source("http://a/s///b/x", "none"),)),
        ("URL: file:///etc/passwd\nCompression: none\n", ()),
        ("URL: nar/x y\nCompression: none\n", ()),
        ("URL: nar/é\nCompression: none\n", ()),
        ("URL: nar/x\r\nCompression: none\n", ()),
        ("URL: nar/x\nCompression: \n", ()),
        (f"URL: {'x' * 4097}\nCompression: none\n", ()),
        ("URL: x\nCompression: none\nFileSize: -1\n", (Source("http://a/s/x", "none"),)),
        (
            "URL: x\nCompression: none\nFileSize: 1\nFileSize: 2\n",
            (Source("http://a/s/x", "none", 1),),
        ),
    ],
)
def test_sources(lines: str, sources: tuple[Source, ...]) -> None:
    """Only what can be fetched over HTTP and decompressed is a source."""
    assert narinfo.parse(unsigned() + lines.encode(), "http://a/s").sources == sources


def test_number_of_sources() -> None:
    """Sources beyond the limit are left out."""
    lines = b"URL: x\nCompression: none\n" * 33
    assert len(narinfo.parse(unsigned() + lines, "http://a").sources) == 32


def test_compose_and_sign() -> None:
    """Composing and signing the fields of Guix's narinfos gives Guix's bytes."""
    for path in (FIXTURES / "narinfo-none").iterdir():
        raw = path.read_bytes()
        parsed = narinfo.parse(raw)
        text = narinfo.compose(
            parsed.store_path,
            parsed.nar_hash,
            parsed.nar_size,
            parsed.references,
            parsed.deriver,
        )
        signed = narinfo.sign(text, KEY, "A")
        assert narinfo.with_sources(signed, parsed.sources) == raw


def test_compose_from_paths() -> None:
    """References and deriver may be given as paths."""
    text = narinfo.compose(PATH, HASH, 5, [PATH, TEXT], f"{PATH}.drv")
    parsed = narinfo.parse(text)
    assert parsed.references == (PATH[11:], TEXT[11:])
    assert parsed.deriver == f"{PATH[11:]}.drv"
    assert parsed.nar_hash == HASH


def test_rsa_signature() -> None:
    """A narinfo that an RSA key signed is valid where the ACL has the key."""
    key = gcrypt.generate_key(b"(genkey (rsa (nbits 4:1024)))")
    raw = narinfo.sign(unsigned(), key, "old")
    trusted = Acl.parse(acl.render([key.public]))
    assert narinfo.verdict(raw, trusted) is Verdict.VALID_SIGNATURE
    assert narinfo.verdict(raw.replace(b"920", b"921"), trusted) is Verdict.HASH_MISMATCH
    assert narinfo.verdict(raw, TRUSTED) is Verdict.UNAUTHORIZED_KEY


def test_hidden_second_key() -> None:
    """An authorised key in front can't cover for a signature by a stranger's key behind it."""
    stranger = gcrypt.generate_key()
    text = unsigned()
    tree = sexp.parse(gcrypt.sign(hashlib.sha256(text).digest(), stranger))
    assert isinstance(tree, list)
    authorised = sexp.parse(KEY.public)
    foreign = sexp.find(tree, b"public-key")
    data, value = sexp.find(tree, b"data"), sexp.find(tree, b"sig-val")
    assert foreign
    assert data
    assert value
    forgeries: list[list[Sexp]] = [
        [b"signature", authorised, *tree[1:]],
        [b"signature", authorised, [*data, foreign], value],
        [b"signature", [*data, authorised], value, foreign],
        [b"signature", authorised, data, [*value, foreign]],
    ]
    for forged in forgeries:
        signature = base64.b64encode(sexp.advanced(forged))
        raw = text + b"Signature: 1;h;" + signature + b"\n"
        assert narinfo.verdict(raw, TRUSTED) is Verdict.INVALID_SIGNATURE


@pytest.mark.parametrize("host", ["a;b", "a b", "a\n", "é"])
def test_host_names(host: str) -> None:
    """A host name that would break the line is refused."""
    with pytest.raises(InvalidInputError) as error:
        narinfo.sign(unsigned(), KEY, host)
    assert str(error.value) == f"{host}: is not a host name"


@pytest.mark.parametrize("text", [b"StorePath: x", APP])
def test_sign_refusals(text: bytes) -> None:
    """Only whole lines without a signature are signed."""
    with pytest.raises(InvalidInputError) as error:
        narinfo.sign(text, KEY, "h")
    assert str(error.value) == "narinfo: is not whole lines without a signature"


def test_with_sources() -> None:
    """Other sources take the place of all unsigned lines and leave the narinfo valid."""
    sources = (Source("http://b/x.nar.zst", "zstd"), Source("nar/y", "none", 920))
    raw = narinfo.with_sources(bad("VALID-extra-unsigned-lines"), sources)
    assert narinfo.parse(raw).sources == sources
    assert narinfo.verdict(raw, TRUSTED) is Verdict.VALID_SIGNATURE
    assert raw.endswith(
        b"\nURL: http://b/x.nar.zst\nCompression: zstd\n"
        b"URL: nar/y\nCompression: none\nFileSize: 920\n"
    )


@pytest.mark.parametrize(
    ("raw", "source", "message"),
    [
        (unsigned(), Source("x", "none"), "narinfo: has no signature"),
        (APP, Source("x\nURL: y", "none"), "x\nURL: y: is not a URL"),
        (APP, Source("x", "no ne"), "x: is not a URL"),
    ],
)
def test_with_sources_refusals(raw: bytes, source: Source, message: str) -> None:
    """A source that can't stand on its line is refused."""
    with pytest.raises(InvalidInputError) as error:
        narinfo.with_sources(raw, [source])
    assert str(error.value) == message


@given(st.binary(max_size=200), st.integers(0, len(APP)))
def test_any_bytes(junk: bytes, position: int) -> None:
    """Bytes put in anywhere give a narinfo or the one error, and never another signed content."""
    raw = APP[:position] + junk + APP[position:]
    try:
        parsed = narinfo.parse(raw)
        judged = narinfo.verdict(raw, TRUSTED)
    except InvalidInputError:
        return
    assert judged is narinfo.verdict(parsed, TRUSTED)
    if judged is Verdict.VALID_SIGNATURE:
        assert parsed.signed == APP[: APP.index(b"Signature:")]


def test_lazy_loading() -> None:
    """Importing the module loads neither ctypes nor libgcrypt."""
    code = "import sys, narswarm.narinfo; sys.exit('ctypes' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
