# SPDX-License-Identifier: GPL-3.0-or-later
"""The command `substituter`.

guix-daemon may run it in guix's place (`GUIX=`), so every command that isn't its own goes to the
real guix; and it must start fast, so click is only loaded for people.
"""

from __future__ import annotations

import gc
import os
import sys

OURS = ("narinfo", "weather", "challenge", "doctor", "install", "uninstall", "gateway")


def main() -> None:
    """Run the command line."""
    arguments = sys.argv[1:]
    first = arguments[0] if arguments else ""
    if first == "substitute":
        # Nothing of what is loaded goes away again; to look for that took a quarter of the start.
        gc.disable()
    from narswarm.errors import NarswarmError  # noqa: PLC0415 -- see above

    try:
        if first == "substitute":
            from substituter import helper  # noqa: PLC0415 -- only what is needed

            helper.run(arguments[1:], os.environ)
        elif first and first not in OURS and not first.startswith("-"):
            from substituter import realguix  # noqa: PLC0415

            guix = realguix.find(realguix.configured(os.environ), os.environ)
            realguix.hand_over(guix, arguments, os.environ)
    except NarswarmError as error:
        print(f"substituter: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(error.exit_code)
    from substituter.commands import main as people  # noqa: PLC0415

    people()
