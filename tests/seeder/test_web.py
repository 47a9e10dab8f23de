# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of seeder.web: the page as a browser gets it."""

from __future__ import annotations

import socket
import urllib.request
from contextlib import closing
from typing import Any

import pytest
from flask.testing import FlaskClient

from narswarm.errors import BusyError
from seeder.web import POLICY, Page, WebServer, create_app, is_our_name
from seeder.web_data import Bar
from tests.ports import free_port

EVIL = "<script>alert(1)</script>"
STATUS: dict[str, Any] = {
    "items": 2,
    "payloads": 1,
    "paused": False,
    "not_offered": {"not vouched for": 3},
    "scan_message": "",
    "payload_bytes": 2048,
    "max_disk": 1 << 30,
    "full": "",
    "codec": "",
    "peers": 4,
    "dht_nodes": 7,
    "listen_port": 6881,
    "publisher": "abc=",
    "started": 1000,
    "planned": 5,
    "trackers": [
        {
            "url": "http://t/announce",
            "announces": 4,
            "held": 6,
            "holdings_message": "",
            "announce_message": EVIL,
            "published": 2,
            "pending": 1,
            "publish_message": "",
        }
    ],
}
ITEMS = [
    {
        "store_path": "/gnu/store/00000000000000000000000000000001-hello-2.12",
        "offered": True,
        "reason": "vouched for",
        "length": 1024,
        "uploaded": 512,
    },
    {"store_path": f"/gnu/store/x-{EVIL}", "offered": False, "reason": "not vouched for"},
]


def page(**changes: Any) -> Page:
    """What the page shows."""
    return Page(
        status=STATUS | changes,
        items=ITEMS,
        upload_rate=1536.0,
        download_rate=0.0,
        day=1 << 20,
        highest=1 << 19,
        bars=[Bar(1.0, 2.0, 3.0, 4.0)],
        peers={"IPv4": 1, "IPv6": 2},
        fetches=[("/gnu/store/0-fetched", 40, 3, 2048, True)],
        now=1065.0,
    )


def client(**changes: Any) -> FlaskClient:
    """A browser on this machine."""
    return create_app(lambda: page(**changes), lambda: b"x 1\n", ["seed.lan"]).test_client()


def test_what_the_page_says() -> None:
    """All that is known, with numbers for people, and nothing of strangers as markup."""
    answer = client().get("/")
    text = " ".join(answer.text.split())
    for part in (
        "Running for 1:05, port 6881",
        ">1.5 KiB/s</span> upload",
        ">2</span> items offered",
        "last day: 1.0 MiB",
        'rect x="1.0" y="2.0" width="3.0" height="4.0"',
        "highest: 512.0 KiB in 5 min",
        "2.0 KiB of 1.0 GiB used",
        '<th scope="row">IPv6</th><td>2</td>',
        "http://t/announce<br>",
        "&lt;script&gt;alert(1)&lt;/script&gt;",
        "<td>40 %</td><td>3</td><td>2.0 KiB/s</td><td>now</td>",
        "5 more are planned",
        "2 offered, 1 with payloads",
        "3 not vouched for",
        ">hello-2.12</th> <td>1.0 KiB</td><td>512 B</td><td>vouched for</td>",
        "publisher abc=",
    ):
        assert part in text
    assert EVIL not in answer.text
    assert 'class="warning">Paused' in client(paused=True).get("/").text
    assert '<p class="warning">disk is full</p>' in client(full="disk is full").get("/").text
    assert "<p>None is set.</p>" in client(trackers=[]).get("/").text


def test_nothing_foreign_is_loaded_or_run() -> None:
    """By the policy, and by what the page asks for."""
    answer = client().get("/")
    assert answer.headers["Content-Security-Policy"] == POLICY
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Cache-Control"] == "no-store"
    assert "style=" not in answer.text
    assert "onclick" not in answer.text
    assert "http-equiv" in answer.text.partition("<noscript>")[2].partition("</noscript>")[0]
    assert answer.text.replace("http://t/", "").count("http://") == 0
    for file in ("seeder.css", "seeder.js"):
        asset = client().get(f"/static/{file}")
        assert (asset.status_code, asset.headers["X-Content-Type-Options"]) == (200, "nosniff")
        assert f"/static/{file}" in answer.text
        asset.close()


def test_numbers_for_prometheus() -> None:
    """As text."""
    answer = client().get("/metrics")
    assert (answer.data, answer.content_type) == (
        b"x 1\n",
        "text/plain; version=0.0.4; charset=utf-8",
    )


@pytest.mark.parametrize(
    ("host", "ours"),
    [
        ("127.0.0.1:6880", True),
        ("[::1]:6880", True),
        ("192.168.1.2", True),
        ("localhost:6880", True),
        ("seed.lan:1", True),
        ("LOCALHOST", True),
        ("evil.example:6880", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("", False),
        ("[::1", False),
    ],
)
def test_a_browser_that_was_led_here(host: str, ours: bool) -> None:
    """By a stranger's name gets nothing, of nothing."""
    assert is_our_name(host, {"localhost", "seed.lan"}) is ours
    for path in ("/", "/metrics", "/static/seeder.js"):
        answer = client().get(path, headers={"Host": host})
        assert answer.status_code == (200 if ours else 421)
        answer.close()


def test_only_what_is_there_and_only_to_read() -> None:
    """Nothing can be changed here."""
    assert client().post("/").status_code == 405
    assert client().get("/x").status_code == 404


def test_a_server() -> None:
    """It answers until it is closed; a port that is taken is an error."""
    app = create_app(page, lambda: b"x 1\n")
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        with pytest.raises(BusyError) as caught:
            WebServer(app, f"127.0.0.1:{port}")
        assert str(caught.value) == (f"127.0.0.1:{port}: can't be listened on for the web page")
    made = WebServer(app, f"127.0.0.1:{port}")
    with urllib.request.urlopen(f"http://127.0.0.1:{made.port}/metrics", timeout=120) as answer:
        assert answer.read() == b"x 1\n"
    made.close()
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=120)


def test_the_icon() -> None:
    """A browser finds it where the page says, and may show it and keep it."""
    browser = client()
    text = browser.get("/").get_data(as_text=True)
    assert '<link rel="icon" href="/favicon.svg" type="image/svg+xml">' in text
    with closing(browser.get("/favicon.svg")) as answer:
        body = answer.data
    assert (answer.status_code, answer.mimetype) == (200, "image/svg+xml")
    assert body.startswith(b"<svg ")
    assert "no-store" not in answer.headers["Cache-Control"]
    assert answer.headers["Content-Security-Policy"] == POLICY
    assert "img-src 'self';" in POLICY
