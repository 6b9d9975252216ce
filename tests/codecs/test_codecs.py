"""Codecs by themselves: what is sealed opens in its own place, with its key, and nowhere else."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redistq.codecs import Codec, Compress, Encrypt, Keys, Sign
from redistq.codecs.sealing import Seal, seal_of
from redistq.codecs.stages import zstd
from redistq.errors import ConfigurationError, Unreadable, UntrustedPayload
from redistq.protocol.envelope import MAGIC, described, is_envelope, parted

OLD, NEW, OTHER = (f"a secret key that nobody knows: {n}" for n in range(3))
PLACE = ("payload", "tasks", "task", "a", "mail", "")
DATA = b'{"to":"ann@example.org"}'
KEYS = Keys({"k1": OLD})


def codecs() -> dict[str, Codec]:
    """One of each kind."""
    found = {
        "nothing": Codec(),
        "zlib": Codec(Compress("zlib", least=1)),
        "sign": Codec(Sign(KEYS)),
        "encrypt": Codec(Encrypt(KEYS)),
        "all": Codec(Encrypt(KEYS), Sign(KEYS), Compress(least=1)),
    }
    if zstd() is None:
        return found
    return found | {"zstd": Codec(Compress("zstd", least=1), Sign(KEYS))}


CODECS = codecs()
PROTECTED = [name for name in CODECS if name not in ("nothing", "zlib")]


@pytest.mark.parametrize("name", CODECS)
@given(data=st.binary(max_size=3000), ends=st.text(min_size=0, max_size=5))
def test_what_is_sealed_comes_back(name: str, data: bytes, ends: str) -> None:
    """Any bytes, whatever the header says beside them."""
    codec = CODECS[name]
    ends = ends.encode("utf-8", "ignore").decode()
    envelope = codec.seal(PLACE, data, "task", ends)
    assert is_envelope(envelope)
    assert codec.open(PLACE, envelope) == data
    assert parted(envelope)[0].ends == ends


@pytest.mark.parametrize("name", PROTECTED)
def test_each_flipped_bit_is_noticed(name: str) -> None:
    """Whatever byte of an envelope is changed, header and magic too, nothing else is ever read."""
    codec = CODECS[name]
    envelope = codec.seal(PLACE, 3 * DATA)
    for at in range(len(envelope)):
        for bit in (0x01, 0x20, 0x80):
            changed = bytearray(envelope)
            changed[at] ^= bit
            with pytest.raises((UntrustedPayload, Unreadable)):
                codec.open(PLACE, bytes(changed))


@pytest.mark.parametrize("name", PROTECTED)
def test_each_end_that_is_missing_is_noticed(name: str) -> None:
    """A beginning of an envelope is none, and neither is one with more behind it."""
    codec = CODECS[name]
    envelope = codec.seal(PLACE, DATA)
    for end in range(len(envelope)):
        with pytest.raises((UntrustedPayload, Unreadable)):
            codec.open(PLACE, envelope[:end])
    with pytest.raises(UntrustedPayload):
        codec.open(PLACE, envelope + b"\0")


@pytest.mark.parametrize("name", PROTECTED)
def test_it_opens_in_its_own_place_alone(name: str) -> None:
    """Another task, queue, kind or name: each is refused, also where the words run together."""
    codec = CODECS[name]
    envelope = codec.seal(PLACE, DATA)
    for at in range(len(PLACE)):
        elsewhere = [*PLACE]
        elsewhere[at] += "x"
        with pytest.raises(UntrustedPayload, match="another task"):
            codec.open(tuple(elsewhere), envelope)
    moved = ("payload", "tasks", "task", "am", "ail", "")
    with pytest.raises(UntrustedPayload):
        codec.open(moved, envelope)


def test_a_header_is_signed_with_the_rest() -> None:
    """What it is bound to, and which task ends with it, cannot be changed by whoever has no key."""
    codec = CODECS["all"]
    envelope = codec.seal(PLACE, DATA, "task", "parent")
    for old, new in ((b'"task"', b'"unique"'), (b"parent", b"others"), (b',"ends":"parent"', b"")):
        assert old in envelope
        with pytest.raises(UntrustedPayload):
            codec.open(PLACE, envelope.replace(old, new, 1))


def test_an_encrypted_text_shows_nothing_and_never_the_same() -> None:
    """Neither the data nor that it is the same as before can be seen."""
    found = {CODECS["encrypt"].seal(PLACE, DATA) for _ in range(100)}
    assert len(found) == 100
    assert not any(b"ann" in envelope for envelope in found)
    assert b"ann" in CODECS["sign"].seal(PLACE, DATA)


# -- keys ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Sign, Encrypt])
def test_keys_are_rotated_in_three_steps(kind: Any) -> None:
    """All take the new key first, then seal with it, then forget the old one."""
    before = Codec(kind(Keys({"k1": OLD})))
    both = Codec(kind(Keys({"k1": OLD, "k2": NEW}, current="k1")))
    turned = Codec(kind(Keys({"k1": OLD, "k2": NEW}, current="k2")))
    after = Codec(kind(Keys({"k2": NEW})))
    for writer, readers in (
        (before, (before, both, turned)),
        (both, (before, both, turned)),
        (turned, (both, turned, after)),
        (after, (both, turned, after)),
    ):
        envelope = writer.seal(PLACE, DATA)
        for reader in readers:
            assert reader.open(PLACE, envelope) == DATA
    with pytest.raises(Unreadable, match="key k1") as raised:
        after.open(PLACE, before.seal(PLACE, DATA))
    assert raised.value.lacks in both.has()
    assert raised.value.lacks not in after.has()


@pytest.mark.parametrize("kind", [Sign, Encrypt])
def test_another_key_of_the_same_name_opens_nothing(kind: Any) -> None:
    """A wrong key is no missing one: what it refuses may have been forged."""
    envelope = Codec(kind(Keys({"k1": OLD}))).seal(PLACE, DATA)
    with pytest.raises(UntrustedPayload, match="'k1'"):
        Codec(kind(Keys({"k1": OTHER}))).open(PLACE, envelope)


def test_keys_are_never_shown() -> None:
    """Not in a repr, an error or a pickle, of whatever holds them."""
    codec = CODECS["all"]
    for shown in (repr(codec), repr(KEYS), str(codec), f"{Sign(KEYS)!r}"):
        assert OLD not in shown
        assert "k1" in shown
    for thing in (codec, KEYS):
        with pytest.raises(TypeError, match="not pickled"):
            pickle.dumps(thing)
    short = "too short here"
    with pytest.raises(ConfigurationError) as raised:
        Keys({"k1": short})
    assert short not in str(raised.value)


@pytest.mark.parametrize(
    ("keys", "current", "words"),
    [
        ({}, "", "by their ids"),
        ({"k1": OLD, "k2": NEW}, "", "which of the keys k1, k2"),
        ({"k1": OLD}, "k2", "none of k1"),
        ({"": OLD}, "", "id of a key"),
        ({"a\nb": OLD}, "", "id of a key"),
        ({"k1": 17}, "", "16 bytes"),
        ({"k1": "hex:zz"}, "", "hexadecimal"),
    ],
)
def test_wrong_keys_are_named(keys: Any, current: str, words: str) -> None:
    """Each mistake has its words, and the next step."""
    with pytest.raises(ConfigurationError, match=words):
        Keys(keys, current)


# -- what is let in --------------------------------------------------------------------------------


def test_what_is_required_is_let_in_alone() -> None:
    """Plain, compressed or only signed data is refused where more is required."""
    plain, zipped, signed, encrypted = (
        Codec(),
        CODECS["zlib"],
        CODECS["sign"],
        CODECS["encrypt"],
    )
    signs = Codec(Sign(KEYS), Encrypt(KEYS), require="signed")
    encrypts = Codec(Sign(KEYS), Encrypt(KEYS), require="encrypted")
    for writer in (plain, zipped):
        for reader in (signs, encrypts):
            with pytest.raises(UntrustedPayload, match="requires"):
                reader.open(PLACE, writer.seal(PLACE, DATA))
    assert signs.open(PLACE, signed.seal(PLACE, DATA)) == DATA
    assert signs.open(PLACE, encrypted.seal(PLACE, DATA)) == DATA
    assert encrypts.open(PLACE, encrypted.seal(PLACE, DATA)) == DATA
    with pytest.raises(UntrustedPayload, match="encrypted"):
        encrypts.open(PLACE, signed.seal(PLACE, DATA))
    for reader in (signs, encrypts):
        with pytest.raises(UntrustedPayload, match=r"not (signed|encrypted)"):
            reader.plain(DATA, "the payload")
    assert signed.plain(DATA, "the payload") == DATA


def test_without_a_key_the_words_say_which() -> None:
    """A reader without a codec reads what is only compressed, and says what it lacks otherwise."""
    reader = seal_of(None, "tasks")
    writer = Seal(CODECS["zlib"], "tasks")
    assert reader.open_payload("a", "mail", writer.payload("a", "mail", DATA)) == (DATA, "")
    for name, lacks in (("sign", "signing key k1"), ("encrypt", "encryption key k1")):
        sealed = Seal(CODECS[name], "tasks").payload("a", "mail", DATA)
        with pytest.raises(Unreadable) as raised:
            reader.open_payload("a", "mail", sealed)
        assert raised.value.lacks == lacks
        assert "REDISTQ_CODEC" in str(raised.value)


@pytest.mark.parametrize(
    ("envelope", "error"),
    [
        (b"\0rqe2{}\n", Unreadable),
        (MAGIC + b'{"for":"task","new":"x"}\n', Unreadable),
        (MAGIC + b'{"for":"task","zip":"lzma"}\n', Unreadable),
        (MAGIC + b'{"for":"task","enc":"A256GCM"}\n', UntrustedPayload),
        (MAGIC + b'{"zip":"zlib"}\n', UntrustedPayload),
        (MAGIC + b"{}", UntrustedPayload),
        (MAGIC + b"[]\n", UntrustedPayload),
        (MAGIC + b"x" * 2000 + b"\n", UntrustedPayload),
        (MAGIC + b'{"for":"task","zip":"zlib"}\nno zlib', UntrustedPayload),
        (
            MAGIC + b'{"for":"task","zip":"zstd"}\nno zstd',
            Unreadable if zstd() is None else UntrustedPayload,
        ),
        (b"{}", UntrustedPayload),
    ],
)
def test_what_is_damaged_or_newer_is_told_apart(envelope: bytes, error: type[Exception]) -> None:
    """A newer release's is left to those that know it; what is damaged is refused."""
    with pytest.raises(error):
        Codec().open(PLACE, envelope)


def test_a_small_envelope_does_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is compressed is unpacked to so many bytes and no more."""
    monkeypatch.setattr("redistq.codecs.stages.MOST_UNPACKED", 100_000)
    for name in ("zlib",) if zstd() is None else ("zlib", "zstd"):
        writer = Codec(Compress(name))
        monkeypatch.setattr("redistq.codecs.stages.MOST_UNPACKED", 10_000_000)
        bomb = writer.seal(PLACE, bytes(1_000_000))
        monkeypatch.setattr("redistq.codecs.stages.MOST_UNPACKED", 100_000)
        with pytest.raises(UntrustedPayload, match="more than"):
            writer.open(PLACE, bomb)


def test_only_what_pays_is_compressed() -> None:
    """Short or random data is sent as it is."""
    codec = Codec(Compress())
    assert len(codec.seal(PLACE, 1000 * b"ab")) < 200
    for data in (b"ab", os.urandom(100_000), os.urandom(300_000)):
        assert len(codec.seal(PLACE, data)) < len(data) + 40


def test_an_envelope_is_described_by_its_start() -> None:
    """Monitors show how it is sealed, of a part that was cut off, too."""
    encrypted = CODECS["all"].seal(PLACE, DATA)
    assert described(encrypted[:90]) == "(encrypted, key k1; signed, key k1)"
    assert described(CODECS["zlib"].seal(PLACE, 9 * DATA)) == "(compressed, zlib)"
    assert described(encrypted[:20]) == "(sealed)"
    assert described(b"\0rq2 a packet") == described(b"{}") == ""


# -- settings --------------------------------------------------------------------------------------

TOML = f"""
compress = "zlib"
require = "encrypted"

[encrypt]
current = "2026-11"
[encrypt.keys]
"2026-11" = "{NEW}"
"2026-10" = "{OLD}"

[sign.keys]
mine = "{OTHER}"
"""


def test_a_file_describes_a_codec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a file, from the environment, and from what travels to our own processes."""
    path = tmp_path / "codec.toml"
    path.write_text(TOML)
    path.chmod(0o600)
    codec = Codec.from_file(path)
    envelope = codec.seal(PLACE, DATA)
    assert parted(envelope)[0].key == "2026-11"
    again = Codec.of(codec.settings())
    monkeypatch.setenv("REDISTQ_CODEC", str(path))
    named = Codec.from_env()
    assert named is not None
    assert again.open(PLACE, envelope) == named.open(PLACE, envelope) == DATA
    assert repr(again) == repr(codec)
    monkeypatch.setenv("REDISTQ_CODEC", '{"sign": {"keys": {"mine": "' + OTHER + '"}}}')
    inline = Codec.from_env()
    assert inline is not None
    assert codec.has()[:3] == ["encryption key 2026-11", "encryption key 2026-10", inline.has()[0]]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("compress = 'lzma'", "zlib or zstd"),
        ("nonsense = 1", "settings of a codec"),
        ("[sign]\ncurrent = 'x'", "by their ids"),
        (f"[sign]\nkey = '{OLD}'", "current and keys"),
        ("require = 'signed'", "needs the keys"),
        ("require = 'safe'", "signed or encrypted"),
        (f"sign = {OLD}", "no TOML"),
    ],
)
def test_a_wrong_file_is_named_without_its_words(tmp_path: Path, text: str, words: str) -> None:
    """What is wrong is said, and no key."""
    path = tmp_path / "codec.toml"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(ConfigurationError, match=words) as raised:
        Codec.from_file(path)
    assert OLD not in str(raised.value)
    assert raised.value.__cause__ is None


def test_a_file_that_others_can_write_is_refused(tmp_path: Path) -> None:
    """Whoever can write it could choose the keys."""
    path = tmp_path / "codec.toml"
    path.write_text(TOML)
    path.chmod(0o622)
    with pytest.raises(ConfigurationError, match="others can write"):
        Codec.from_file(path)
