# SPDX-License-Identifier: GPL-3.0-or-later
"""What all tests start from."""

from __future__ import annotations

import signal

from hypothesis import HealthCheck, settings

# Tests interrupt the programs that they start. A shell that runs the tests in the background has
# SIGINT ignored, and programs would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes says nothing on a machine that others use, too.
settings.register_profile(
    "any-machine",
    settings.default,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("any-machine")
