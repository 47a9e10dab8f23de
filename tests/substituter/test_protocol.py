# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of substituter.protocol, against what a real guix-daemon 1.5 was seen to exchange."""

from __future__ import annotations

from narswarm import base32, narinfo
from substituter import protocol
from substituter.protocol import Command

APP = "/gnu/store/5qz5dk6nl8x0ks3cxcjdb8h97phh4b5f-lab-app"
DEP2 = "29njd8lb2x08jbvrfljsrwcqw7fvcdff-lab-dep2"
DRV = "nd4akxxy7p862fv06lclm1pais6rd92j-lab-app.drv"
HASH = base32.decode("1m6xdrcmf2ajhxi0bd5llp5fxcgdw425hhz7b19j5xh646n73n8g")


def test_a_query_has_a_space_behind_each_path() -> None:
    """Trailing spaces and the newline are no words."""
    assert protocol.parse_command(f"info {APP} \n".encode()) == Command("info", (APP,))


def test_a_command_may_name_thousands_of_paths() -> None:
    """There is no limit to a line: the daemon sends the whole plan."""
    command = protocol.parse_command(b"have " + f"{APP} ".encode() * 3000 + b"\n")
    assert command is not None
    assert len(command.words) == 3000


def test_an_empty_line_is_no_command() -> None:
    """Nothing is answered to an empty line."""
    assert protocol.parse_command(b"\n") is None


def test_info_names_deriver_references_and_sizes() -> None:
    """The reply has full paths, one a line, in the daemon's order."""
    app = APP.removeprefix("/gnu/store/")
    parsed = narinfo.parse(narinfo.compose(APP, HASH, 920, [DEP2, app], DRV))
    assert protocol.info(parsed, 411).decode() == (
        f"{APP}\n/gnu/store/{DRV}\n2\n/gnu/store/{DEP2}\n{APP}\n411\n920\n"
    )


def test_info_of_an_item_without_deriver_and_references() -> None:
    """An added item has an empty line for its deriver, and no references."""
    parsed = narinfo.parse(narinfo.compose(APP, HASH, 128, []))
    assert protocol.info(parsed, 0).decode() == f"{APP}\n\n0\n0\n128\n"


def test_have_is_the_path_alone() -> None:
    """An available path is one line."""
    assert protocol.have(APP) == f"{APP}\n".encode()


def test_statuses_are_one_line_each() -> None:
    """The three statuses are written as the daemon parses them."""
    text = base32.encode(HASH)
    assert protocol.success(HASH, 920).decode() == f"success sha256:{text} 920\n"
    other = base32.encode(bytes(32))
    assert protocol.hash_mismatch(HASH, bytes(32)).decode() == (
        f"hash-mismatch sha256 {text} {other}\n"
    )
    assert protocol.NOT_FOUND == b"not-found\n"
