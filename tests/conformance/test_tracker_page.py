# SPDX-License-Identifier: GPL-3.0-or-later
"""The tracker's page in a real browser, of the real program: what docs/tracker.md says of it."""

from __future__ import annotations

import hashlib
import http.client
import random
import time
from collections.abc import Iterator
from typing import NamedTuple
from urllib.parse import quote_from_bytes, urlencode

import pytest

from narswarm import base32, bencoding, gcrypt, httpsig, narinfo, sexp
from narswarm.acl import render
from narswarm.httpsig import PublisherKey
from narswarm.merkle import PieceHasher
from narswarm.metainfo import Metainfo, decode_outside
from narswarm.payload import file_name
from tests.browser import Browser, browser
from tests.processes import end, start_tracker

pytestmark = pytest.mark.conformance

DEADLINE = 120
_NAMES = (
    "bash-5.1.16 binutils-2.41 coreutils-9.1 emacs-29.4 emacs-magit-3.3.0 ffmpeg-6.1.1 "
    "findutils-4.9.0 fontconfig-2.14.0 gcc-11.4.0 gcc-11.4.0-lib gcc-toolchain-13.2.0 "
    "gdb-14.2 gimp-2.10.38 git-2.46.0 glib-2.78.0 glibc-2.35 glibc-2.35-static "
    "glibc-locales-2.35 gnupg-2.4.5 gnutls-3.8.3 go-1.22.5 graphviz-7.0.1 grep-3.8 "
    "guile-3.0.9 gzip-1.12 hello-2.12.1 icecat-115.14.0 inkscape-1.3.2 libreoffice-24.2.5.2 "
    "linux-libre-6.10.6 llvm-17.0.6 mesa-24.0.4 mpv-0.38.0 ncurses-6.2.20210619 "
    "nginx-1.27.0 nss-certs-3.99 openssh-9.8p1 openssl-3.0.8 perl-5.36.0 postgresql-14.13 "
    "python-3.10.7 python-numpy-1.23.2 qtbase-6.6.3 r-minimal-4.4.1 rust-1.79.0 sed-4.8 "
    "tar-1.34 texlive-bin-20230313 vim-9.1.0146 xz-5.4.5 "
)
NAMES = _NAMES.split()


class Item(NamedTuple):
    """A published item."""

    name: str
    path: str
    nar_hash: bytes
    meta: Metainfo


class Site(NamedTuple):
    """A running tracker with items in it."""

    url: str
    items: dict[str, Item]

    def ask(self, method: str, target: str, body: bytes | None = None, **headers: str) -> bytes:
        """One request as a program makes it."""
        connection = http.client.HTTPConnection(self.url.partition("//")[2], timeout=DEADLINE)
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, target, body, named)
            response = connection.getresponse()
            content = response.read()
            assert response.status < 300, content
            return content
        finally:
            connection.close()

    def status(self, target: str) -> tuple[int, str | None]:
        """Status and type of an answer to a program."""
        connection = http.client.HTTPConnection(self.url.partition("//")[2], timeout=DEADLINE)
        try:
            connection.request("GET", target)
            response = connection.getresponse()
            return response.status, response.headers["Content-Type"]
        finally:
            connection.close()

    def publish(self, item: Item, raw: bytes, key: PublisherKey) -> None:
        """Publish an item as a seeder does."""
        target = f"/v1/nar/{base32.encode(item.nar_hash)}"
        body = bencoding.encode({b"narinfo": raw, b"torrent": item.meta.encode()})
        signed = httpsig.sign_request(key, "PUT", target, body, time.time())
        self.ask("PUT", target, body, Content_Type="application/x-bencode", **signed)

    def announce(self, item: Item, port: int, left: int) -> None:
        """Join both swarms of an item."""
        for info_hash in (item.meta.infohash_v2[:20], item.meta.infohash_v1):
            query = f"info_hash={quote_from_bytes(info_hash, safe='')}&peer_id={'p' * 15}{port:05}"
            answer = self.ask("GET", f"/announce?{query}&port={port}&left={left}")
            assert b"failure" not in answer, answer


@pytest.fixture(scope="module", name="site")
def site_fixture(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A tracker to which fifty items were published, with some peers."""
    directory = tmp_path_factory.mktemp("tracker")
    signer, rng = gcrypt.generate_key(), random.Random(1)  # noqa: S311 - the same at each run
    acl = directory / "acl"
    acl.write_bytes(render([sexp.parse(signer.public)]))
    process, (port,) = start_tracker(
        directory, ["127.0.0.1:0"], "--acl", str(acl), NARSWARM_TRACKER_CONTACT="ops@example.org"
    )
    try:
        site = Site(f"http://127.0.0.1:{port}", {})
        keys = [PublisherKey.generate() for _ in range(3)]
        bases: list[str] = []
        for number, name in enumerate(rng.sample(NAMES, len(NAMES))):
            payload = rng.randbytes(rng.randint(20_000, 400_000))
            nar_hash = hashlib.sha256(payload).digest()
            base = f"{base32.encode(nar_hash[:20])}-{name}"
            hasher = PieceHasher()
            hasher.update(payload)
            meta = Metainfo.of(file_name(nar_hash), hasher.finish())
            item = Item(name, f"/gnu/store/{base}", nar_hash, meta)
            references = sorted(rng.sample(bases, min(len(bases), rng.randint(0, 6))))
            size = len(payload) * rng.randint(2, 5)
            unsigned = narinfo.compose(item.path, nar_hash, size, [*references, base])
            raw = narinfo.sign(unsigned, signer, "example.org")
            for key in keys[: 1 + number % 3]:
                site.publish(item, raw, key)
            for peer in range(rng.choice([0, 1, 1, 2, 3, 6, 9])):
                site.announce(item, 7000 + peer, 0)
            for peer in range(rng.choice([0, 0, 0, 1, 4])):
                site.announce(item, 8000 + peer, 1000)
            site.items[name] = item
            bases.append(base)
        yield site
    finally:
        end(process)


@pytest.fixture(scope="module", name="window")
def window_fixture(site: Site) -> Iterator[Browser]:
    """A browser of somebody who runs scripts."""
    assert site.items
    with browser() as window:
        yield window


def _has_no_complaint(window: Browser) -> None:
    """Neither an error nor a violated policy was said in the console."""
    assert window.messages() == []


def _complaints(window: Browser) -> list[str]:
    """What is said in the console, once there is something."""
    give_up = time.monotonic() + DEADLINE
    while not (said := window.messages()):
        assert time.monotonic() < give_up, "nothing is said"
    return said


def _pages(site: Site) -> dict[str, str]:
    item = base32.encode(site.items["gcc-toolchain-13.2.0"].nar_hash)
    return {
        "home": site.url,
        "search": f"{site.url}/search?q=gcc",
        "nothing": f"{site.url}/search?q=nothing+like+this",
        "item": f"{site.url}/item/{item}",
    }


@pytest.mark.parametrize("name", ["home", "search", "nothing", "item"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 768, 1280])
def test_layout(site: Site, window: Browser, name: str, scheme: str, width: int) -> None:
    """No page has to be scrolled sideways or says anything in the console, whoever looks at it."""
    window.prefer(scheme)
    window.resize(width, 800, mobile=width == 360)
    window.open(_pages(site)[name])
    inner, outer = window.run(
        "const page = document.documentElement; return [page.scrollWidth, page.clientWidth]"
    )
    assert inner <= outer == width
    assert window.until("return document.fonts.status", "loaded")
    _has_no_complaint(window)


def test_light_and_dark(site: Site, window: Browser) -> None:
    """The page follows what the reader prefers, and text stands out from its ground in both."""
    window.resize(1000, 800)
    grounds = []
    for scheme in ("light", "dark"):
        window.prefer(scheme)
        window.open(site.url)
        ground, text, faint = (
            window.run(
                "const style = getComputedStyle(document.querySelector(arguments[0]));"
                "return style[arguments[1]].match(/\\d+/g).slice(0, 3).map(Number)",
                *where,
            )
            for where in (
                ("body", "backgroundColor"),
                ("body", "color"),
                (".hint", "color"),
            )
        )
        assert _contrast(ground, text) >= 7
        assert _contrast(ground, faint) >= 4.5  # WCAG 2, AA
        grounds.append(sum(ground))
    assert grounds[0] > 600
    assert grounds[1] < 150


def _contrast(one: list[int], other: list[int]) -> float:
    """The contrast ratio of two colours, as WCAG 2 defines it."""

    def luminance(colour: list[int]) -> float:
        parts = [
            part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4
            for part in (value / 255 for value in colour)
        ]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_first_page(site: Site, window: Browser) -> None:
    """Totals and health are those of what was published and announced."""
    window.open(site.url)
    assert window.title == "narswarm tracker"
    numbers = window.text(".numbers").split()
    assert numbers[:4] == ["NARs", "50", "torrents", "50"]
    legend = window.text(".legend")
    counts = [int(line.rpartition(": ")[2]) for line in legend.splitlines()]
    assert (len(counts), sum(counts)) == (4, 50)
    assert window.run("return document.querySelectorAll('svg.health rect').length") == sum(
        count > 0 for count in counts
    )
    newest = next(reversed(site.items))
    assert window.text("section[aria-labelledby=recent] li a") == newest
    assert "leecher" in window.text("section[aria-labelledby=wanted] li")
    assert window.text(".numbers + .hint").startswith("Each torrent is two swarms")
    _has_no_complaint(window)


def test_search_by_keyboard(site: Site, window: Browser) -> None:
    """Tab leads to the content and the search; what is typed there is found, and is a link."""
    window.resize(1000, 800)
    window.open(site.url)
    focused = "return document.activeElement.getAttribute(arguments[0])"
    window.press("\ue004")
    assert window.run(focused, "href") == "#main"
    window.press("\ue004")
    assert window.run(focused, "name") == "q"
    outline = "return getComputedStyle(document.activeElement).outlineStyle"
    assert window.run(outline) == "solid"
    window.follow(lambda: window.type("input[name=q]", "GLIBC 2.35\ue007"))
    assert window.url == f"{site.url}/search?q=GLIBC+2.35"
    assert window.text("h2") == "3 items with “glibc” and “2.35”"
    names = window.run("return [...document.querySelectorAll('ul.items a')].map(a => a.text)")
    assert names == ["glibc-2.35", "glibc-2.35-static", "glibc-locales-2.35"]
    window.follow(lambda: window.click("ul.items a"))
    assert window.text("h1") == "glibc-2.35"
    _has_no_complaint(window)


def test_item(site: Site, window: Browser) -> None:
    """An item's page has what was published; its links lead to torrent, narinfo and other items."""
    item = site.items["gcc-toolchain-13.2.0"]
    window.open(f"{site.url}/search?q={item.path}/bin/gcc")
    assert window.url == f"{site.url}/item/{base32.encode(item.nar_hash)}"
    assert window.title == f"{item.name} · narswarm tracker"
    text = window.text("main")
    for expected in (
        item.path,
        base32.format_hash(item.nar_hash),
        item.meta.infohash_v1.hex(),
        item.meta.infohash_v2.hex(),
        f"StorePath: {item.path}",
    ):
        assert expected in text
    links = window.run("return [...document.querySelectorAll('main a')].map(a => a.href)")
    announce = [f"{site.url}/announce", f"{site.url.replace('http', 'udp', 1)}/announce"]
    assert item.meta.magnet(announce) in links
    (torrent,) = [link for link in links if ".torrent?" in link]
    outside = decode_outside(site.ask("GET", torrent.removeprefix(site.url)), "torrent")
    assert outside.trackers == (announce[0],)
    (mirrored,) = [link for link in links if link.endswith(".narinfo")]
    raw = site.ask("GET", mirrored.removeprefix(site.url)).decode()
    assert window.run("return document.querySelector('details pre').textContent") == raw
    for link in [link for link in links if "/search?" in link]:
        window.open(link)
        assert window.url.startswith(f"{site.url}/item/")
    _has_no_complaint(window)


def test_copying(site: Site, window: Browser) -> None:
    """Each box has a button that copies its text; the clipboard gets it as it is shown."""
    window.resize(1000, 800)
    window.open(site.url)
    window.devtools(
        "Browser.grantPermissions",
        permissions=["clipboardReadWrite", "clipboardSanitizedWrite"],
        origin=site.url,
    )
    boxes = window.run("return document.querySelectorAll('.copy').length")
    assert boxes == 3
    for number, start in enumerate(("[substituter]\n", "[seeder]\n", f"{site.url}/announce\nudp:")):
        box = f".card:nth-of-type({number + 1}) .copy"
        shown = window.run("return document.querySelector(arguments[0]).textContent", f"{box} pre")
        assert shown.startswith(start)
        window.click(f"{box} button")
        said = "return document.querySelector(arguments[0]).textContent"
        assert window.until(said, "Copied", f"{box} [role=status]")
        assert window.run("return navigator.clipboard.readText()") == shown
    _has_no_complaint(window)


def test_copying_without_clipboard(site: Site, window: Browser) -> None:
    """Over plain HTTP browsers have no clipboard for scripts; the text is selected and copied."""
    window.open(site.url)
    window.run("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    window.click(".copy button")
    said = "return document.querySelector(arguments[0]).textContent"
    assert window.until(said, "Copied", ".copy [role=status]")
    assert window.run("return getSelection().toString()").startswith("[substituter]\ntrackers = [")
    _has_no_complaint(window)


def test_every_link_leads_somewhere(site: Site, window: Browser) -> None:
    """Whatever the pages link to on this tracker is there."""
    seen: set[str] = set()
    for page in _pages(site).values():
        window.open(page)
        found = window.run(
            "const all = [...document.querySelectorAll('a, link, script, img')];"
            "return all.map(element => element.href || element.src)"
        )
        seen.update(link.partition("#")[0] for link in found)
    assert {link.partition(":")[0] for link in seen} == {"http", "magnet", "mailto"}
    ours = [link for link in seen if link.startswith("http:")]
    assert all(link.startswith(f"{site.url}/") for link in ours)
    for link in ours:
        status, _ = site.status(link.removeprefix(site.url))
        assert status in {200, 302}, link


def test_missing_pages(site: Site, window: Browser) -> None:
    """A browser gets a page where nothing is; a program gets a line, and JSON under /v1."""
    window.open(f"{site.url}/item/{'0' * 52}")
    assert window.text("h1") == "There is nothing here"
    (message,) = _complaints(window)
    assert "status of 404" in message
    assert site.status(f"/item/{'0' * 52}") == (404, "text/plain;charset=utf-8")
    assert site.status(f"/v1/nar/{'0' * 52}") == (404, "application/json")


def test_hostile_questions(site: Site, window: Browser) -> None:
    """What somebody is led to ask is text, and runs nothing."""
    evil = '"><img src=x onerror="document.title=1"><script>document.title=1</script>'
    window.open(f"{site.url}/search?{urlencode({'q': evil})}")
    assert window.title == f"{evil} · Search · narswarm tracker"
    assert window.run("return document.querySelector('input').value") == evil
    assert window.run("return document.querySelectorAll('main img, main script').length") == 0
    _has_no_complaint(window)


def test_policy_is_kept(site: Site, window: Browser) -> None:
    """Even if something got into a page, the browser would not run it, and says so."""
    window.open(site.url)
    window.run(
        "const script = document.createElement('script');"
        "script.textContent = 'document.title = 1'; document.body.append(script)"
    )
    assert window.title == "narswarm tracker"
    (message,) = _complaints(window)
    assert "Content Security Policy" in message


def test_without_scripts(site: Site) -> None:
    """Everything but the copy buttons is there without JavaScript."""
    with browser(scripts=False) as window:
        window.open(site.url)
        assert window.run("return document.querySelectorAll('button').length") == 1
        assert window.text(".copy pre").startswith("[substituter]")
        window.type("input[name=q]", "toolchain")
        window.follow(lambda: window.click("form button"))
        assert window.text("ul.items a") == "gcc-toolchain-13.2.0"
        window.follow(lambda: window.click("ul.items a"))
        assert window.text("h1") == "gcc-toolchain-13.2.0"
        _has_no_complaint(window)
