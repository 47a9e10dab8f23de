# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes the canonical BitTorrent metadata of a store item."""
