# SPDX-License-Identifier: GPL-3.0-or-later
"""docs/scans.md: scanners still find what it says of units and of nginx as the role sets it up."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import needs
from tests.e2e.rig.nodes import wait_for
from tests.ports import free_port

CHECKOUT = Path(__file__).resolve().parents[2]
SCANS = CHECKOUT / "docs/scans.md"
UNITS = [
    *(CHECKOUT / "systemd").glob("*.service"),
    *(CHECKOUT / "ansible/roles/common/files").glob("*.service"),
]
TEMPLATE = CHECKOUT / "ansible/roles/tracker/templates/nginx.conf.j2"

_AROUND = """\
daemon off;
pid nginx.pid;
error_log stderr;
events {{}}
http {{
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
{site}
}}
"""


def _reached(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Where nginx serves TLS with the role's configuration."""
    nginx = needs.program("nginx", folders=["/usr/sbin"])
    openssl = needs.program("openssl")
    if importlib.util.find_spec("jinja2") is None:
        needs.missing("ansible-core is not installed")
    directory = tmp_path_factory.mktemp("nginx")
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", "key"]
    command = [openssl, "req", "-x509", *key, "-out", "pem", "-subj", "/CN=tracker1.example.org"]
    subprocess.run(command, cwd=directory, check=True, capture_output=True)
    values = {
        "ansible_managed": "by a test",
        "tracker_port": free_port(),
        "tracker_domain": "tracker1.example.org",
        "tracker_tls_certificate": str(directory / "pem"),
        "tracker_tls_key": str(directory / "key"),
    }
    site = importlib.import_module("jinja2").Template(TEMPLATE.read_text()).render(values)
    ports = {"80": free_port(), "443": free_port()}
    site = re.sub(r"listen \[::\].*;\n", "", site)
    site = re.sub(r"listen (\d+)", lambda found: f"listen 127.0.0.1:{ports[found[1]]}", site)
    (directory / "nginx.conf").write_text(_AROUND.format(site=site))
    server = subprocess.Popen([nginx, "-p", str(directory), "-c", str(directory / "nginx.conf")])
    try:
        wait_for("nginx", lambda: _reached(ports["443"]))
        yield ports["443"]
    finally:
        server.terminate()
        server.wait()


def test_tls_is_as_documented(port: int) -> None:
    """Sslscan finds the versions and ciphers that docs/scans.md lists, and no others."""
    sslscan = needs.program("sslscan")
    command = [sslscan, "--no-colour", f"127.0.0.1:{port}"]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    ciphers = re.findall(r"(?m)^(?:Preferred|Accepted) +(\S+) +\d+ bits +(\S+)", found)
    listed = re.findall(r"(?m)^\| (TLSv1\.\d) \| `(\S+)` \|", SCANS.read_text())
    assert sorted(ciphers) == sorted(listed)
    assert set(re.findall(r"(?m)^(\S+) +enabled$", found)) == {"TLSv1.2", "TLSv1.3"}


def test_what_each_answer_says(port: int) -> None:
    """Browsers are to come by TLS alone; nginx doesn't say which version it is."""
    command = ["curl", "-sSk", "-o", "/dev/null", "-D", "-", f"https://127.0.0.1:{port}/"]
    head = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "\nServer: nginx\n" in head.replace("\r", "")
    assert "\nStrict-Transport-Security: max-age=15768000\n" in head.replace("\r", "")


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_units_are_no_worse_than_documented(unit: Path) -> None:
    """`systemd-analyze security` gives a unit at most the exposure that docs/scans.md says."""
    analyze = needs.program("systemd-analyze", "systemd-container")
    documented = dict(re.findall(r"(?m)^\| `(\S+)\.service` \| ([\d.]+) \|", SCANS.read_text()))
    # A later systemd knows more to find fault with.
    threshold = round(float(documented[unit.stem]) * 10) + 2
    command = [analyze, "security", "--offline=true", "--no-pager", "--json=short"]
    done = subprocess.run(
        [*command, f"--threshold={threshold}", str(unit)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, json.dumps(json.loads(done.stdout), indent=1)
