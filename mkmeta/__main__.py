# SPDX-License-Identifier: GPL-3.0-or-later
"""`python -m mkmeta`."""

from __future__ import annotations

from mkmeta.cli import main

if __name__ == "__main__":
    main()
