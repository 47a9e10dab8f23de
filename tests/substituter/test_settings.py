# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of substituter.settings: what the manual says, and what a file may say."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from pathlib import Path

import pytest

from narswarm import settings
from narswarm.errors import SettingsError
from substituter.race import Policy
from substituter.settings import POLICIES, SubstituterSettings

MANUAL = Path(__file__).parents[2] / "docs" / "substituter.md"


def load(text: str, directory: Path) -> SubstituterSettings:
    """The settings of a file."""
    file = directory / "narswarm.toml"
    file.write_text(text)
    return settings.load(SubstituterSettings, "substituter", file=file, environ={})


def manual() -> str:
    """The file that the manual shows."""
    return "[substituter]\n" + MANUAL.read_text().partition("```toml\n")[2].partition("```")[0]


def test_the_manual_shows_the_defaults(tmp_path: Path) -> None:
    """Its example, read as a settings file, is what counts without any file."""
    assert load(manual(), tmp_path) == SubstituterSettings()


def test_the_manual_shows_every_setting() -> None:
    """No setting is left out of the example."""
    table = tomllib.loads(re.sub(r"(?m)^# ", "", manual()))["substituter"]
    assert set(table) == {field.name for field in dataclasses.fields(SubstituterSettings)}


def test_every_setting_has_a_help_text() -> None:
    """What describes the settings to people has a sentence for each."""
    for field in dataclasses.fields(SubstituterSettings):
        assert field.metadata["help"]


def test_values_of_all_kinds_are_read(tmp_path: Path) -> None:
    """Lists, paths, times with units and libtorrent's own settings come as they are written."""
    loaded = load(
        '[substituter]\ntrackers = ["http://a/announce"]\nguix = "/opt/guix"\n'
        'stall_timeout = "250 ms"\npatience = 7\n[substituter.libtorrent]\nallow_i2p_mixed = true',
        tmp_path,
    )
    assert loaded == SubstituterSettings(
        trackers=("http://a/announce",),
        guix=Path("/opt/guix"),
        stall_timeout=0.25,
        patience=7.0,
        libtorrent={"allow_i2p_mixed": True},
    )


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("patience = -1", "expected a time such as 30, '5 min' or '12 h', got -1.0"),
        ('patience = "soon"', "expected a time such as 30, '5 min' or '12 h', got 'soon'"),
        ("trackers = 'http://a/announce'", "expected a list of texts, got 'http://a/announce'"),
        ("dht = 1", "expected true or false, got an integer"),
        (
            "policy = 'fast'",
            "expected race, swarm-only, swarm-first, http-first, got 'fast'",
        ),
    ],
)
def test_a_wrong_value_is_told(tmp_path: Path, line: str, reason: str) -> None:
    """The message names file, setting, what is expected and what is there."""
    with pytest.raises(SettingsError) as caught:
        load(f"[substituter]\n{line}\n", tmp_path)
    name = line.split(maxsplit=1)[0]
    assert str(caught.value) == f"{tmp_path / 'narswarm.toml'}: substituter.{name}: {reason}"


def test_every_policy_is_one_of_the_race() -> None:
    """The setting's words are those that decisions are made by."""
    assert tuple(Policy) == POLICIES
