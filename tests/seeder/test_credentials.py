# SPDX-License-Identifier: GPL-3.0-or-later
"""seeder/credentials.py: a key of systemd's goes before the one of the state directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from narswarm.errors import SettingsError
from narswarm.httpsig import PublisherKey
from seeder.credentials import publisher_key


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A state directory."""
    directory = tmp_path / "state"
    directory.mkdir()
    return directory


@pytest.fixture
def credentials(tmp_path: Path) -> Path:
    """What systemd calls the credentials directory."""
    directory = tmp_path / "credentials"
    directory.mkdir()
    return directory


def _environ(credentials: Path) -> dict[str, str]:
    return {"CREDENTIALS_DIRECTORY": str(credentials)}


def test_a_key_is_made_where_none_is_given(state: Path, credentials: Path) -> None:
    """Without credentials, and with others than this one, the state directory has the key."""
    made = publisher_key(state, {})
    assert (state / "publisher.key").stat().st_mode & 0o777 == 0o600
    (credentials / "another").write_text("secret")
    assert publisher_key(state, _environ(credentials)).public == made.public
    assert sorted(path.name for path in credentials.iterdir()) == ["another"]


@pytest.mark.parametrize("mode", [0o400, 0o440, 0o600])
def test_a_given_key_is_used(state: Path, credentials: Path, mode: int) -> None:
    """With the modes that systemd gives, the credential counts and nothing is made beside it."""
    given = PublisherKey.load_or_create(credentials / "publisher.key")
    (credentials / "publisher.key").chmod(mode)
    assert publisher_key(state, _environ(credentials)).public == given.public
    assert list(state.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "mode", "reason"),
    [
        (None, 0o444, "is a credential that others may read"),
        (None, 0o420, "is a credential that others may read"),
        ("", 0o400, "is not a private key in PEM"),
    ],
)
def test_a_given_key_that_is_none(
    state: Path, credentials: Path, content: str | None, mode: int, reason: str
) -> None:
    """A wrong credential isn't passed over in silence: the seeder would publish as another."""
    path = credentials / "publisher.key"
    PublisherKey.load_or_create(path)
    if content is not None:
        path.write_text(content)
    path.chmod(mode)
    with pytest.raises(SettingsError) as caught:
        publisher_key(state, _environ(credentials))
    assert str(caught.value) == f"{path}: {reason}"
    assert list(state.iterdir()) == []
