# SPDX-License-Identifier: GPL-3.0-or-later
"""The access control list of a running tracker."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from narswarm.acl import Acl, render
from tracker.aclfile import AclFile
from tracker.index import Index
from tracker.publication import check

if TYPE_CHECKING:
    from typing import Any


@pytest.fixture(name="index")
def index_fixture(tmp_path: Path) -> Iterator[Index]:
    """An empty index."""
    index = Index(tmp_path / "data")
    yield index
    index.close()


def test_changes_are_applied(
    tmp_path: Path, index: Index, acl_text: bytes, acl: Acl, make_item: Callable[..., Any]
) -> None:
    """A key that is taken out of the file stops vouching, and one put in begins to."""
    path = tmp_path / "acl"
    path.write_bytes(acl_text)
    file = AclFile(path, index)
    assert file.acl is None
    assert len(file.refresh() or ()) == 1
    item = make_item()
    index.publish(check(item.nar_hash, item.body, acl, ()), bytes(32), 1)
    for number, (text, vouched) in enumerate([(render([]), False), (acl_text, True)]):
        path.write_bytes(text)
        os.utime(path, ns=(number, number))
        current = file.refresh()
        assert current is file.acl
        assert (index.nar(item.nar_hash) is not None) is vouched


def test_unchanged_files_are_not_read(tmp_path: Path, index: Index, acl_text: bytes) -> None:
    """Looking at the file is all that is done at most times."""
    path = tmp_path / "acl"
    path.write_bytes(acl_text)
    file = AclFile(path, index)
    first = file.refresh()
    assert file.refresh() is first
    os.utime(path, ns=(1, 1))
    assert file.refresh() is not first


def test_missing_file(
    tmp_path: Path, index: Index, acl_text: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said once, with the consequence; and the file counts as soon as it is there."""
    path = tmp_path / "acl"
    file = AclFile(path, index)
    with caplog.at_level(logging.WARNING):
        assert [file.refresh(), file.refresh()] == [None, None]
    assert caplog.messages == [f"{path}: No such file or directory; publications are refused"]
    path.write_bytes(acl_text)
    assert file.refresh() is not None


def test_file_that_breaks(
    tmp_path: Path, index: Index, acl_text: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """The list that was read last stays, and each trouble is said once."""
    path = tmp_path / "acl"
    path.write_bytes(acl_text)
    file = AclFile(path, index)
    first = file.refresh()
    path.write_bytes(b"(nonsense)")
    with caplog.at_level(logging.WARNING):
        assert [file.refresh(), file.refresh()] == [first, first]
        path.unlink()
        assert file.refresh() is first
    assert caplog.messages == [
        f"{path}: is not an access control list; the list read last stays",
        f"{path}: No such file or directory; the list read last stays",
    ]
