# SPDX-License-Identifier: GPL-3.0-or-later
"""Offers the items of the local store to the swarm."""
