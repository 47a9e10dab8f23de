# SPDX-License-Identifier: GPL-3.0-or-later
"""A BitTorrent tracker with an index from NAR hash to torrents."""
