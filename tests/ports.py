# SPDX-License-Identifier: GPL-3.0-or-later
"""Ports for servers that a test starts later: nobody takes them in between."""

from __future__ import annotations

import secrets
import socket

_FIRST, _END = 11_000, 32_768
"""Below what Linux gives to sockets that ask for any port: those of other tests stay above."""


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nobody has, for TCP nor for UDP.

    Args:
        host: the address of this machine that is to have it; empty for all of IPv4.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    while True:
        port = _FIRST + secrets.randbelow(_END - _FIRST)
        with (
            socket.socket(family) as stream,
            socket.socket(family, socket.SOCK_DGRAM) as datagrams,
        ):
            try:
                for each in (stream, datagrams):
                    each.bind((host, port))
            except OSError:
                continue
            return port
