# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of `narswarm.settings`."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from narswarm import settings
from narswarm.errors import ExitCode, SettingsError
from narswarm.settings import describe, load


@dataclass(frozen=True, slots=True)
class Sample:
    """One field of each kind."""

    state: Path = field(default=Path("/var/lib"), metadata={"help": "Where state is kept."})
    name: str = 'no "name"\n'
    port: int = 6881
    ratio: float = 1.5
    dht: bool = True
    trackers: tuple[str, ...] = field(default=(), metadata={"help": "Trackers to ask. " * 8})
    nodes: tuple[str, ...] | None = None
    ports: tuple[int, ...] = (1, 2)
    paths: tuple[Path, ...] = (Path("/a"),)
    quota: int = field(default=10 << 30, metadata={"unit": "bytes", "help": "Bytes to keep."})
    cache: int | None = field(default=None, metadata={"unit": "bytes"})
    wait: float = field(default=90, metadata={"unit": "seconds"})
    interval: int = field(default=1800, metadata={"unit": "seconds"})
    raw: Mapping[str, int | bool | str] = field(
        default_factory=lambda: {"cache_size": 5, "lsd": False, "user agent": 'x"\\'}
    )


@dataclass(frozen=True)
class Needed:
    """A field without a default."""

    file_name: Path
    port: int = 1


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return a path for a file with settings."""
    return tmp_path / "narswarm.toml"


@pytest.fixture(autouse=True)
def default_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let the default file be one that doesn't exist."""
    path = tmp_path / "default.toml"
    monkeypatch.setattr(settings, "DEFAULT_FILE", path)
    return path


def test_defaults() -> None:
    """Without file, variables and flags all fields have their defaults."""
    assert load(Sample, "seeder", environ={}) == Sample()


def test_precedence(file: Path) -> None:
    """A flag goes before a variable, a variable before the file, the file before a default."""
    file.write_text("[seeder]\nport = 1\nname = 'file'\nratio = 0.5\n")
    environ = {"NARSWARM_SEEDER_PORT": "2", "NARSWARM_SEEDER_NAME": "variable"}
    found = load(Sample, "seeder", file=file, environ=environ, flags={"port": 3})
    assert (found.port, found.name, found.ratio, found.dht) == (3, "variable", 0.5, True)


def test_flags_that_were_not_given() -> None:
    """None and the empty list of a repeated flag leave the rest alone; False doesn't."""
    environ = {"NARSWARM_SEEDER_PORT": "2", "NARSWARM_SEEDER_TRACKERS": "http://a"}
    flags = {"port": None, "trackers": (), "dht": False}
    found = load(Sample, "seeder", environ=environ, flags=flags)
    assert (found.port, found.trackers, found.dht) == (2, ("http://a",), False)


def test_which_file(file: Path, default_file: Path) -> None:
    """The file is the one that is named, or that the variable names, or the default one."""
    default_file.write_text("[seeder]\nname = 'default'\n")
    assert load(Sample, "seeder", environ={}).name == "default"
    assert load(Sample, "seeder", environ={"NARSWARM_CONFIG": ""}).name == "default"
    file.write_text("[seeder]\nname = 'variable'\n")
    environ = {"NARSWARM_CONFIG": str(file)}
    assert load(Sample, "seeder", environ=environ).name == "variable"
    other = file.with_name("other.toml")
    other.write_text("[seeder]\nname = 'flag'\n")
    assert load(Sample, "seeder", file=other, environ=environ).name == "flag"


def test_process_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables are those of the process unless others are given."""
    monkeypatch.setenv("NARSWARM_SEEDER_PORT", "77")
    assert load(Sample, "seeder").port == 77


def test_file_values(file: Path) -> None:
    """Each kind of field takes its kind of TOML value."""
    file.write_text(
        """
        [tracker]
        anything = 1
        [seeder]
        state = "/state"
        name = ""
        port = 0
        ratio = 2
        dht = false
        trackers = ["http://a", "udp://b"]
        nodes = []
        ports = [3]
        paths = ["/b", "/c"]
        quota = "1.5 GiB"
        cache = 4096
        wait = 0.25
        interval = "1 h"
        raw = { a = 1, b = true, c = "d" }
        """
    )
    assert load(Sample, "seeder", file=file, environ={}) == Sample(
        state=Path("/state"),
        name="",
        port=0,
        ratio=2.0,
        dht=False,
        trackers=("http://a", "udp://b"),
        nodes=(),
        ports=(3,),
        paths=(Path("/b"), Path("/c")),
        quota=3 << 29,
        cache=4096,
        wait=0.25,
        interval=3600,
        raw={"a": 1, "b": True, "c": "d"},
    )


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("STATE", "/a b", Path("/a b")),
        ("NAME", " as it is ", " as it is "),
        ("NAME", "", ""),
        ("PORT", " -1 ", -1),
        ("RATIO", "1e3", 1000.0),
        ("DHT", "no", False),
        ("DHT", "ON", True),
        ("DHT", "0", False),
        ("TRACKERS", "http://a, udp://b\n http://c,", ("http://a", "udp://b", "http://c")),
        ("TRACKERS", "", ()),
        ("NODES", "", None),
        ("NODES", "a:1", ("a:1",)),
        ("PORTS", "1,2 3", (1, 2, 3)),
        ("PATHS", "/a", (Path("/a"),)),
        ("QUOTA", "10GiB", 10 << 30),
        ("QUOTA", " 1 kB".replace("k", "K"), 1000),
        ("QUOTA", "5", 5),
        ("CACHE", "", None),
        ("CACHE", "0.5 KiB", 512),
        ("WAIT", "250 ms", 0.25),
        ("WAIT", "5 min", 300.0),
        ("INTERVAL", "2 d", 172800),
        (
            "RAW",
            "a=1 b=-2,c=true d=false e=x f==1 g=",
            {"a": 1, "b": -2, "c": True, "d": False, "e": "x", "f": "=1", "g": ""},
        ),
        ("RAW", "", {}),
    ],
)
@pytest.mark.parametrize("source", ["variable", "flag"])
def test_texts(name: str, text: str, value: object, source: str) -> None:
    """Variables and flags that are texts are read as what the field takes."""
    if source == "variable":
        found = load(Sample, "seeder", environ={f"NARSWARM_SEEDER_{name}": text})
    else:
        found = load(Sample, "seeder", environ={}, flags={name.lower(): text})
    assert getattr(found, name.lower()) == value
    assert type(getattr(found, name.lower())) is type(value)


def test_flag_values() -> None:
    """Flags may be given as what they are, as click does."""
    flags: dict[str, object] = {
        "state": Path("~/x"),
        "port": 5,
        "ratio": 1,
        "trackers": ("a", "b"),
        "paths": (Path("/p"),),
        "wait": 3,
    }
    found = load(Sample, "seeder", environ={}, flags=flags)
    assert found.state == Path.home() / "x"
    assert (found.port, found.ratio, found.wait) == (5, 1.0, 3.0)
    assert (found.trackers, found.paths) == (("a", "b"), (Path("/p"),))


SIZE = "a size such as 4096 or '10 GiB'"
TIME = "a time such as 30, '5 min' or '12 h'"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("[seeder]\ntrackers = 3", "seeder.trackers: expected a list of texts, got an integer"),
        ("[seeder]\ntrackers = 'a'", "seeder.trackers: expected a list of texts, got 'a'"),
        (
            "[seeder]\ntrackers = ['a', 1]",
            "seeder.trackers: expected a list of texts, got one with an integer",
        ),
        (
            "[seeder]\nports = [true]",
            "seeder.ports: expected a list of integers, got one with true",
        ),
        ("[seeder]\npaths = ['']", "seeder.paths: expected a list of paths, got one with ''"),
        ("[seeder]\nport = 'x'", "seeder.port: expected an integer, got 'x'"),
        (
            "[seeder]\nport = '" + "x" * 99 + "'",
            f"seeder.port: expected an integer, got '{'x' * 40}'",
        ),
        ("[seeder]\nport = true", "seeder.port: expected an integer, got true"),
        ("[seeder]\nport = 1.0", "seeder.port: expected an integer, got a number"),
        ("[seeder]\nport = 2024-01-01", "seeder.port: expected an integer, got a date or time"),
        ("[seeder]\ndht = 1", "seeder.dht: expected true or false, got an integer"),
        ("[seeder]\nname = {}", "seeder.name: expected a text, got a table"),
        ("[seeder]\nratio = []", "seeder.ratio: expected a number, got a list"),
        ("[seeder]\nratio = nan", "seeder.ratio: expected a number, got nan"),
        ("[seeder]\nratio = false", "seeder.ratio: expected a number, got false"),
        ("[seeder]\nstate = ''", "seeder.state: expected a path, got ''"),
        ("[seeder]\nquota = -1", f"seeder.quota: expected {SIZE}, got -1"),
        ("[seeder]\nquota = 1.5", f"seeder.quota: expected {SIZE}, got a number"),
        ("[seeder]\nquota = '5 s'", f"seeder.quota: expected {SIZE}, got '5 s'"),
        ("[seeder]\nquota = '0.3 B'", f"seeder.quota: expected {SIZE}, got '0.3 B'"),
        ("[seeder]\nquota = '-5'", f"seeder.quota: expected {SIZE}, got '-5'"),
        ("[seeder]\nwait = -0.5", f"seeder.wait: expected {TIME}, got -0.5"),
        ("[seeder]\nwait = '1 GiB'", f"seeder.wait: expected {TIME}, got '1 GiB'"),
        ("[seeder]\ninterval = '100 ms'", f"seeder.interval: expected {TIME}, got '100 ms'"),
        (
            "[seeder]\nraw = 1",
            "seeder.raw: expected a table of integers, texts and true or false, got an integer",
        ),
        (
            "[seeder.raw]\na = 1.5",
            (
                "seeder.raw: expected a table of integers, texts and true or false,"
                " got one with a number"
            ),
        ),
        ("[seeder]\ntrakers = []", "seeder.trakers: no such setting; the nearest is trackers"),
        ("[seder]", "seder: no such table; the nearest is seeder"),
        ("mkmta = 1", "mkmta: no such table; the nearest is mkmeta"),
        ("seeder = 1", "seeder: expected a table, got an integer"),
        ("tracker = [1]", "tracker: expected a table, got a list"),
    ],
)
def test_wrong_files(file: Path, content: str, reason: str) -> None:
    """What is wrong in a file is said with the file, the setting and what it should be."""
    file.write_text(content)
    with pytest.raises(SettingsError) as error:
        load(Sample, "seeder", file=file, environ={})
    assert str(error.value) == f"{file}: {reason}"
    assert error.value.exit_code is ExitCode.SETTINGS


@pytest.mark.parametrize("content", [b"port 1", b"[seeder]\nname = '\xff'"])
def test_files_that_are_no_toml(file: Path, content: bytes) -> None:
    """A file that isn't TOML is said to be so."""
    file.write_bytes(content)
    with pytest.raises(SettingsError) as error:
        load(Sample, "seeder", file=file, environ={})
    assert str(error.value).startswith(f"{file}: is not TOML: ")


def test_files_that_cannot_be_read(tmp_path: Path, default_file: Path) -> None:
    """A file that was named must exist, and any file that exists must be readable."""
    absent = tmp_path / "absent"
    with pytest.raises(SettingsError) as error:
        load(Sample, "seeder", file=absent, environ={})
    assert str(error.value) == f"{absent}: No such file or directory"
    with pytest.raises(SettingsError) as error:
        load(Sample, "seeder", environ={"NARSWARM_CONFIG": str(absent)})
    assert str(error.value) == f"{absent}: No such file or directory"
    default_file.mkdir()
    with pytest.raises(SettingsError) as error:
        load(Sample, "seeder", environ={})
    assert str(error.value) == f"{default_file}: Is a directory"


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("PORT", "x", "expected an integer, got 'x'"),
        ("PORT", "", "expected an integer, got ''"),
        ("PORT", "1.0", "expected an integer, got '1.0'"),
        ("RATIO", "x", "expected a number, got 'x'"),
        ("RATIO", "inf", "expected a number, got inf"),
        ("DHT", "maybe", "expected true or false, got 'maybe'"),
        ("STATE", " ", "expected a path, got ' '"),
        ("PORTS", "1 x", "expected a list of integers, got 'x'"),
        ("QUOTA", "", f"expected {SIZE}, got ''"),
        ("QUOTA", "1 GiBs", f"expected {SIZE}, got '1 GiBs'"),
        ("WAIT", "soon", f"expected {TIME}, got 'soon'"),
        ("RAW", "a", "expected a table of integers, texts and true or false, got 'a'"),
        ("RAW", "=1", "expected a table of integers, texts and true or false, got '=1'"),
        ("PROT", "1", "no such setting; the nearest is NARSWARM_SEEDER_PORT"),
    ],
)
def test_wrong_variables(name: str, text: str, reason: str) -> None:
    """What is wrong with a variable is said with its name."""
    with pytest.raises(SettingsError) as error:
        load(Sample, "seeder", environ={f"NARSWARM_SEEDER_{name}": text})
    assert str(error.value) == f"NARSWARM_SEEDER_{name}: {reason}"


def test_variables_of_others() -> None:
    """Variables of other programs, and others of ours, are none of this program's business."""
    environ = {"NARSWARM_TRACKER_PROT": "x", "NARSWARM_LIBRARY": "x", "SEEDER_PORT": "x"}
    assert load(Sample, "seeder", environ=environ) == Sample()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"port": "x"}, "--port: expected an integer, got 'x'"),
        ({"trackers": 1}, "--trackers: expected a list of texts, got an integer"),
        ({"tracker_url": "x"}, "--tracker-url: no such setting; the nearest is trackers"),
    ],
)
def test_wrong_flags(flags: dict[str, object], message: str) -> None:
    """What is wrong with a flag is said with its name."""
    with pytest.raises(SettingsError) as error:
        load(Sample, "seeder", environ={}, flags=flags)
    assert str(error.value) == message


@dataclass(frozen=True)
class Picky:
    """Refuses values by itself."""

    port: int = 1
    name: str = "a"
    nodes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.port < 1:
            raise SettingsError("port", "is less than 1")
        if not self.name.islower():
            raise SettingsError("seeder.name", "is not small")
        if self.nodes:
            raise SettingsError("nodes", "are too many")


@pytest.mark.parametrize(
    ("content", "environ", "flags", "message"),
    [
        ("port = 0", {}, {}, "{file}: seeder.port: is less than 1"),
        ("name = 'A'", {}, {}, "{file}: seeder.name: is not small"),
        ("port = 2", {"NARSWARM_SEEDER_PORT": "0"}, {}, "NARSWARM_SEEDER_PORT: is less than 1"),
        ("port = 0", {"NARSWARM_SEEDER_PORT": "0"}, {"port": "0"}, "--port: is less than 1"),
        ("", {}, {"nodes": ("x",)}, "--node: are too many"),
    ],
)
def test_what_the_dataclass_refuses(
    file: Path, content: str, environ: dict[str, str], flags: dict[str, object], message: str
) -> None:
    """An error of the dataclass says where the refused value was set."""
    file.write_text(f"[seeder]\n{content}\n")
    with pytest.raises(SettingsError) as caught:
        load(Picky, "seeder", file=file, environ=environ, flags=flags)
    assert str(caught.value) == message.format(file=file)


def test_what_the_dataclass_refuses_by_default() -> None:
    """A default that is refused was set nowhere."""
    bad = make_dataclass("Bad", [("name", str, field(default="A"))], bases=(Picky,), frozen=True)
    with pytest.raises(SettingsError) as caught:
        load(bad, "seeder", environ={})
    assert str(caught.value) == "seeder.name: is not small"


def test_needed(default_file: Path) -> None:
    """A setting without a default must be given; where it can be is said."""
    environ = {"NARSWARM_SEEDER_FILE_NAME": "/x"}
    assert load(Needed, "seeder", environ=environ) == Needed(Path("/x"))
    with pytest.raises(SettingsError) as error:
        load(Needed, "seeder", environ={})
    expected = (
        f"seeder.file_name: is not set; it can be in {default_file}, "
        "NARSWARM_SEEDER_FILE_NAME or --file-name"
    )
    assert str(error.value) == expected


def test_describe() -> None:
    """The description has help, units that people read, and everything commented out."""
    assert describe(Sample, "seeder") == (
        """\
[seeder]

# Where state is kept.
#state = "/var/lib"

#name = "no \\"name\\"\\U0000000a"

#port = 6881

#ratio = 1.5

#dht = true

# Trackers to ask. Trackers to ask. Trackers to ask. Trackers to ask. Trackers to ask. Trackers
# to ask. Trackers to ask. Trackers to ask.
#trackers = []

# Not set by default.
#nodes = []

#ports = [1, 2]

#paths = ["/a"]

# Bytes to keep.
#quota = "10 GiB"

# Not set by default.
#cache = 0

#wait = "90 s"

#interval = "30 min"

#raw = { "cache_size" = 5, "lsd" = false, "user agent" = "x\\"\\\\" }
"""
    )


def test_describe_needed() -> None:
    """A setting without a default is said to be needed."""
    assert describe(Needed, "mkmeta") == (
        '[mkmeta]\n\n# Must be set.\n#file_name = "/"\n\n#port = 1\n'
    )


def test_described_file_is_the_default(file: Path) -> None:
    """A description is a valid file; with its defaults uncommented it changes nothing."""
    text = describe(Sample, "seeder")
    file.write_text(text)
    assert load(Sample, "seeder", file=file, environ={}) == Sample()
    lines = [line.removeprefix("#") if line[:2] != "# " else line for line in text.splitlines()]
    assert "# Where state is kept." in lines
    file.write_text("\n".join(lines))
    assert load(Sample, "seeder", file=file, environ={}) == Sample(nodes=(), cache=0)


@given(
    name=st.text(max_size=20),
    quota=st.integers(0, 1 << 60),
    interval=st.integers(0, 1 << 40),
    ratio=st.floats(allow_nan=False, allow_infinity=False),
)
def test_described_values_read_back(name: str, quota: int, interval: int, ratio: float) -> None:
    """Whatever the defaults are, their description is TOML that gives them back."""
    made = make_dataclass(
        "Made",
        [
            ("name", str, field(default=name)),
            ("quota", int, field(default=quota, metadata={"unit": "bytes"})),
            ("interval", int, field(default=interval, metadata={"unit": "seconds"})),
            ("ratio", float, field(default=ratio)),
        ],
        frozen=True,
    )
    lines = describe(made, "seeder").splitlines()
    table = tomllib.loads("\n".join(line.removeprefix("#") for line in lines))["seeder"]
    assert load(made, "seeder", environ={}, flags=table) == made()
