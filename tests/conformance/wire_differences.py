# SPDX-License-Identifier: GPL-3.0-or-later
"""Where other trackers answer the wire cases otherwise than ours, and why ours does what it does.

The tests look at both sides: an answer that isn't here has to be ours, and what is here has to be
what the other one still says. `docs/tracker-differences.md` is made of this:

    python3 -m tests.conformance.wire_differences > docs/tracker-differences.md
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import NamedTuple

from tests.conformance.wire_cases import CASES

OPEN = "opentracker"
NPM = "bittorrent-tracker"
ORACLES = (OPEN, NPM)


class Difference(NamedTuple):
    """What another tracker says.

    Attributes:
        case: its name.
        tracker: one of `ORACLES`.
        over: the protocol, or empty for all that the case is about.
        says: what is observed.
    """

    case: str
    tracker: str
    over: str
    says: str


class Reason(NamedTuple):
    """Why our tracker is different."""

    why: str
    differences: tuple[Difference, ...]


def _because(why: str, *differences: tuple[str, str, str, str]) -> Reason:
    return Reason(why, tuple(Difference(*each) for each in differences))


REASONS = (
    _because(
        "A client gains nothing from connecting to itself.",
        ("the asker among the peers", OPEN, "", "0 seeds, 1 leecher, peers 1"),
        ("the asker among the peers", NPM, "", "0 seeds, 1 leecher, peers 1"),
    ),
    _because(
        "A seed has nothing to get from a seed, and neither has who wants no more (BEP 21).",
        ("a seed asks for peers", OPEN, "", "2 seeds, 1 leecher, peers 1 2"),
        ("a seed asks for peers", NPM, "", "2 seeds, 1 leecher, peers 1 2"),
        ("a paused peer asks for peers", OPEN, "", "1 seed, 2 leechers, peers 1 2"),
        ("a paused peer asks for peers", NPM, "", "1 seed, 2 leechers, peers 1 2"),
    ),
    _because(
        "Who leaves needs no peers.",
        ("stopped", NPM, "", "0 seeds, 1 leecher, peers 2"),
        ("a stranger stops", NPM, "", "0 seeds, 1 leecher, peers 1"),
        ("a seed stops", NPM, "", "1 seed, 0 leechers, peers 2"),
    ),
    _because(
        "`completed` says that a peer has all, also of a client that doesn't know what is left.",
        ("completed with something left", OPEN, "", "0 seeds, 1 leecher, no peers"),
    ),
    _because(
        "A peer is what its last announce says.",
        ("a seed that is no longer whole", NPM, "", "1 seed, 0 leechers, no peers"),
    ),
    _because(
        "Numbers have 64 bits.",
        ("left of more than 4 GiB", OPEN, "http", "1 seed, 0 leechers, no peers"),
    ),
    _because(
        "Who could name another address could aim a swarm's connections at it.",
        ("another address is named", NPM, "udp", "0 seeds, 2 leechers, no peers"),
    ),
    _because(
        "An event that nobody knows yet is an ordinary announce.",
        ("an event that nobody knows", NPM, "http", "failure"),
        ("an event that nobody knows", NPM, "udp", "silence"),
        ("event 5", NPM, "", "silence"),
        ("event 2 to the power of 31", NPM, "", "silence"),
    ),
    _because(
        "Nobody can connect to port 0, which some clients send as they stop.",
        ("port 0", OPEN, "", "1 peers"),
        ("port 0", NPM, "udp", "1 peers"),
        ("stopped at port 0", NPM, "http", "failure"),
        ("stopped at port 0", NPM, "udp", "0 seeds, 1 leecher, peers 1"),
    ),
    _because(
        "What is missing or no number is refused; a guess would be a peer that nobody "
        "reaches, or a seed that is none.",
        ("no peer_id", OPEN, "", "0 seeds, 1 leecher, no peers"),
        ("no port", OPEN, "", "0 seeds, 1 leecher, peers 0"),
        ("port -1", OPEN, "", "0 seeds, 1 leecher, peers 65535"),
        ("a name in capitals", OPEN, "", "0 seeds, 1 leecher, peers 0"),
        ("left of letters", OPEN, "", "1 seed, 0 leechers, no peers"),
        ("left of letters", NPM, "", "0 seeds, 1 leecher, no peers"),
        ("numwant of letters", NPM, "", "0 seeds, 1 leecher, no peers"),
    ),
    _because(
        "A client gets as many peers as it wants, 50 if it doesn't say, 200 at most.",
        ("0 peers are wanted", NPM, "", "2 peers"),
        ("no number is wanted", OPEN, "udp", "100 peers"),
        ("no number is wanted", NPM, "udp", "82 peers"),
        ("-1 peers are wanted", NPM, "http", "0 peers"),
        ("-1 peers are wanted", NPM, "udp", "82 peers"),
        ("-1 peers are wanted", OPEN, "udp", "100 peers"),
        ("2147483647 peers are wanted", NPM, "", "82 peers"),
    ),
    _because(
        "Of a repeated parameter the first counts.",
        ("port twice", OPEN, "", "0 seeds, 1 leecher, peers 3"),
        ("port twice", NPM, "", "failure"),
        ("left twice", OPEN, "", "1 seed, 0 leechers, no peers"),
        ("event twice", OPEN, "", "0 seeds, 0 leechers, no peers"),
        ("event twice", NPM, "", "failure"),
        ("numwant twice", OPEN, "", "0 seeds, 2 leechers, peers 2"),
        ("numwant twice", NPM, "", "0 seeds, 2 leechers, peers 2"),
    ),
    _because(
        "Leechers ask again soon, as a download takes seconds; seeds are many and change little.",
        ("a leecher's interval", OPEN, "", "about 1800 s"),
        ("a leecher's interval", NPM, "", "about 600 s"),
        ("a seed's interval", NPM, "", "about 600 s"),
    ),
    _because(
        "A client takes a scrape without what it asked for as broken.",
        ("scrape of an unknown infohash", OPEN, "http", "nothing"),
        (
            "scrape of a known and an unknown infohash",
            OPEN,
            "http",
            "0 seeds 1 leecher 0 downloads; nothing",
        ),
        ("scrape of one that isn't listed", OPEN, "http", "nothing"),
    ),
    _because(
        "Infohashes are bytes and no text; the keys of bittorrent-tracker are something else.",
        ("scrape", NPM, "http", "entries of other infohashes"),
        ("scrape of an unknown infohash", NPM, "http", "entries of other infohashes"),
        ("scrape of two infohashes", NPM, "http", "entries of other infohashes"),
        ("scrape of a known and an unknown infohash", NPM, "http", "entries of other infohashes"),
        ("a download", NPM, "http", "entries of other infohashes"),
        ("a download that is told twice", NPM, "http", "entries of other infohashes"),
        (
            "a download that is told once more after a stop",
            NPM,
            "http",
            "entries of other infohashes",
        ),
        (
            "nothing is left, without an event, in a scrape",
            NPM,
            "http",
            "entries of other infohashes",
        ),
        ("a seed says completed", NPM, "http", "entries of other infohashes"),
        ("a seed from the beginning in a scrape", NPM, "http", "entries of other infohashes"),
        ("paused in a scrape", NPM, "http", "entries of other infohashes"),
        ("scrape over IPv6", NPM, "http", "entries of other infohashes"),
        ("scrape of one that isn't listed", NPM, "http", "entries of other infohashes"),
    ),
    _because(
        "Keys of a dictionary are sorted (BEP 3).",
        (
            "scrape of two infohashes",
            OPEN,
            "http",
            "out of order: 0 seeds 1 leecher 0 downloads; 1 seed 0 leechers 0 downloads",
        ),
    ),
    _because(
        "`downloaded` is how many peers completed a download: not how many seeds there "
        "are, and not counted for a seed.",
        ("scrape", NPM, "udp", "1 seed 1 leecher 1 download"),
        (
            "scrape of two infohashes",
            NPM,
            "udp",
            "0 seeds 1 leecher 0 downloads; 1 seed 0 leechers 1 download",
        ),
        (
            "a download that is told once more after a stop",
            NPM,
            "udp",
            "1 seed 1 leecher 1 download",
        ),
        (
            "nothing is left, without an event, in a scrape",
            NPM,
            "udp",
            "1 seed 0 leechers 1 download",
        ),
        ("a seed says completed", NPM, "udp", "1 seed 0 leechers 1 download"),
        ("a seed from the beginning in a scrape", NPM, "udp", "1 seed 0 leechers 1 download"),
        ("a seed says completed", OPEN, "", "1 seed 0 leechers 1 download"),
    ),
    _because(
        "Answers over UDP have no infohashes in them, so each that is asked for has its place.",
        ("scrape of one infohash twice", NPM, "udp", "1 entries"),
    ),
    _because(
        "Both protocols take as many infohashes as UDP has room for.",
        ("scrape of 74", OPEN, "http", "64 entries"),
        ("scrape of 75", OPEN, "http", "64 entries"),
        ("scrape of 75", OPEN, "udp", "75 entries"),
        ("scrape of 75", NPM, "", "75 entries"),
    ),
    _because(
        "The list of all that is tracked is the operator's.",
        ("scrape of none", OPEN, "", "an answer"),
        ("scrape of none", NPM, "", "an answer"),
    ),
    _because(
        "Only what is whole is asked for.",
        ("scrape of half an infohash", OPEN, "", "action 2, 20 bytes"),
        ("scrape of half an infohash", NPM, "", "silence"),
        ("scrape of one and a half", OPEN, "", "action 2, 32 bytes"),
        ("scrape of one and a half", NPM, "", "silence"),
    ),
    _because(
        "IPv6 is served; Debian's opentracker was built without.",
        ("IPv6", OPEN, "", "no IPv6"),
        ("IPv6 peers of an IPv6 client", OPEN, "", "no IPv6"),
        ("an IPv6 client, and an IPv4 peer", OPEN, "", "no IPv6"),
        ("an IPv4 client, and an IPv6 peer", OPEN, "", "no IPv6"),
        ("scrape over IPv6", OPEN, "", "no IPv6"),
    ),
    _because(
        "Peers over UDP have the length of the asker's family (BEP 15).",
        ("IPv6 peers of an IPv6 client", NPM, "udp", "0 seeds, 2 leechers, no peers"),
        ("an IPv6 client, and an IPv4 peer", NPM, "udp", "0 seeds, 2 leechers, peers broken"),
    ),
    _because(
        "Who is refused learns why, and when to come back (BEP 31).",
        ("an infohash that isn't listed", OPEN, "http", "failure"),
        ("an infohash that isn't listed", OPEN, "udp", "action 1, 8 bytes"),
        ("an infohash that isn't listed", NPM, "http", "failure"),
        ("the form of a failure", OPEN, "", "action 1, no text"),
    ),
    _because(
        "Packing peers is the client's choice; it is the default (BEP 23).",
        ("no compact", NPM, "", "dictionaries of ip peer_id port"),
        ("compact=0", OPEN, "", "status 400"),
        ("compact=0 and no_peer_id", OPEN, "", "status 400"),
        ("compact=0 and no_peer_id", NPM, "", "dictionaries of ip peer_id port"),
    ),
    _because(
        "Counts and the asker's own address (BEP 24) are in each reply.",
        ("external ip", OPEN, "", "not told"),
        ("external ip", NPM, "", "not told"),
        ("keys of a reply", OPEN, "", "complete downloaded incomplete interval min_interval peers"),
        ("keys of a reply", NPM, "", "complete incomplete interval peers peers6"),
        ("keys of a reply to a stop", OPEN, "", "complete incomplete interval min_interval peers"),
        ("keys of a reply to a stop", NPM, "", "complete incomplete interval peers peers6"),
    ),
    _because(
        "A reply has a type.",
        ("type of a reply", NPM, "", "status 200, no type"),
    ),
    _because(
        "A byte stands for itself unless it begins a complete escape or separates parameters.",
        ("reserved characters as they are", OPEN, "", "status 400"),
        ("reserved characters as they are", NPM, "", "failure"),
        ("plus signs as they are", NPM, "", "0 seeds, 1 leecher, no peers"),
        ("an escape of no number", OPEN, "", "status 400"),
        ("half an escape at the end", OPEN, "", "status 400"),
    ),
    _because(
        "There is one path to announce at, and 404 for what isn't there.",
        ("an unknown path", NPM, "", "failure"),
        ("a slash after announce", OPEN, "", "0 seeds, 1 leecher, no peers"),
        ("a slash after announce", NPM, "", "failure"),
        ("announce.php", OPEN, "", "0 seeds, 1 leecher, no peers"),
        ("announce.php", NPM, "", "failure"),
        ("a key in the path", NPM, "", "failure"),
        ("two slashes before announce", OPEN, "", "0 seeds, 1 leecher, no peers"),
        ("two slashes before announce", NPM, "", "failure"),
    ),
    _because(
        "Methods and targets are HTTP's.",
        ("a whole address as the target", OPEN, "", "status 400"),
        ("a whole address as the target", NPM, "", "failure"),
        ("HEAD", OPEN, "", "status 400, 31 bytes"),
        ("HEAD makes a peer", OPEN, "", "0 seeds, 1 leecher, no peers"),
        ("POST", OPEN, "", "status 400"),
        ("POST", NPM, "", "0 seeds, 1 leecher, no peers"),
    ),
    _because(
        "Who didn't prove its address gets nothing, so that nobody else can be sent anything.",
        ("connect with a connection id", NPM, "", "action 0, 16 bytes"),
        ("announce with the magic number", OPEN, "", "failure"),
        ("announce with the magic number", NPM, "", "0 seeds, 1 leecher, no peers"),
        ("announce with the id 0", OPEN, "", "failure"),
        ("announce with an id that is one bit off", OPEN, "", "failure"),
        ("announce with another address's id", OPEN, "", "failure"),
        ("announce with another address's id", NPM, "", "0 seeds, 1 leecher, no peers"),
        ("scrape with the id 0", OPEN, "", "failure"),
    ),
    _because(
        "Clients show a failure reason, and of a status only that it isn't 200.",
        ("no query", OPEN, "", "status 400"),
        ("an empty info_hash", OPEN, "", "status 400"),
        ("info_hash of 19 bytes", OPEN, "", "status 400"),
        ("info_hash of 21 bytes", OPEN, "", "status 400"),
        ("info_hash of 32 bytes", OPEN, "", "status 400"),
        ("info_hash in hexadecimal", OPEN, "", "status 400"),
        ("two infohashes", OPEN, "", "status 400"),
        ("an empty peer_id", OPEN, "", "status 400"),
        ("peer_id of 19 bytes", OPEN, "", "status 400"),
        ("peer_id of 21 bytes", OPEN, "", "status 400"),
        ("an empty port", OPEN, "", "status 400"),
        ("a port of letters", OPEN, "", "status 400"),
        ("port 65536", OPEN, "", "status 400"),
        ("numwant of letters", OPEN, "", "status 400"),
        ("scrape of an infohash of 19 bytes", OPEN, "", "status 400"),
        ("scrape of one that is right and one that is short", OPEN, "", "status 400"),
    ),
)


def differences() -> dict[tuple[str, str, str], str]:
    """What others say, by case, tracker and protocol.

    Raises:
        AssertionError: a difference is listed twice, is none, or is of no case.
    """
    found: dict[tuple[str, str, str], str] = {}
    cases = {case.name: case for case in CASES}
    for each in (each for reason in REASONS for each in reason.differences):
        assert each.case in cases, f"there is no case {each.case!r}"
        case = cases[each.case]
        for protocol in [each.over] if each.over else case.over:
            key = (each.case, each.tracker, protocol)
            assert protocol in case.over, f"{key} is asked by no case"
            assert key not in found, f"{key} is listed twice"
            assert each.says != case.ours(protocol), f"{key} is no difference"
            found[key] = each.says
    return found


_HEAD = """\
# Where the tracker differs from others

`tests/conformance/test_tracker_oracles.py` puts {cases} questions to this tracker (with its native
engine, and with Python's), to Debian's `opentracker` and to the server of npm's
`bittorrent-tracker` {version}. Many are asked over HTTP and over UDP, which makes {asked}; in
{same} all of them say the same. The rest is below, with the reason why this tracker does what it
does; an empty field says the same as this tracker. The suite fails when a difference isn't here,
and when one that is here is gone.

Not compared: which of many peers are told, the texts of errors, and by how much intervals vary.
That a tracker tells clients about themselves is left out everywhere but in the case about it.
This tracker is asked with `--open`, but with an infohash that isn't listed where it says so.
"""


def render(version: str) -> str:
    """The page of all differences.

    Args:
        version: of npm's package.
    """
    found = differences()
    asked = [(case.name, over) for case in CASES for over in case.over]
    same = sum(all((*each[:1], name, each[1]) not in found for name in ORACLES) for each in asked)
    head = _HEAD.format(cases=len(CASES), asked=len(asked), same=same, version=version)
    return head + "".join(f"\n{part}" for reason in REASONS for part in _section(reason))


def _section(reason: Reason) -> Iterator[str]:
    yield f"**{reason.why}**\n"
    table = "| asked | over | this tracker | opentracker | bittorrent-tracker |\n"
    table += "|---|---|---|---|---|\n"
    named = {each.case for each in reason.differences}
    said = {
        (each.case, each.tracker, over): each.says
        for each in reason.differences
        for over in ([each.over] if each.over else ("http", "udp"))
    }
    for case in (case for case in CASES if case.name in named):
        rows = {
            over: [case.ours(over), *(said.get((case.name, name, over), "") for name in ORACLES)]
            for over in case.over
        }
        rows = {over: row for over, row in rows.items() if any(row[1:])}
        if len(rows) == 2 and rows["http"] == rows["udp"]:
            rows = {"both": rows["http"]}
        for over, row in rows.items():
            name = over if over == "both" else over.upper()
            table += f"| {' | '.join([case.name, name, *row])} |\n".replace("  |", " |")
    yield table


if __name__ == "__main__":
    from tests.conformance.wire_trackers import npm_version

    sys.stdout.write(render(npm_version()))
