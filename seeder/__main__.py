# SPDX-License-Identifier: GPL-3.0-or-later
"""`python -m seeder`."""

from __future__ import annotations

from seeder.cli import main

if __name__ == "__main__":
    main()
