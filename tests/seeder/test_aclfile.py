# SPDX-License-Identifier: GPL-3.0-or-later
"""The ACL, followed while it changes."""

from __future__ import annotations

import os

import pytest

from narswarm import gcrypt, sexp
from narswarm.acl import render
from narswarm.errors import InvalidInputError, NotFoundError
from seeder.aclfile import AclFile
from tests.seeder.conftest import World


def test_changes_are_noticed(world: World) -> None:
    """Another key is another ACL; a file that was only touched isn't."""
    file = AclFile(world.acl)
    first, fingerprint = file.acl, file.fingerprint
    assert not file.changed()
    os.utime(world.acl, (1, 1))
    assert not file.changed()
    world.acl.write_bytes(render([sexp.parse(gcrypt.generate_key().public)]))
    assert file.changed()
    assert file.acl is not first
    assert file.fingerprint != fingerprint
    assert not file.changed()


def test_an_acl_that_can_t_be_read_leaves_the_last_one(world: World) -> None:
    """Neither a missing file nor a damaged one authorises or revokes anything."""
    file = AclFile(world.acl)
    before, text = file.acl, world.acl.read_bytes()
    world.acl.write_bytes(b"(acl")
    with pytest.raises(InvalidInputError):
        file.changed()
    with pytest.raises(InvalidInputError):
        file.changed()
    world.acl.unlink()
    with pytest.raises(NotFoundError) as caught:
        file.changed()
    assert str(caught.value) == f"{world.acl}: No such file or directory"
    assert file.acl is before
    world.acl.write_bytes(text)
    assert not file.changed()


def test_a_missing_acl_is_an_error(world: World) -> None:
    """At the start it has to be there."""
    with pytest.raises(NotFoundError) as caught:
        AclFile(world.root / "none")
    assert str(caught.value) == f"{world.root / 'none'}: No such file or directory"
