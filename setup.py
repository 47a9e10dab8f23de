# SPDX-License-Identifier: GPL-3.0-or-later
"""The native engine of the tracker, which is built where there are a C compiler and Python.h.

Elsewhere the installation goes on without it, and the tracker has its engine in Python. All else
about the package is in pyproject.toml.
"""

from __future__ import annotations

from pathlib import Path

from setuptools import Extension, setup

_SOURCES = Path("tracker/native")

setup(
    ext_modules=[
        Extension(
            "tracker._native",
            sources=sorted(map(str, _SOURCES.glob("*.c"))),
            depends=sorted(map(str, _SOURCES.glob("*.h"))),
            # Python 3.11's stable interface, which later versions have too.
            define_macros=[("Py_LIMITED_API", "0x030B0000")],
            py_limited_api=True,
            extra_compile_args=[
                *("-std=c11", "-O2", "-pthread", "-Wall", "-Wextra", "-fvisibility=hidden"),
                *("-fstack-protector-strong", "-D_FORTIFY_SOURCE=2"),
            ],
            extra_link_args=["-pthread"],
            optional=True,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
