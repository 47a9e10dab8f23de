# SPDX-License-Identifier: GPL-3.0-or-later
"""What several of the commands for people can be told."""

from __future__ import annotations

import click

from substituter.settings import POLICIES

policy_option = click.option(
    "--policy",
    type=click.Choice(POLICIES),
    help="Whether the swarm and servers race for items, or which of them is used as long as it "
    "doesn't fail. By default what the settings say, and race if they say nothing.",
)
