# SPDX-License-Identifier: GPL-3.0-or-later
"""What the four programs share: formats, trust, payloads, torrents, swarms."""
