# SPDX-License-Identifier: GPL-3.0-or-later
"""The command `substituter gateway`."""

from __future__ import annotations

import ipaddress
import logging
import os
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Final

import click

from narswarm import cli
from narswarm import settings as narswarm_settings
from narswarm.errors import BusyError, NetworkError, NotFoundError, SettingsError
from narswarm.httpwire import split
from narswarm.sdnotify import Notifier
from substituter import daemonprocess
from substituter.context import Context
from substituter.flags import policy_option
from substituter.gateway import Server
from substituter.gatewayitems import Items
from substituter.gatewaypool import Pool
from substituter.gatewaysources import Finding
from substituter.session import Session
from substituter.settings import SubstituterSettings

log = logging.getLogger("gateway")

MAX_WARNINGS: Final = 500
"""Lines that aren't shown again as long as they are among the last."""

_HOUR: Final = 3600.0


@click.command("gateway")
@click.option(
    "--listen",
    metavar="HOST:PORT",
    default="127.0.0.1:8182",
    show_default=True,
    help="Where to listen; for a LAN, 0.0.0.0:8182 or [::]:8182.",
)
@click.option(
    "--substitute-urls",
    metavar="URLS",
    help="Where narinfos come from, instead of the servers that guix-daemon asks.",
)
@click.option(
    "--state",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("/var/cache/narswarm-gateway"),
    show_default=True,
    help="Where narinfos, torrents and payloads are kept; not guix-daemon's own place.",
)
@click.option(
    "--disk",
    type=click.IntRange(min=1),
    metavar="GIB",
    default=4,
    show_default=True,
    help="GiB that payloads may take; larger items aren't served.",
)
@policy_option
@cli.config_option
def gateway_command(
    listen: str,
    substitute_urls: str | None,
    state: Path,
    disk: int,
    policy: str | None,
    config: Path | None,
) -> None:
    """Be a substitute server whose NARs come from the swarm.

    For guix-daemons without the substituter, on other machines and in containers: name
    http://HOST:PORT among their substitute URLs. Only items that an authorised narinfo vouches for
    are served, with the signature that they had.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    address = parse_listen(listen)
    settings = narswarm_settings.load(
        SubstituterSettings, "substituter", file=config, flags={"state": state, "policy": policy}
    )
    try:
        (state / "gateway").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NotFoundError(state, error.strerror or str(error)) from error
    urls = tuple((substitute_urls or "").split()) or daemonprocess.substitute_urls()
    # A daemon of this machine may well use the gateway, which must not ask itself.
    servers = [url for url in urls if not _is_own(url, address)] or daemonprocess.DEFAULT_URLS
    environ = dict(os.environ) | {"_NIX_OPTIONS": f"substitute-urls={' '.join(servers)}"}
    context = LongContext(settings, environ, log.warning)
    session = Session(settings, log.warning)
    session.downloads = settings.state / "gateway"
    pool = Pool(session.downloads, disk << 30, Finding(context, session))
    try:
        server = Server(address, Items(context), pool)
    except OSError as error:
        raise BusyError(listen, error.strerror or str(error)) from error
    url = f"http://{f'[{address[0]}]' if ':' in address[0] else address[0]}:{server.server_port}"
    if context.trackers and context.seeder is None:
        session.start()  # it takes a while to know the DHT
    threading.Thread(target=_look_after, args=(context, session), daemon=True).start()
    _serve(server, f"{url}, in front of {' '.join(servers)}")
    session.save()
    session.close()


def parse_listen(text: str) -> tuple[str, int]:
    """Read HOST:PORT, with an IPv6 address in brackets.

    Raises:
        SettingsError: it isn't that.
    """
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise SettingsError("--listen", f"expected HOST:PORT, got {text!r}")
    return host, int(port)


class LongContext(Context):
    """A context that lives for months: what it has warned of is forgotten in the end."""

    def __init__(
        self,
        settings: SubstituterSettings,
        environ: Mapping[str, str],
        warn: Callable[[str], None],
    ) -> None:
        self._latest: deque[str] = deque(maxlen=MAX_WARNINGS)
        self._mutex = threading.Lock()
        super().__init__(settings, environ, warn)

    def warn_once(self, message: str) -> None:
        """Show a line unless it was among the last ones."""
        with self._mutex:
            if message in self._latest:
                return
            self._latest.append(message)
        self.warn(cli.printable(message))


def _look_after(context: Context, session: Session) -> None:
    """Keep what is on disk small, and the DHT's nodes for the next start."""
    while True:
        context.torrents.prune_if_due(time.time())
        session.save()
        time.sleep(_HOUR)


def _serve(server: Server, described: str) -> None:
    """Serve until a signal comes."""
    notifier = Notifier.of_process()

    def end(number: int, _frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)  # the second one ends it at once
        threading.Thread(target=server.shutdown, daemon=True).start()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    server.on_turn = notifier.alive
    log.info("listening on %s", described)
    notifier.ready(described)
    with server:
        server.serve_forever()
    notifier.stopping()


def _is_own(url: str, address: tuple[str, int]) -> bool:
    """Whether a URL leads to the gateway itself."""
    try:
        target = split(url)
    except NetworkError:
        return False
    if target.port != address[1]:
        return False
    if target.host == "localhost":  # also where no file says so (RFC 6761)
        return True
    try:
        found = {each[4][0] for each in socket.getaddrinfo(target.host, target.port)}
    except OSError:
        return False
    return address[0] in found or any(_is_here(str(each)) for each in found)


def _is_here(address: str) -> bool:
    """Whether an address is one of this machine: one that can be bound to."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    family = socket.AF_INET6 if ip.version == 6 else socket.AF_INET
    with socket.socket(family) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True
