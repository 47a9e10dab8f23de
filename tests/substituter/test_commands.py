# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of substituter.commands, on the narinfos that a real Guix made and judged."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from narswarm import cli, narinfo
from substituter import commands
from tests.substituter.conftest import Item, Site

FIXTURES = Path(__file__).parents[1] / "fixtures" / "guix"
ACL = FIXTURES / "keys" / "acl"
APP = FIXTURES / "narinfo-none" / "5qz5dk6nl8x0ks3cxcjdb8h97phh4b5f.narinfo"
PUBLISHED = sorted(FIXTURES.glob("narinfo-*/*.narinfo"))
BAD = sorted(path.name for path in (FIXTURES / "bad").glob("*.narinfo"))
WORDS = {
    "valid": "valid-signature",
    "unauthorized key": "unauthorized-key",
    "hash mismatch": "hash-mismatch",
    "invalid signature": "invalid-signature",
    "corrupt signature": "corrupt-signature",
    "not signed": "unsigned",
}


def judgements() -> dict[str, str]:
    """Verdicts by file, as the README of the fixtures tells what Guix said."""
    text = (FIXTURES / "README.md").read_text()
    rows = re.findall(r"^\| ([a-z ]+) \| (`.*) \|$", text, re.MULTILINE)
    return {
        path.stem: WORDS[words]
        for words, patterns in rows
        if words in WORDS
        for pattern in re.findall(r"`([^`]+)`", patterns)
        for path in (FIXTURES / "bad").glob(f"{pattern}.narinfo")
    }


class Run:
    """One run of the program by a person."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: object) -> tuple[int, str, str]:
        """Exit code, standard output and standard error."""
        with pytest.raises(SystemExit) as caught:
            cli.run(commands.group, [str(each) for each in arguments], program="substituter")
        out, err = self._capsys.readouterr()
        assert isinstance(caught.value.code, int)
        return caught.value.code, out, err

    def facts(self, source: object, acl: Path = ACL) -> dict[str, Any]:
        """What is told of a narinfo, for programs."""
        code, out, err = self("narinfo", "--json", "--acl", acl, source)
        assert (code, err) == (0, "")
        return dict(json.loads(out))


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the program."""
    return Run(capsys)


def test_the_readme_judges_every_doctored_narinfo() -> None:
    """No file is left out of the tests below."""
    assert sorted(f"{name}.narinfo" for name in judgements()) == BAD
    assert len(BAD) == 22


@pytest.mark.parametrize("name", BAD)
def test_doctored_narinfos_get_guixs_verdict(run: Run, name: str) -> None:
    """The verdict is Guix's, whatever else is wrong; the exit code is 0 all the same."""
    verdict = judgements()[name.removesuffix(".narinfo")]
    assert run.facts(FIXTURES / "bad" / name)["verdict"] == verdict
    code, out, err = run("narinfo", FIXTURES / "bad" / name, "--acl", ACL)
    assert (code, out.partition("\n")[0], err) == (0, f"verdict      {verdict}", "")


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: "/".join(path.parts[-2:]))
def test_published_narinfos_are_valid(run: Run, path: Path) -> None:
    """What `guix publish` signed with an authorised key is; with another ACL it isn't."""
    facts = run.facts(path)
    assert facts["verdict"] == "valid-signature"
    assert facts["store_path"].startswith(f"/gnu/store/{path.stem}-")
    assert "error" not in facts
    assert facts["sources"]


def test_without_the_key_a_narinfo_is_unauthorized(run: Run, tmp_path: Path) -> None:
    """The ACL that is named counts, and no other."""
    acl = tmp_path / "acl"
    acl.write_bytes(b"(acl)")
    assert run.facts(APP, acl)["verdict"] == "unauthorized-key"


def test_programs_get_all_fields(run: Run) -> None:
    """Every field of a narinfo is there, typed, and the key by its point."""
    parsed = narinfo.parse(APP.read_bytes())
    facts = run.facts(APP)
    key = facts.pop("key")
    assert f"(q #{key}#)".encode() in ACL.read_bytes().replace(b"\n", b" ")
    assert facts == {
        "verdict": "valid-signature",
        "store_path": parsed.store_path,
        "nar_hash": re.findall("NarHash: (.*)", APP.read_text())[0],
        "nar_size": 920,
        "references": list(parsed.references),
        "deriver": "nd4akxxy7p862fv06lclm1pais6rd92j-lab-app.drv",
        "sources": [
            {
                "url": "nar/5qz5dk6nl8x0ks3cxcjdb8h97phh4b5f-lab-app",
                "compression": "none",
                "file_size": 920,
            }
        ],
    }


def test_people_get_a_line_for_each_field(run: Run) -> None:
    """Lists go on in the same column; sources have URL, compression and size."""
    path = FIXTURES / "narinfo-cached" / APP.name
    facts = run.facts(path)
    code, out, err = run("narinfo", path, "--acl", ACL)
    assert (code, err) == (0, "")
    lines = [
        "verdict      valid-signature",
        f"store path   {facts['store_path']}",
        f"nar hash     {facts['nar_hash']}",
        "nar size     920",
        *(
            f"{'' if number else 'references':<12} {reference}"
            for number, reference in enumerate(facts["references"])
        ),
        f"deriver      {facts['deriver']}",
        *(
            f"{'' if number else 'sources':<12} {' '.join(str(value) for value in source.values())}"
            for number, source in enumerate(facts["sources"])
        ),
        f"key          {facts['key']}",
    ]
    assert out == "".join(f"{line}\n" for line in lines)


def test_a_url_is_fetched(run: Run, site: Site, make_item: Callable[..., Item]) -> None:
    """Relative URLs in it are those of its server; a query of its own URL isn't part of that."""
    site.bodies["/sub/x.narinfo"] = site.bodies["/sub/x.narinfo?a=/b"] = APP.read_bytes()
    for name in ("x.narinfo", "x.narinfo?a=/b"):
        facts = run.facts(f"{site.url}/sub/{name}")
        assert facts["verdict"] == "valid-signature"
        assert facts["sources"][0]["url"] == f"{site.url}/sub/nar/{facts['store_path'][11:]}"
    item = make_item("a")
    site.offer(item, "zstd")
    assert run.facts(f"{site.url}/{item.hash_part}.narinfo")["verdict"] == "unauthorized-key"


def test_a_server_without_it_is_told(run: Run, site: Site) -> None:
    """Another status than 200 is a narinfo that wasn't found."""
    url = f"{site.url}/x.narinfo"
    expected = f"substituter: {url}: the server answered 404\n"
    assert run("narinfo", url, "--acl", ACL) == (5, "", expected)


def test_an_answer_that_is_too_long_is_not_read(run: Run, site: Site) -> None:
    """A server can't fill the memory, with a length or without."""

    def endless(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.close_connection = True
        try:
            while True:
                handler.wfile.write(bytes(1 << 16))
        except OSError:
            return

    def announce(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(narinfo.MAX_BYTES + 1))
        handler.end_headers()
        handler.close_connection = True

    site.bodies["/long"] = announce
    site.bodies["/endless"] = endless
    for name in ("long", "endless"):
        url = f"{site.url}/{name}"
        expected = f"substituter: {url}: is longer than {narinfo.MAX_BYTES} bytes\n"
        assert run("narinfo", url, "--acl", ACL) == (8, "", expected)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://127.0.0.1:9/x", "connection refused"),
        ("http://[::1/x", "is not a URL"),
        ("http://", "is not an http or https URL"),
    ],
)
def test_a_server_that_cannot_be_asked_is_told(run: Run, url: str, reason: str) -> None:
    """The exit code is that of the network."""
    assert run("narinfo", url, "--acl", ACL) == (8, "", f"substituter: {url}: {reason}\n")


@pytest.mark.parametrize(
    ("size", "verdict"), [(narinfo.MAX_BYTES, True), (narinfo.MAX_BYTES + 1, False)]
)
def test_a_file_that_is_too_long_is_none(
    run: Run, tmp_path: Path, size: int, verdict: bool
) -> None:
    """One of the longest size is judged; one byte more, and there is nothing to judge."""
    text = APP.read_bytes()
    file = tmp_path / "x.narinfo"
    file.write_bytes(text + b"\n" + b"#" * (size - len(text) - 1))
    code, out, err = run("narinfo", file, "--acl", ACL)
    if verdict:
        assert (code, out.partition("\n")[0], err) == (0, "verdict      valid-signature", "")
    else:
        expected = f"substituter: {file}: is longer than {narinfo.MAX_BYTES} bytes\n"
        assert (code, out, err) == (4, "", expected)


def test_an_endless_file_ends(run: Run) -> None:
    """No more is read than may be."""
    expected = f"substituter: /dev/zero: is longer than {narinfo.MAX_BYTES} bytes\n"
    assert run("narinfo", "/dev/zero", "--acl", ACL) == (4, "", expected)


def test_what_cannot_be_read_is_told(run: Run, tmp_path: Path) -> None:
    """A missing file, a directory, a missing ACL: one line each, and the same exit code."""
    missing = tmp_path / "missing"
    for arguments, subject, reason in (
        ((missing, "--acl", ACL), missing, "No such file or directory"),
        ((tmp_path, "--acl", ACL), tmp_path, "Is a directory"),
        ((APP, "--acl", missing), missing, "no such file or directory"),
    ):
        expected = f"substituter: {subject}: {reason}\n"
        assert run("narinfo", *arguments) == (5, "", expected)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"\xff", "is not UTF-8 at byte 0"),
        (b"no field\n", "has a line without a colon: 'no field'"),
        (b"!\n", "has a line that is no field: '!'"),
    ],
)
def test_what_is_no_narinfo_has_no_verdict(
    run: Run, tmp_path: Path, text: bytes, reason: str
) -> None:
    """Guix would give up on it; the exit code is that of invalid bytes."""
    file = tmp_path / "x.narinfo"
    file.write_bytes(text)
    assert run("narinfo", file, "--acl", ACL) == (4, "", f"substituter: {file}: {reason}\n")


def test_a_verdict_needs_no_fields_that_can_be_read(run: Run, tmp_path: Path) -> None:
    """A narinfo that lacks something is judged, and what it lacks is told."""
    file = tmp_path / "x.narinfo"
    file.write_bytes(b"StorePath: /gnu/store/x\n")
    assert run.facts(file) == {
        "verdict": "unsigned",
        "error": "has no NarHash above its signature",
    }


@pytest.mark.parametrize("field", ["StorePath", "NarSize", "Deriver", "References"])
def test_values_do_not_steer_the_terminal(run: Run, tmp_path: Path, field: str) -> None:
    """Control characters are spelled out, in errors and wherever a value comes from."""
    text = APP.read_text()
    evil = "\x1b]0;evil\x07\u202e"
    file = tmp_path / "x.narinfo"
    file.write_text(re.sub(f"^{field}: .*$", f"{field}: {evil}", text, flags=re.MULTILINE))
    code, out, err = run("narinfo", file, "--acl", ACL)
    assert code == 0
    assert (out + err).replace("\n", "").isprintable()
    assert out.startswith("verdict      hash-mismatch\nerror        ")
