# SPDX-License-Identifier: GPL-3.0-or-later
"""What all tests start from."""

from __future__ import annotations

import signal

# Tests interrupt the programs that they start. A shell that runs the tests in the background has
# SIGINT ignored, and programs would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
