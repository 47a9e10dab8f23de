# SPDX-License-Identifier: GPL-3.0-or-later
"""What a machine could offer."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from narswarm.errors import NotFoundError
from seeder.inventory import Item, NarDirectory, StoreInventory
from tests.seeder.conftest import World


def test_the_store_s_valid_items(world: World) -> None:
    """Items come in the order of the database, without derivations."""
    first, drv, last = (world.make(name) for name in ("a", "b.drv", "c"))
    for made in (last, first, drv):
        world.register(made)
    inventory = StoreInventory(world.database, world.store)
    assert list(inventory.items()) == [first.item, last.item]
    assert list(inventory.items(after=first.item.order)) == [last.item]
    assert inventory.item(last.path) == last.item
    assert b"".join(inventory.open(last.item)) == last.nar
    world.delete(last)
    assert inventory.item(last.path) is None


def test_a_missing_database_is_an_error(world: World) -> None:
    """A machine without Guix is told so, rather than offering nothing in silence."""
    inventory = StoreInventory(world.root / "none", world.store)
    with pytest.raises(NotFoundError):
        list(inventory.items())


@pytest.mark.parametrize("stem", ["base", "hash", "narinfo"])
def test_a_nar_is_found_by_any_of_its_names(world: World, stem: str) -> None:
    """The NAR is beside its narinfo under the item's name, its hash part, or the narinfo's."""
    made = world.make("hello")
    base_name = made.path.rpartition("/")[2]
    name = {"base": base_name, "hash": base_name[:32], "narinfo": "any"}[stem]
    (world.nars / "any.narinfo").write_bytes(made.narinfo)
    (world.nars / f"{name}.nar").write_bytes(made.nar)
    inventory = NarDirectory(world.nars)
    (item,) = inventory.items()
    assert item == made.item._replace(order=item.order)
    assert inventory.item(made.path) == item
    assert b"".join(inventory.open(item)) == made.nar
    parsed = inventory.narinfo(made.path)
    assert parsed is not None
    assert parsed.raw == made.narinfo


def test_a_narinfo_without_a_nar_is_no_item(world: World) -> None:
    """A mirror may hold narinfos of NARs that are still to come."""
    made = world.make()
    (world.nars / "x.narinfo").write_bytes(made.narinfo)
    inventory = NarDirectory(world.nars)
    assert list(inventory.items()) == []
    assert inventory.item(made.path) is None
    assert inventory.narinfo(made.path) is None
    with pytest.raises(NotFoundError) as caught:
        inventory.open(made.item)
    assert str(caught.value) == f"{made.path}: has no NAR in {world.nars}"


def test_new_files_come_after_those_that_were_seen(world: World) -> None:
    """The order is that in which files came, also if their contents are old, as of copies."""
    old, new = world.make("old"), world.make("new")
    world.put_nar(old)
    inventory = NarDirectory(world.nars)
    (seen,) = inventory.items()
    assert seen.store_path == old.path
    assert list(inventory.items(after=seen.order)) == []
    later: list[Item] = []
    while not later:  # until the clock of the file system has gone on
        world.put_nar(new)
        for name in (f"{new.path.rpartition('/')[2]}.nar", f"{new.item.store_path[11:43]}.narinfo"):
            os.utime(world.nars / name, ns=(1000, 1000))
        later = list(inventory.items(after=seen.order))
    assert [item.store_path for item in later] == [new.path]
    assert [item.store_path for item in inventory.items()] == [old.path, new.path]


def test_a_link_to_nowhere_hides_nothing(world: World) -> None:
    """A file that can't be looked at, or that vanishes meanwhile, is no item; others are."""
    made = world.make()
    world.put_nar(made)
    (world.nars / "lost.nar").symlink_to("nowhere")
    (world.nars / "lost.narinfo").symlink_to("nowhere")
    assert [item.store_path for item in NarDirectory(world.nars).items()] == [made.path]


def test_what_is_no_narinfo_is_told_once(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """A broken file is passed over, and read again only when it changes."""
    bad = world.nars / "bad.narinfo"
    bad.write_bytes(b"nonsense")
    inventory = NarDirectory(world.nars)
    assert list(inventory.items()) == []
    assert list(inventory.items()) == []
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("bad.narinfo: narinfo: ")
    made = world.make()
    bad.write_bytes(made.narinfo)
    os.utime(bad, ns=(5, 5))
    (world.nars / "bad.nar").write_bytes(made.nar)
    assert [item.store_path for item in inventory.items()] == [made.path]


def test_a_missing_directory_is_an_error(tmp_path: Path) -> None:
    """A typing error in the settings is told."""
    with pytest.raises(NotFoundError) as caught:
        list(NarDirectory(tmp_path / "none").items())
    assert str(caught.value) == f"{tmp_path / 'none'}: No such file or directory"


def test_a_nar_that_vanishes_is_an_error(world: World) -> None:
    """Between listing and reading anything may happen."""
    made = world.make()
    world.put_nar(made)
    inventory = NarDirectory(world.nars)
    chunks = inventory.open(Item(1, made.path, b"", 0))
    nar = world.nars / f"{made.path.rpartition('/')[2]}.nar"
    nar.unlink()
    with pytest.raises(NotFoundError) as caught:
        list(chunks)
    assert str(caught.value) == f"{nar}: No such file or directory"
