# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the publisher's key comes from: systemd's credentials, or the state directory.

systemd hands a credential (`LoadCredential=`) to the service alone, as a file that is on no disk
and that the service cannot change. So the key may be kept where the seeder's user cannot read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from narswarm.httpsig import PublisherKey

NAME = "publisher.key"


def publisher_key(state: Path, environ: Mapping[str, str]) -> PublisherKey:
    """The key that publications are signed with.

    Args:
        state: where it is, and is made, unless systemd provides one.
        environ: the environment, with `CREDENTIALS_DIRECTORY` if systemd provides anything.

    Raises:
        SettingsError: there is a file that isn't such a key, or that others may read.
    """
    if directory := environ.get("CREDENTIALS_DIRECTORY"):
        credential = Path(directory, NAME)
        if credential.exists():
            return PublisherKey.load_credential(credential)
    return PublisherKey.load_or_create(state / NAME)
