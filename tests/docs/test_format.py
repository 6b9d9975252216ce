"""docs/format.md keeps its word: its examples and all that redistq writes fit the schemas."""

from __future__ import annotations

import json
import re
import secrets
from collections import Counter
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
import redis
from support.documents import DOCS
from support.workers import until

from redistq import (
    Client,
    Codec,
    Compress,
    Encrypt,
    Fail,
    Keys,
    Registry,
    Sign,
    Snooze,
    TaskProducer,
    TaskWorker,
    Unique,
    chain,
    sig,
)
from redistq.codecs.codec import Codec as _Codec
from redistq.protocol.envelope import is_envelope, parted
from redistq.protocol.schemas import NAMES, schema

GUIDE = (DOCS / "format.md").read_text(encoding="utf-8")
SCHEMAS = {name: schema(name) for name in NAMES}
registry = Registry()


def check(name: str, value: Any) -> None:
    """Hold a value against a schema."""
    jsonschema.validate(value, SCHEMAS[name])


# -- the document ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_schema_is_one(name: str) -> None:
    """Each is a sound schema, with a version in its name."""
    jsonschema.Draft202012Validator.check_schema(SCHEMAS[name])
    assert SCHEMAS[name]["$id"] == f"urn:redistq:format:1:{name}"


def test_the_examples_fit_their_schemas() -> None:
    """Each block of JSON says which schema it fits, and it does."""
    found = re.findall(r"^```json (\w+)\n(.*?)^```$", GUIDE, re.M | re.S)
    assert {name for name, _ in found} == {*NAMES} - {"entry"}
    for name, text in found:
        check(name, json.loads(text))


@pytest.mark.parametrize("name", ["entry", "opts", "record"])
def test_the_tables_name_what_the_schemas_name(name: str) -> None:
    """No field of a table is unknown to the schemas, and none of theirs is left out."""
    told = {
        word
        for row in re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", GUIDE, re.M)
        for word in re.findall(r"`(\w+)`", row)
    }
    own_words = {"entry", "recovered"} if name == "record" else set()
    assert {*SCHEMAS[name]["properties"]} - own_words <= told
    known = {word for one in SCHEMAS.values() for word in one["properties"]}
    assert told - known == {"XADD"} & told


def test_what_does_not_fit_is_refused() -> None:
    """The schemas can fail."""
    entry = {"id": "a", "name": "b", "payload": "1", "attempt": "1", "recovered": "0", "opts": ""}
    check("entry", entry)
    for wrong in ({"attempt": "0"}, {"id": ""}, {"id": "a\nb"}, {"recovered": "-1"}):
        with pytest.raises(jsonschema.ValidationError):
            check("entry", entry | wrong)
    for name, wrong_value in (
        ("opts", {"retries": -1}),
        ("opts", {"v": "2"}),
        ("record", {"state": "failed"}),
        ("record", {"state": "done"}),
        ("notification", {"id": "a", "state": "queued"}),
        ("envelope", {"for": "task", "enc": "A256GCM"}),
        ("call", {"args": {}}),
        ("call", {}),
    ):
        with pytest.raises(jsonschema.ValidationError):
            check(name, wrong_value)


# -- what is written -------------------------------------------------------------------------------


@registry.task(name="double")
def double(payload: Any) -> Any:
    """A result."""
    return 2 * payload


@registry.task(name="add")
def add(a: int, b: int = 1) -> int:
    """A call."""
    return a + b


@registry.task(name="fails", retries=1, backoff=0.2)
def fails(payload: Any) -> None:
    """An error that is tried again."""
    raise ValueError("no such customer")


@registry.task(name="gives_up")
def gives_up(payload: Any) -> None:
    """An error that is not."""
    raise Fail("no")


@registry.task(name="snoozes")
def snoozes(payload: Any, context: Any) -> Any:
    """Put off, with a step and a checkpoint."""
    context.step("one", lambda: 1)
    context.checkpoint({"at": 1})
    if context.cursor is None or not payload:
        raise Snooze(60)
    return context.spawn("double", 1)


@registry.task(name="flows")
def flows(payload: Any) -> Any:
    """Returns others that take its place."""
    return chain(sig("double", payload), sig("double", 2))


class Reader:
    """Reads all entries, records and notes of the queue, and holds them against the schemas."""

    def __init__(self, db: redis.Redis) -> None:
        kwargs = {**db.connection_pool.connection_kwargs, "decode_responses": False}
        self.db = redis.Redis(connection_pool=redis.ConnectionPool(**kwargs))
        self.seen: Counter[str] = Counter()

    def look(self) -> None:
        """Look at everything."""
        for key in self.db.scan_iter():
            name = key.decode()
            if re.fullmatch(r"tasks(!\w+)?", name):
                for _, fields in self.db.xrange(key):
                    self._entry(fields)
            elif name.startswith("task:"):
                self._record(self.db.hgetall(key))
            elif name.startswith("inbox:"):
                for _, fields in self.db.xrange(key):
                    self._note(fields)

    def _entry(self, fields: dict[bytes, bytes]) -> None:
        found = {k.decode(): v.decode("utf-8", "replace") for k, v in fields.items()}
        check("entry", found)
        assert [*found] == SCHEMAS["entry"]["required"], "the order that saves bytes"
        self._opts(fields[b"opts"])
        self._data("payload", fields[b"payload"])
        self.seen["entry"] += 1

    def _opts(self, raw: bytes) -> None:
        if not raw:
            return
        opts = json.loads(raw)
        check("opts", opts)
        assert opts.keys() <= SCHEMAS["opts"]["properties"].keys(), opts
        assert "v" not in opts
        self.seen.update(f"opts {name}" for name in opts)

    def _data(self, kind: str, raw: bytes) -> Any:
        if is_envelope(raw):
            header, text, _ = parted(raw)
            check("envelope", json.loads(text))
            self.seen[f"{kind} for {header.bound}"] += 1
            return None
        if raw.startswith(b"\0rq2"):
            self.seen[f"{kind} of a call"] += 1
            return None
        found = json.loads(raw)
        self.seen[f"{kind} of JSON"] += 1
        if isinstance(found, dict) and kind == "payload" and {*found} <= {"args", "kwargs"}:
            check("call", found)
            self.seen["call"] += 1
        return found

    def _record(self, raw: dict[bytes, bytes]) -> None:
        record = {k.decode(): v.decode("utf-8", "replace") for k, v in raw.items()}
        check("record", record)
        self._opts(raw.get(b"opts", b""))
        for field in ("payload", "result"):
            if field.encode() in raw:
                self._data(field, raw[field.encode()])
        if b"error" in raw and (error := self._data("error", raw[b"error"])) is not None:
            check("error", error)
        self.seen[f"record {record.get('state', 'queued')}"] += 1

    def _note(self, raw: dict[bytes, bytes]) -> None:
        note = {k.decode(): v.decode("utf-8", "replace") for k, v in raw.items()}
        check("notification", note)
        self.seen["notification"] += 1


@pytest.fixture
def reader(db: redis.Redis) -> Iterator[Reader]:
    """What looks at the server."""
    reader = Reader(db)
    yield reader
    reader.db.close()


def codecs() -> list[_Codec | None]:
    """None, and one that does everything."""
    keys = Keys({"k1": secrets.token_hex(32)})
    return [None, Codec(Compress(least=1), Encrypt(keys), Sign(keys))]


@pytest.mark.parametrize("codec", codecs(), ids=["plain", "sealed"])
def test_all_that_is_written_fits_the_schemas(
    url: str, reader: Reader, codec: _Codec | None
) -> None:
    """Tasks of every kind, while they wait and once they have ended, those of functions too."""
    with TaskProducer(url=url, codec=codec) as producer:
        options: dict[str, Any] = {"retries": 2, "timeout": 60, "result_ttl": 60}
        ids = [
            producer.add_task("double", {"to": ["ann", None, 1.5]} and 21),
            producer.add_task("double", "x" * 20_000, **options),
            producer.add_task("double", 1, hard_timeout=90, timeout=80, headers={"who": "ann"}),
            producer.add_task(add, {"args": [1], "kwargs": {"b": 2}}),
            producer.add_task("fails", 1),
            producer.add_task("gives_up"),
            producer.add_task("flows", 1),
        ]
        waits = [
            producer.add_task("double", 1, delay=60, **options),
            producer.add_task("snoozes", 0),
            producer.add_task("double", 1, after=producer.add_task("double", 2, delay=60)),
            producer.add_task("double", 1, unique=Unique("key", scope="settled"), delay=60),
            producer.add_task("double", 1, limits={"key": 1}, priority=3, expires=60),
        ]
        late = producer.add_task("double", 1, expires=0.001)
        producer.cancel(waits[0])
        producer.schedules.set("often", every=3600, task="double", payload=1)
        producer.schedules.run_now("often")
        reader.look()
        with TaskWorker(url=url, task_handlers=registry, codec=codec, unknown_grace=0.1):
            unknown = producer.add_task("nobody knows it")
            until(lambda: producer.get_task(ids[4]).state == "delayed", "it is tried again")
            reader.look()
            for task_id in (*ids, late, unknown):
                until(lambda i=task_id: producer.get_task(i).settled, "it has ended")
            until(lambda: producer.get_task(waits[1]).state == "delayed", "it is put off")
            reader.look()
    client = Client(url, codec=codec, queue="tasks")
    client.submit(len, "abc")
    client.map_batch(len, ["a", "b"], name="two")
    until(lambda: reader.db.xlen("tasks") >= 3, "all are sent")
    reader.look()
    client.shutdown(wait=False, cancel_futures=True)
    seen = reader.seen
    for state in ("queued", "delayed", "waiting", "succeeded", "failed", "cancelled", "expired"):
        assert seen[f"record {state}"], (state, seen)
    assert seen["payload of a call"] >= 3
    for name in ("retries", "timeout", "hard_timeout", "result_ttl", "headers", "gate", "batch"):
        assert seen[f"opts {name}"], name
    if codec is None:
        assert seen["call"]
        assert seen["payload of JSON"] > 10
        assert seen["error of JSON"]
    else:
        for bound in ("task", "unique", "schedule"):
            assert seen[f"payload for {bound}"], bound
        assert seen["result for task"]
        assert seen["error for task"]
        assert not seen["result of JSON"]
