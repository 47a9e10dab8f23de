# SPDX-License-Identifier: GPL-3.0-or-later
"""ansible/: understood by Ansible, and its documentation complete. `make lint` has ansible-lint."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from narswarm.settings import load
from seeder.settings import Settings as SeederSettings
from substituter.settings import SubstituterSettings
from tests import needs
from tracker.settings import Settings as TrackerSettings

ANSIBLE = Path(__file__).resolve().parents[2] / "ansible"
ROLES = sorted(path.name for path in (ANSIBLE / "roles").iterdir())
SHARED = "narswarm_"
TABLES = {"tracker": TrackerSettings, "seeder": SeederSettings, "substituter": SubstituterSettings}


def _run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name(name)
    if not program.exists():
        needs.missing(f"{name} is not installed")
    path = f"{program.parent}:{os.environ['PATH']}"
    environ = {**os.environ, "PATH": path, "LC_ALL": "C.UTF-8", "NO_COLOR": "1"}
    return subprocess.run(
        [str(program), *arguments],
        cwd=ANSIBLE,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )


def _yaml(path: Path) -> Any:
    if importlib.util.find_spec("yaml") is None:
        needs.missing("ansible-core is not installed")
    yaml = importlib.import_module("yaml")
    return yaml.safe_load(path.read_text()) if path.exists() else {}


def test_the_example_inventory_is_understood() -> None:
    """Its groups are those that the playbook names."""
    done = _run("ansible-playbook", "-i", "inventory.example", "--list-hosts", "site.yml")
    assert done.returncode == 0, done.stderr
    assert "tracker1.example.org" in done.stdout
    assert "no hosts matched" not in done.stderr


@pytest.mark.parametrize("role", ROLES)
def test_options_have_specs(role: str) -> None:
    """A role's arguments are checked before its first task, and documented with their defaults."""
    meta = ANSIBLE / "roles" / role / "meta"
    options = _yaml(meta / "argument_specs.yml")["argument_specs"]["main"]["options"]
    defaults = _yaml(ANSIBLE / "roles" / role / "defaults/main.yml") or {}
    own = {name for name in options if not name.startswith(SHARED)}
    required = {name for name, option in options.items() if option.get("required")}
    assert own - required == set(defaults)
    for name, option in options.items():
        assert option["description"]
        # What is made of other variables isn't a default that could be written down.
        if name in defaults and "{{" not in str(defaults[name]):
            assert option["default"] == defaults[name]


@pytest.mark.parametrize("role", ROLES)
def test_operators_find_each_variable(role: str) -> None:
    """docs/operator.md names every argument of every role."""
    meta = ANSIBLE / "roles" / role / "meta"
    options = _yaml(meta / "argument_specs.yml")["argument_specs"]["main"]["options"]
    text = (ANSIBLE.parent / "docs/operator.md").read_text()
    named = set(re.findall(r"`([a-z_]+)`", text))
    assert sorted(set(options) - named) == []


@pytest.mark.parametrize("table", TABLES)
def test_every_setting_can_be_made(table: str, tmp_path: Path) -> None:
    """What an inventory says reaches the program, texts of any kind as well; null says nothing."""
    settings: Any = TABLES[table]()
    said = {each.name: getattr(settings, each.name) for each in dataclasses.fields(settings)}
    odd = 'a "b" \\ \u00fc 🐧'
    changed: dict[str, Any] = (
        {"title": odd} if table == "tracker" else {"libtorrent": {"user_agent": odd}}
    )
    target = tmp_path / "narswarm.toml"
    variables = {"table": table, "settings": {**said, **changed}, "ansible_managed": "by a test"}
    variables["ansible_python_interpreter"] = sys.executable
    template = ANSIBLE / "roles/common/templates/table.toml.j2"
    arguments = ["-m", "ansible.builtin.template", "-a", f"src={template} dest={target}"]
    extra = ["-e", json.dumps(variables, default=_plain)]
    done = _run("ansible", "localhost", "-i", "localhost,", "-c", "local", *arguments, *extra)
    assert done.returncode == 0, done.stdout + done.stderr
    found: Any = load(TABLES[table], table, file=target, environ={})
    assert found == dataclasses.replace(settings, **changed)


def _plain(value: object) -> object:
    """What an inventory has in the place of a path or a mapping that can't be changed."""
    return dict(value) if isinstance(value, Mapping) else str(value)
