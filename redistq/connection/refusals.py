"""What a server's errors mean: which pass, which lead to another server, which are the caller's.

Used by both brokers. It decides from codes and words alone and talks to nobody.
"""

from __future__ import annotations

import re

import redis.exceptions as rex

from ..errors import (
    ConfigurationError,
    ConnectionLost,
    GroupMissing,
    RedistqError,
    Refused,
    ServerFull,
    WrongKind,
)
from ..protocol.commands import Command, denies

_REFUSED = (
    rex.AuthenticationError,
    rex.AuthorizationError,
    rex.AuthenticationWrongNumberOfArgsError,
)
_GONE = (
    rex.ConnectionError,
    rex.TimeoutError,
    rex.BusyLoadingError,
    rex.ReadOnlyError,
    rex.MovedError,
    rex.AskError,
    rex.TryAgainError,
    rex.ClusterDownError,
    rex.MasterDownError,
    rex.RedisClusterException,
    rex.InvalidResponse,
    OSError,
)
_ELSEWHERE = frozenset(
    {"LOADING", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "MOVED", "ASK", "REDIRECT"}
)
"""Codes of refusals after which another server may have to be asked, on a new connection."""
_FOR_NOW = _ELSEWHERE | {"BUSY", "UNKILLABLE", "EXECABORT", "MISCONF", "NOREPLICAS", "NOTREADY"}
"""Codes of errors by which a server says no for a while."""
_PASSING_WORDS = re.compile(
    r"max number of clients|upstream|backend|try again|not available|timed? ?out|temporar"
    r"|script killed"
    r"|(?:conn|server|host)\w* (?:\w+ )?(?:refused|reset|closed|failure|down)|no healthy",
    re.IGNORECASE,
)
"""What servers and the proxies before them say without a code of their own when they cannot now."""
_CODE_IN_SCRIPT = re.compile(r"(?:^|[\s:])-([A-Z]{3,})\b")


class ServerError(RedistqError, rex.ResponseError):
    """The server answered with an error that redistq knows nothing about: its words."""


def meaning_of(error: BaseException) -> BaseException:
    """What a caller is told of an error of the connection or of the server; others are answered
    as they are."""
    if isinstance(error, _REFUSED):
        return ConfigurationError(f"the server refused the connection: {error}")
    if isinstance(error, rex.ResponseError | rex.BusyLoadingError):
        return _meaning_of_answer(error)
    if isinstance(error, BlockingIOError):
        return ConnectionLost("no answer in time")
    if isinstance(error, _GONE):
        # With too many clients a server says so and hangs up.
        kind = Refused if "max number of clients" in str(error) else ConnectionLost
        return kind(f"{type(error).__name__}: {error}")
    if isinstance(error, UnicodeEncodeError):
        return ConfigurationError(
            f"a name or id holds characters that are no text (lone surrogates): {error.object!r}"
        )
    return error


def _meaning_of_answer(error: Exception) -> Exception:
    text, code = str(error)[:1000], _code_of(error)
    if isinstance(error, rex.BusyLoadingError):
        code = "LOADING"
    if "NOGROUP" in text or "UNBLOCKED" in text:
        return GroupMissing(text)
    if "OOM command" in text or isinstance(error, rex.OutOfMemoryError):
        return ServerFull(
            "the server is beyond its maxmemory and stored nothing; let workers drain the queue "
            "or raise maxmemory"
        )
    if code == "NOPERM" or denies(text) or isinstance(error, rex.NoPermissionError):
        return ConfigurationError(
            f"the server's ACL forbids a command redistq needs: {text} (scripts run with the "
            "caller's rights; all that are needed are in docs/operations.md, Rights, and ACL LOG "
            "tells what was refused)"
        )
    if code == "NOAUTH":
        return ConfigurationError("the server wants a password: redis://:PASSWORD@host:6379/0")
    if code in _FOR_NOW or isinstance(error, _GONE):
        words = text[text.find(f"-{code}") + 1 :] if f"-{code}" in text else text
        return Refused(words if words.startswith(code) else f"{code} {words}")
    if code == "WRONGTYPE":
        return WrongKind(
            f"a key of this queue holds something else: {text}; choose another name for the queue "
            "or another database, or delete that key"
        )
    if code == "CROSSSLOT":
        return ConfigurationError(
            f"this is a Redis Cluster ({text}); use its address: redis+cluster://host:6379"
        )
    if code == "DENIED":
        return ConfigurationError(f"the server takes no connections from here: {text}")
    if _unknown_command(text):
        return ConfigurationError(
            f"the server does not have a command that redistq needs: {text}; it was renamed or "
            "disabled there, or the server is older than Redis 6.2"
        )
    if "DB index" in text:
        return ConfigurationError(f"the server does not have this database: {text}")
    if code == "ERR" and _PASSING_WORDS.search(text):
        return Refused(text)
    return ServerError(f"the server answered with an error: {text}")


def _code_of(error: BaseException) -> str:
    """The code of a server's error: its first word, or the one inside the report of a script."""
    text = str(error)
    # Redis 6.2 wraps the error of a command that a script ran, with its code after a dash.
    if "script" in text and (found := _CODE_IN_SCRIPT.search(text)):
        return found[1]
    code = getattr(error, "status_code", None) or text.partition(" ")[0]
    return code if code.isupper() else "ERR"


def script_is_unknown(error: BaseException, command: Command) -> bool:
    """Whether a script has to be sent with its text: unknown, or EVALSHA was renamed away."""
    if not isinstance(error, rex.ResponseError) or not command or command[0] != "EVALSHA":
        return False
    return isinstance(error, rex.NoScriptError) or _unknown_command(str(error), "EVALSHA")


def _unknown_command(text: str, name: str = "") -> bool:
    return "unknown command" in text and name.lower() in text.lower()


def to_another_server(error: BaseException) -> bool:
    """Whether a server's refusal says that the connection leads to the wrong one."""
    return isinstance(error, (*_GONE, *_REFUSED)) or _code_of(error) in _ELSEWHERE


def cannot_be_named(error: BaseException) -> bool:
    """Whether a server refused to name a connection, which is a comfort to whoever looks at it."""
    text = str(error)
    return isinstance(error, rex.ResponseError) and (
        _unknown_command(text, "CLIENT") or (_code_of(error) == "NOPERM" and "client" in text)
    )
