"""The Lua headers are a contract: calls are made of them, and they are compared with the bodies.

A call is written from a header without reading the body. That is worth something only while every
header is true, so each is held against what the script does.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from support.servers import Server

from redistq.protocol import scripts
from redistq.protocol.commands import Command, Commands
from redistq.protocol.keys import QueueKeys
from redistq.protocol.scripts import QueueScripts

FOLDER = Path(__file__).resolve().parents[2] / "lua"
VERBS = sorted(path.stem for path in FOLDER.glob("*.lua"))
FRAGMENTS = sorted(path.stem for path in (FOLDER / "lib").glob("*.lua"))


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
    """A header names its file, says its purpose in one line, and each of its parts says something;
    its keys are keys of a queue."""
    header = scripts.header_of(verb)
    assert header.purpose.endswith(".")
    for name in ("RETURN", "COST", "WHY"):
        assert header.parts[name], f"{name} says nothing"
    assert set(header.keys) <= set(QueueKeys.__slots__)


@pytest.mark.parametrize("verb", VERBS)
def test_every_key_and_argument_is_documented_and_read(verb: str) -> None:
    """The fixed KEYS and ARGV slots of header and body are the same: none unread, none unsaid."""
    header, text = scripts.header_of(verb), body(verb)
    keys = {int(n) for n in re.findall(r"KEYS\[(\d+)\]", text)}
    assert keys == set(range(1, len(header.keys) + 1))
    argv = {int(n) for n in re.findall(r"ARGV\[(\d+)\]", text)}
    assert argv == set(range(1, len(header.args) + 1))


@pytest.mark.parametrize("verb", VERBS)
def test_repeated_values_match_the_stride_of_the_body(verb: str) -> None:
    """The body steps and reads just so far as the header repeats values."""
    header, text = scripts.header_of(verb), body(verb)
    loops = re.findall(r"for at = (\d+), #ARGV(?:, (\d+))? do", text)
    if not header.repeated:
        assert "#ARGV" not in text
        return
    assert loops, "the repeated values are never read"
    for start, stride in loops:
        assert int(start) == len(header.args) + 1
        assert int(stride or 1) == len(header.repeated)
    offsets = {int(n) for n in re.findall(r"ARGV\[at \+ (\d+)\]", text)}
    if "ARGV[at]" in text:
        offsets.add(0)
    assert offsets == set(range(len(header.repeated)))


GOOD = """\
-- verb: what it is for.
-- KEYS:
--   1 stream
-- ARGV:
--   1 group
--   2 limit: most of them,
--     on two lines
--   for each task (2): id, name (what it
--     is called, or none)
-- RETURN: what comes back
-- COST: one command
-- WHY: the reason
local x = 1
"""


def test_a_header_is_read() -> None:
    """Slots by name, repeated values with their explanations, the rest as text on one line."""
    header = scripts.parse("verb", GOOD)
    assert (header.verb, header.purpose) == ("verb", "what it is for.")
    assert (header.keys, header.args) == (("stream",), ("group", "limit"))
    assert header.repeated == ("id", "name (what it is called, or none)")
    assert header.parts["WHY"] == "the reason"
    assert header.parts["ARGV"].startswith("1 group 2 limit: most of them, on two lines for each")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("-- verb:", "-- other:", "does not begin with '-- verb: '"),
        ("--   2 limit", "--   3 limit", "not slot 2"),
        ("--   2 limit", "--   2 Limit", "not slot 2"),
        ("--   2 limit", "--   2 from", "cannot be the name"),
        ("--   2 limit", "--   2 group", "cannot be the name"),
        ("(2): id", "(3): id", "of 3 repeated values 2 are named"),
        ("-- COST: one command\n", "", "not KEYS, ARGV, RETURN, COST, WHY"),
        ("-- RETURN", "-- Return", "no part of a header"),
        ("-- COST", "-- WHY: first\n-- COST", "no part of a header"),
    ],
)
def test_a_header_that_is_none_is_refused(old: str, new: str, words: str) -> None:
    """The error names the file and what is wrong with it."""
    assert old in GOOD
    with pytest.raises(ValueError, match=r"^verb\.lua: .*" + re.escape(words)):
        scripts.parse("verb", GOOD.replace(old, new))


@pytest.mark.parametrize("verb", VERBS)
def test_only_safe_commands_are_used(verb: str) -> None:
    """No scan of the keyspace, no shebang (Redis 6.2 refuses it), no payload decoded by cjson."""
    text = body(verb)
    calls = r"(?:redis\.p?call\(|redis\.call, |aside[(,]|undoing\(|look\([^,]+,)\s*'([A-Z]+)'"
    commands = {name.upper() for name in re.findall(calls, text)}
    assert not commands & {"KEYS", "SCAN", "SSCAN", "ZSCAN", "SMEMBERS", "FLUSHDB"}
    assert "#!" not in (FOLDER / f"{verb}.lua").read_text(encoding="utf-8")
    # Options and errors are our own small JSON; a payload or a result would come out changed.
    decoded = set(re.findall(r"cjson\.decode\b[^\n]*", text))
    if "if field == 'error'" in text or "== 'error' and" in text:
        decoded.discard("cjson.decode, value)")
    # What is called text is a timer's words, or what workers and monitors say: gates, ids by entry.
    assert decoded <= {"cjson.decode, opts)", "cjson.decode, text)", "cjson.decode(text)"}


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

FUNCTION = re.compile(r"(?:local )?function (\w+)\(([^)]*)\)")


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
    functions = [i for i, line in enumerate(lines) if FUNCTION.match(line)]
    assert functions
    for at in functions:
        name, parameters = FUNCTION.match(lines[at]).groups()
        first = at
        while first and lines[first - 1].startswith("--"):
            first -= 1
        comment = " ".join(line.removeprefix("--").strip() for line in lines[first:at])
        promised = re.match(rf"{name}\(([^)]*)\):", comment)
        assert promised, f"the comment of {name} does not begin with its call"
        words = promised[1].replace(" ", "").split(",")
        assert words == parameters.replace(" ", "").split(",") or words[-1] == "..."


CAPITAL = re.compile(r"\b[A-Z][A-Z_]{2,}\b")


def code_of(path: Path) -> str:
    """A file without its comments and strings."""
    code = re.sub(r"--.*", "", path.read_text(encoding="utf-8"))
    return re.sub(r"'(?:[^'\\\n]|\\.)*'", "''", code)


def called_by(verb: str) -> dict[str, tuple[str, str]]:
    """The functions of fragments that a script calls, with their fragment and their code."""
    functions: dict[str, tuple[str, str]] = {}
    for name in includes(FOLDER / f"{verb}.lua"):
        code = code_of(FOLDER / "lib" / f"{name}.lua")
        assert not re.search(r"\b(KEYS|ARGV)\[", code), "slots are the scripts' business"
        for function in re.split(r"^(?:local )?function ", code, flags=re.M)[1:]:
            functions[function[: function.index("(")]] = (name, function)
    called: dict[str, tuple[str, str]] = {}
    code = code_of(FOLDER / f"{verb}.lua")
    while found := {f for f in functions if re.search(rf"\b{f}\b", code)} - called.keys():
        called |= {name: functions[name] for name in found}
        code = "\n".join(functions[name][1].partition(")")[2] for name in found)
    return called


def declared(code: str) -> set[str]:
    """The capital names that a script sets."""
    return {
        word
        for names in re.findall(r"^local ([A-Z][A-Z_, ]*) =", code, re.M)
        for word in re.split(r",\s*", names)
    }


@pytest.mark.parametrize("verb", VERBS)
def test_what_fragments_take_from_around_them_is_there(verb: str) -> None:
    """The capital names in a fragment's functions are locals of every script that calls them.

    Otherwise they would be globals, which a server refuses, and only on the path that reads them.
    """
    text = (FOLDER / f"{verb}.lua").read_text(encoding="utf-8")
    for function, (fragment, code) in called_by(verb).items():
        before = text[: text.index(f"--@include {fragment}\n")]
        there = declared(before)
        for other in [*re.findall(r"^--@include (\w+)", before, re.M), fragment]:
            there |= declared((FOLDER / "lib" / f"{other}.lua").read_text(encoding="utf-8"))
        wanted = set(CAPITAL.findall(code))
        assert wanted <= there, f"{function} needs {sorted(wanted - there)}"


@pytest.mark.parametrize("verb", VERBS)
def test_a_script_sets_no_capital_that_it_does_not_use(verb: str) -> None:
    """Neither itself nor through a function that it calls; and it includes nothing in vain."""
    own, called = code_of(FOLDER / f"{verb}.lua"), called_by(verb)
    body = re.sub(r"^local [A-Z][A-Z_, ]* =", "", own, flags=re.M)
    used = set(CAPITAL.findall(body + "".join(code for _, code in called.values())))
    assert declared(own) <= used, sorted(declared(own) - used)
    assert {fragment for fragment, _ in called.values()} == set(includes(FOLDER / f"{verb}.lua"))


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
    assert fields - {"delayed", "failed", "waiting", "delay"} <= named  # those are values


# -- servers -------------------------------------------------------------------------------------


def test_every_script_loads_under_its_sha(every_server: Server) -> None:
    """Every server takes every script, under the SHA1 that the calls will name."""
    with every_server.client() as client:
        for verb in VERBS:
            script = scripts.load(verb)
            assert client.script_load(script.text) == script.sha
            assert scripts.text_of(script.sha) == script.text


def test_verbs_are_the_files() -> None:
    """The loader knows every script there is, and no other."""
    assert sorted(scripts.VERBS) == VERBS


# -- calls ---------------------------------------------------------------------------------------

CALLS: dict[str, Callable[[Commands, int], Command]] = {
    "adopt": lambda c, n: c.adopt(789),
    "heartbeat": lambda c, n: c.heartbeat(789, [("w", "=")] * n),
    "browse": lambda c, n: c.browse("pending", 10),
    "cancel": lambda c, n: c.cancel(["x"] * n, 654),
    "deploy": lambda c, n: c.deploy("app", "v1", "ask"),
    "drop": lambda c, n: c.drop(["x"] * n, "x", 654),
    "enqueue": lambda c, n: c.enqueue(["x"] * 5 * n),
    "enqueue_gated": lambda c, n: c.enqueue_gated(["x"] * 6 * n),
    "limit": lambda c, n: c.limit("k", "at_most=3"),
    "recount": lambda c, n: c.recount([b""] * 3, {b"%d" % i: 1 for i in range(n)}, 5, 9),
    "create_group": lambda c, n: c.create_group(),
    "events": lambda c, n: c.events(("0-0",) * 3, [("x", "")] * n),
    "find": lambda c, n: c.find("stream", "", name="x", batch="y"),
    "fire": lambda c, n: c.fire("x", [("x@1", 1)] * n, version=3, expected_ms=1, next_ms=2),
    "set_schedule": lambda c, n: c.set_schedule("x", "{}", "{}", b"1", next_ms=5),
    "hold": lambda c, n: c.hold("x", "x", 654, 321),
    "open_batch": lambda c, n: c.open_batch("b", "x", 3, 654),
    "park": lambda c, n: c.park("me", 321, [("x",) * 3] * n),
    "promote": lambda c, n: c.promote(),
    "purge": lambda c, n: c.purge(["x"] * n),
    "quarantine": lambda c, n: c.quarantine("me", b"1-1", "why"),
    "recover": lambda c, n: c.recover(2, consumer="me", started=["1-1"] * n),
    "regate": lambda c, n: c.regate("me", [b"1-1"] * n),
    "rights": lambda c, n: c.rights("me"),
    "register": lambda c, n: c.register("me", 789, {str(i): i for i in range(n)}),
    "release": lambda c, n: c.release("me", [b"1-1"] * n),
    "replay": lambda c, n: c.replay(["x"] * n),
    "report": lambda c, n: c.report("me", [("x",) * 6] * n),
    "resubmit": lambda c, n: c.resubmit("x", [("x",) * 7] * n),
    "resubmit_gated": lambda c, n: c.resubmit_gated("x", [("x",) * 8] * n),
    "suspend": lambda c, n: c.suspend("me", [("x",) * 11] * n),
    "step": lambda c, n: c.step("me", ("1-1", "x"), 1, "pay", "1.000", b"1"),
    "expect": lambda c, n: c.expect("me", ("1-1", "x"), 1, "paid", 0, "-", ""),
    "recall": lambda c, n: c.recall("x", whole=True),
    "send_event": lambda c, n: c.send_event("paid", "mark", b"1", 1000),
    "retry": lambda c, n: c.retry("me", [("x",) * 9] * n),
    "settle": lambda c, n: c.settle("me", [("x",) * 11] * n),
    "snapshot": lambda c, n: c.snapshot(),
    "tick": lambda c, n: c.tick(
        "", [("x", "1")] * n, workers=1, events=1, running=1, dead=1, batches=1
    ),
    "append_items": lambda c, n: c.append_items("me", [("x",) * 9] * n),
    "read_items": lambda c, n: c.read_items("x", "", 0, "", 1000),
    "grow_batch": lambda c, n: c.grow_batch("b", 2, 3, b"name", 1, 2),
    "update_batch": lambda c, n: c.update_batch("b", 2, b"x", "f"),
    "watch": lambda c, n: c.watch("x"),
    "why": lambda c, n: c.why("x"),
}
OWN = {"group": "the-group", "history_max": "123", "dead_ttl": "456", "channel": "wake:q"}


@pytest.mark.parametrize("verb", VERBS)
def test_a_typed_call_sends_what_the_header_says(verb: str) -> None:
    """Its keys, what is the queue's own, and as many values as its items have."""
    header, keys = scripts.header_of(verb), QueueKeys("q")
    calls = Commands(keys, "the-group", history_max=123, dead_ttl_ms=456)
    for items in (0, 1, 3) if header.repeated else (0,):
        command = CALLS[verb](calls, items)
        scripts.check(command)
        assert command[:3] == ("EVALSHA", scripts.load(verb).sha, len(header.keys))
        sent, argv = command[3 : 3 + command[2]], command[3 + command[2] :]
        assert list(sent) == [getattr(keys, name) for name in header.keys]
        assert len(argv) == len(header.args) + items * len(header.repeated)
        for name, value in zip(header.args, argv, strict=False):
            assert value == {**OWN, "consumer": "me"}.get(name, value)


@pytest.mark.parametrize("verb", VERBS)
def test_a_missing_or_unknown_argument_is_an_error_at_the_call(verb: str) -> None:
    """Arguments go by their names in the header, whatever their order; Python refuses others."""
    header, call = scripts.header_of(verb), getattr(QueueScripts(QueueKeys("q"), OWN), verb)
    given = {name: name for name in header.args if name not in OWN}
    items = [["a"] * len(header.repeated)] if header.repeated else []
    command = call(*items, **dict(reversed(given.items())))
    scripts.check(command)
    names = [OWN.get(name, name) for name in header.args] + ["a"] * len(header.repeated)
    assert list(command[3 + len(header.keys) :]) == names
    for name in given:
        with pytest.raises(TypeError, match=name):
            call(*items, **{other: other for other in given if other != name})
    with pytest.raises(TypeError, match="no_such_argument"):
        call(*items, **given, no_such_argument=1)


def test_a_script_that_there_is_not_cannot_be_called() -> None:
    """It is an error that names it."""
    with pytest.raises(AttributeError, match="no script 'nothing'"):
        _ = QueueScripts(QueueKeys("q"), OWN).nothing


def test_values_that_make_no_whole_items_are_found() -> None:
    """The tests of the scripts check each call so: too few or too many values, or keys."""
    calls = Commands(QueueKeys("q"))
    for command in (
        calls.enqueue(["x"] * 6),
        (*calls.snapshot(), "more"),
        calls.settle("me", [("x",) * 10]),
        (*calls.watch("x")[:2], 2, *calls.watch("x")[3:]),
        calls.watch("x")[:-1],
    ):
        with pytest.raises(ValueError, match=r"keys|values"):
            scripts.check(command)


def test_one_task_is_enqueued_like_many() -> None:
    """The call for a single task is the same as the bulk call with one."""
    calls = Commands(QueueKeys("q"))
    one = calls.enqueue_one("id", "name", b"1", "", "+5")
    assert one == calls.enqueue(["id", "name", b"1", "", "+5"])


@pytest.mark.parametrize("verb", scripts.VERBS)
def test_every_function_of_a_fragment_that_is_called_is_there(verb: str) -> None:
    """A fragment that is not included shows only when its function is called."""
    defined = re.compile(r"^(?:local )?function (\w+)", re.MULTILINE)
    fragments = "".join(path.read_text() for path in (scripts.folder() / "lib").glob("*.lua"))
    text = scripts.load(verb).text
    wanted = {name for name in defined.findall(fragments) if re.search(rf"\b{name}\(", text)}
    assert wanted - set(re.findall(r"\bfunction (\w+)", text)) == set()


def hidden(fragment: str) -> set[str]:
    """What only the fragment itself sees: locals of its block, which is the last in its file."""
    _, _, block = code_of(FOLDER / "lib" / f"{fragment}.lua").partition("\ndo\n")
    found = re.findall(r"^local (?:function )?(\w+(?:, \w+)*)", block, re.M)
    return {name for names in found for name in names.split(", ")}


@pytest.mark.parametrize("fragment", [name for name in FRAGMENTS if hidden(name)])
def test_what_a_fragment_hides_is_used_by_no_other_file(fragment: str) -> None:
    """There it would be a global that nobody has set, and only on the path that reads it."""
    path = FOLDER / "lib" / f"{fragment}.lua"
    for other in {*FOLDER.rglob("*.lua")} - {path}:
        code = code_of(other)
        for name in hidden(fragment):
            own = rf"\b(?:local|for|function)\b[^=\n]*\b{name}\b"
            assert re.search(own, code) or not re.search(rf"(?<!\.)\b{name}\b(?! =)", code), (
                f"{other.name} uses {name}"
            )


@pytest.mark.parametrize("verb", VERBS)
def test_a_script_has_room_for_twenty_more_locals(server: Server, verb: str) -> None:
    """Lua takes 200 in a function at once: 20 more in front of all others still fit, in the script
    itself and in every function at its margin."""
    more = "local " + ", ".join(f"more{n}" for n in range(20)) + "\n"
    inside = re.compile(r"^((?:local )?function \w+\([^)]*\)\n)", re.MULTILINE)
    with server.client() as client:
        client.script_load(more + inside.sub(rf"\g<1>{more}", scripts.load(verb).text))
