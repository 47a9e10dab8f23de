# SPDX-License-Identifier: GPL-3.0-or-later
"""Takes the place of `guix substitute` under guix-daemon."""
