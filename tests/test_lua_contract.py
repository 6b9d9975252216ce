"""The Lua headers are a contract: what they say is compared with the bodies and with calls.py.

One can write a call from a header without reading the body. That is worth something only while
every header is true, so each is parsed here and held against what the script does.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from servers import Server

from redistq import scripts
from redistq.calls import Calls, Command
from redistq.keys import QueueKeys

FOLDER = Path(__file__).resolve().parent.parent / "lua"
VERBS = sorted(path.stem for path in FOLDER.glob("*.lua"))
FRAGMENTS = sorted(path.stem for path in (FOLDER / "lib").glob("*.lua"))
SECTIONS = ["KEYS", "ARGV", "RETURN", "COST", "WHY"]

_SLOT = re.compile(r"^  (\d+) (\w+)(?::.*)?$")
_GROUP = re.compile(r"^  for each [\w ]+ \((\d+)\): (.+)$")


@dataclass
class Header:
    """A script's header as parsed."""

    verb: str = ""
    purpose: str = ""
    sections: dict[str, str] = field(default_factory=dict)
    keys: list[str] = field(default_factory=list)
    argv: list[str] = field(default_factory=list)
    group_size: int = 0
    group: list[str] = field(default_factory=list)


def parse(verb: str) -> Header:
    """The header of a verb; fails when it does not follow the convention."""
    lines = []
    for line in (FOLDER / f"{verb}.lua").read_text(encoding="utf-8").splitlines():
        if not line.startswith("--") or line.startswith("--@"):
            break
        lines.append(line.removeprefix("--").removeprefix(" "))
    header = Header()
    header.verb, _, header.purpose = lines[0].partition(": ")
    section, items = "", {name: [] for name in SECTIONS}
    for line in lines[1:]:
        title, colon, rest = line.partition(":")
        if colon and title in SECTIONS:
            section = title
            header.sections[section] = rest.strip()
        elif line.startswith("  ") and section:
            if line.startswith("   ") or section not in ("KEYS", "ARGV") or not _starts(line):
                items[section][-1:] = [" ".join([*items[section][-1:], line.strip()])]
            else:
                items[section].append(line)
            header.sections[section] += " " + line.strip()
        else:
            pytest.fail(f"{verb}.lua: no part of a header: {line!r}")
    for line in items["KEYS"]:
        match = _SLOT.match(line)
        assert match, f"{verb}.lua: no slot: {line!r}"
        header.keys.append(match[2])
        assert int(match[1]) == len(header.keys), f"{verb}.lua: KEYS are not numbered in order"
    for line in items["ARGV"]:
        assert not header.group, f"{verb}.lua: the repeated group comes last"
        if group := _GROUP.match(line):
            header.group_size = int(group[1])
            header.group = re.split(r", (?![^(]*\))", group[2])
        else:
            match = _SLOT.match(line)
            assert match, f"{verb}.lua: no slot: {line!r}"
            header.argv.append(match[2])
            assert int(match[1]) == len(header.argv), f"{verb}.lua: ARGV are not numbered in order"
    return header


def _starts(line: str) -> bool:
    return bool(re.match(r"^  (\d+ \w|for each )", line))


def body(verb: str) -> str:
    """What the server gets: fragments put in, comments left out."""
    text = scripts.load(verb).text
    return re.sub(r" -- .*$", "", text, flags=re.MULTILINE)


def includes(path: Path) -> list[str]:
    """The fragments a file names."""
    return re.findall(r"^\s*--\s*@\s*include\s+(\S+)", path.read_text(encoding="utf-8"), re.M)


# -- headers and bodies --------------------------------------------------------------------------


@pytest.mark.parametrize("verb", VERBS)
def test_header_has_every_part_in_order(verb: str) -> None:
    """A header names its file, says its purpose in one line, and has all five parts in order."""
    header = parse(verb)
    assert header.verb == verb
    assert header.purpose.endswith(".")
    assert list(header.sections) == SECTIONS
    for name in ("RETURN", "COST", "WHY"):
        assert header.sections[name], f"{name} says nothing"


@pytest.mark.parametrize("verb", VERBS)
def test_every_key_and_argument_is_documented_and_read(verb: str) -> None:
    """The fixed KEYS and ARGV slots of header and body are the same: none unread, none unsaid."""
    header, text = parse(verb), body(verb)
    keys = {int(n) for n in re.findall(r"KEYS\[(\d+)\]", text)}
    assert keys == set(range(1, len(header.keys) + 1))
    argv = {int(n) for n in re.findall(r"ARGV\[(\d+)\]", text)}
    assert argv == set(range(1, len(header.argv) + 1))


@pytest.mark.parametrize("verb", VERBS)
def test_repeated_group_matches_the_stride_of_the_body(verb: str) -> None:
    """A repeated group has as many names as it says, and the body steps and reads just so far."""
    header, text = parse(verb), body(verb)
    assert len(header.group) == header.group_size
    loops = re.findall(r"for at = (\d+), #ARGV(?:, (\d+))? do", text)
    if not header.group:
        assert "#ARGV" not in text
        return
    assert loops, "the group is never read"
    for start, stride in loops:
        assert int(start) == len(header.argv) + 1
        assert int(stride or 1) == header.group_size
    offsets = {int(n) for n in re.findall(r"ARGV\[at \+ (\d+)\]", text)}
    if "ARGV[at]" in text:
        offsets.add(0)
    assert offsets == set(range(header.group_size))


@pytest.mark.parametrize("verb", VERBS)
def test_only_safe_commands_are_used(verb: str) -> None:
    """No scan of the keyspace, no shebang (Redis 6.2 refuses it), no payload decoded by cjson."""
    text = body(verb)
    calls = r"(?:redis\.p?call\(|redis\.call, |aside[(,]|undoing\(|look\([^,]+,)\s*'([A-Z]+)'"
    commands = {name.upper() for name in re.findall(calls, text)}
    assert not commands & {"KEYS", "SCAN", "HSCAN", "SSCAN", "ZSCAN", "SMEMBERS", "FLUSHDB"}
    assert "#!" not in (FOLDER / f"{verb}.lua").read_text(encoding="utf-8")
    # Options and errors are our own small JSON; a payload or a result would come out changed.
    decoded = set(re.findall(r"cjson\.decode\b[^\n]*", text))
    if "if field == 'error'" in text or "== 'error' and" in text:
        decoded.discard("cjson.decode, value)")
    assert decoded <= {"cjson.decode, opts)"}


@pytest.mark.parametrize("verb", VERBS)
def test_unpack_is_bounded(verb: str) -> None:
    """Every unpack is of a fixed list or between bounds: Lua's stack ends at 8,000 values."""
    for arguments in re.findall(r"unpack\(([^)]*)\)", body(verb)):
        bounded = arguments.count(",") == 2
        fixed = re.search(rf"local {arguments} = \{{ '", body(verb)) or arguments == "fields"
        assert bounded or fixed, f"unpack({arguments})"


@pytest.mark.parametrize("verb", VERBS)
def test_whole_lines_of_comments_are_all_that_is_stripped(verb: str) -> None:
    """No string in a script holds what the loader would take for a comment or an include."""
    assert "--@include" not in scripts.load(verb).text
    for line in scripts.load(verb).text.splitlines():
        assert not line.lstrip().startswith("--")


# -- fragments -----------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", VERBS)
def test_every_include_exists_and_is_written_as_the_loader_reads_it(verb: str) -> None:
    """An include names a fragment there is, each only once, in the one spelling that works."""
    path = FOLDER / f"{verb}.lua"
    named = includes(path)
    assert named == re.findall(r"^--@include (\w+)$", path.read_text(encoding="utf-8"), re.M)
    assert set(named) <= set(FRAGMENTS)
    assert len(named) == len(set(named))


def test_every_fragment_is_used() -> None:
    """No fragment lies about unused."""
    used = {name for verb in VERBS for name in includes(FOLDER / f"{verb}.lua")}
    assert used == set(FRAGMENTS)


@pytest.mark.parametrize("fragment", FRAGMENTS)
def test_fragment_says_what_each_function_promises(fragment: str) -> None:
    """A fragment is functions, each below a comment that begins with its call; no includes."""
    path = FOLDER / "lib" / f"{fragment}.lua"
    lines = path.read_text(encoding="utf-8").splitlines()
    assert not includes(path), "the loader does not look into fragments"
    assert lines[0].startswith("-- ")
    functions = [i for i, line in enumerate(lines) if line.startswith("local function ")]
    assert functions
    for at in functions:
        name, parameters = re.match(r"local function (\w+)\(([^)]*)\)", lines[at]).groups()
        first = at
        while first and lines[first - 1].startswith("--"):
            first -= 1
        comment = " ".join(line.removeprefix("--").strip() for line in lines[first:at])
        promised = re.match(rf"{name}\(([^)]*)\):", comment)
        assert promised, f"the comment of {name} does not begin with its call"
        words = promised[1].replace(" ", "").split(",")
        assert words == parameters.replace(" ", "").split(",") or words[-1] == "..."


@pytest.mark.parametrize("verb", VERBS)
def test_what_fragments_take_from_around_them_is_there(verb: str) -> None:
    """The capital names in a fragment's functions are locals of every script that calls them.

    Otherwise they would be globals, which a server refuses, and only on the path that reads them.
    """
    text = (FOLDER / f"{verb}.lua").read_text(encoding="utf-8")
    own = re.sub(r"--.*", "", text)
    functions: dict[str, tuple[str, str]] = {}
    for name in includes(FOLDER / f"{verb}.lua"):
        code = (FOLDER / "lib" / f"{name}.lua").read_text(encoding="utf-8")
        code = re.sub(r"'[^']*'", "''", re.sub(r"--.*", "", code))
        assert not re.search(r"\b(KEYS|ARGV)\[", code), "slots are the scripts' business"
        for function in re.split(r"^local function ", code, flags=re.M)[1:]:
            functions[function[: function.index("(")]] = (name, function)
    called, code = set(), own
    while found := {f for f in functions if re.search(rf"\b{f}\(", code)} - called:
        called |= found
        code = "\n".join(functions[f][1].partition(")")[2] for f in found)
    for function in called:
        fragment, code = functions[function]
        above = text[: text.index(f"--@include {fragment}\n")]
        there = {
            word
            for names in re.findall(r"^local ([A-Z][A-Z_, ]*) =", above, re.M)
            for word in re.split(r",\s*", names)
        }
        wanted = set(re.findall(r"\b[A-Z][A-Z_]{2,}\b", code))
        assert wanted <= there, f"{function} needs {sorted(wanted - there)}"


# -- the README ----------------------------------------------------------------------------------


def test_the_readme_knows_every_key_verb_and_field() -> None:
    """lua/README.md lists every verb, every kind of key, and every field that scripts write."""
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1] for line in readme.splitlines() if line.startswith("| `")]
    named = {word for row in rows for word in re.findall(r"`([^`]+)`", row)}
    assert set(VERBS) <= named
    keys = QueueKeys("tasks")
    prefixes = {getattr(keys, f.name) for f in dataclasses.fields(keys) if f.init is False}
    missing = {
        prefix
        for prefix in prefixes - {keys.channel}
        if not any(name == prefix or name.startswith(prefix) for name in named)
    }
    assert not missing
    assert f"`{keys.channel}`" in readme
    text = "".join(body(verb) for verb in ("settle", "park", "recover", "replay"))
    written = re.findall(
        r"'H(?:SET|SETNX)', (?:record|TASK \.\. id),([^\n]+(?:\n {8,}[^\n]+)*)", text
    )
    fields = {field for part in written for field in re.findall(r"'([a-z_]+)',", part)}
    assert {"state", "from", "parked_ms", "result"} <= fields
    assert fields - {"delayed", "failed"} <= named  # those two are values


# -- servers -------------------------------------------------------------------------------------


def test_every_script_loads_under_its_sha(every_server: Server) -> None:
    """Every server takes every script, under the SHA1 that the calls will name."""
    with every_server.client() as client:
        for verb in VERBS:
            script = scripts.load(verb)
            assert client.script_load(script.text) == script.sha
            assert scripts.text_of(script.sha) == script.text


def test_names_are_the_files() -> None:
    """The loader knows every verb there is."""
    assert scripts.names() == VERBS


# -- calls ---------------------------------------------------------------------------------------

CONSUMER = "the-consumer"
LEADING = {
    "group": "the-group",
    "history_max": "123",
    "dead_ttl": "456",
    "channel": "wake:q",
    "consumer": CONSUMER,
    "lease": 789,
    "grace": 321,
    "ttl": 654,
}
BUILDERS: dict[str, Callable[[Calls, int], Command]] = {
    "adopt": lambda c, n: c.adopt(789),
    "beat": lambda c, n: c.beat(789, [("w", "=")] * n),
    "browse": lambda c, n: c.browse("pending", 10),
    "cancel": lambda c, n: c.cancel(["x"] * n, 654),
    "drop": lambda c, n: c.drop(["x"] * n, "x", 654),
    "enqueue": lambda c, n: c.enqueue(["x"] * 5 * n),
    "group": lambda c, n: c.create_group(),
    "hold": lambda c, n: c.hold("x", "x", 654, 321),
    "open_batch": lambda c, n: c.open_batch("b", "x", 3, 654),
    "park": lambda c, n: c.park(CONSUMER, 321, [("x",) * 3] * n),
    "promote": lambda c, n: c.promote(),
    "purge": lambda c, n: c.purge(["x"] * n),
    "quarantine": lambda c, n: c.quarantine(CONSUMER, b"1-1", "why"),
    "recover": lambda c, n: c.recover(2, consumer=CONSUMER, started=["1-1"] * n),
    "rights": lambda c, n: c.rights(CONSUMER),
    "register": lambda c, n: c.register(CONSUMER, 789, {str(i): i for i in range(n)}),
    "release": lambda c, n: c.release(CONSUMER, [b"1-1"] * n),
    "replay": lambda c, n: c.replay(["x"] * n),
    "retry": lambda c, n: c.retry(CONSUMER, [("x",) * 9] * n),
    "settle": lambda c, n: c.settle(CONSUMER, [("x",) * 11] * n),
    "snapshot": lambda c, n: c.snapshot(),
    "tick": lambda c, n: c.tick(
        "", [("x", "1")] * n, workers=1, events=1, running=1, dead=1, batches=1
    ),
    "watch": lambda c, n: c.watch("x"),
}


@pytest.mark.parametrize("verb", VERBS)
def test_calls_are_built_as_the_header_says(verb: str) -> None:
    """calls.py sends the documented keys in the documented order, and the arguments likewise."""
    assert verb in BUILDERS, f"say in BUILDERS how a call of {verb} is built"
    header, keys = parse(verb), QueueKeys("q")
    calls = Calls(keys, "the-group", history_max=123, dead_ttl_ms=456)
    known = {f.name: getattr(keys, f.name) for f in dataclasses.fields(keys)}
    for repeated in (0, 1, 3) if header.group else (0,):
        command = BUILDERS[verb](calls, repeated)
        assert command[:3] == ("EVALSHA", scripts.load(verb).sha, len(header.keys))
        sent, argv = command[3 : 3 + command[2]], command[3 + command[2] :]
        assert list(sent) == [known[name] for name in header.keys]
        assert len(argv) == len(header.argv) + repeated * header.group_size
        for name, value in zip(header.argv, argv, strict=False):
            if name in LEADING:
                assert value == LEADING[name], name


def test_one_task_is_enqueued_like_many() -> None:
    """The call for a single task is the same as the bulk call with one."""
    calls = Calls(QueueKeys("q"))
    one = calls.enqueue_one("id", "name", b"1", "", "+5")
    assert one == calls.enqueue(["id", "name", b"1", "", "+5"])
