"""A queue's clock that tests move: its scripts read the time from a key instead of the server.

Used by ``redistq.testing``. A queue that is simulated here has its scripts loaded with another
text, for all that is made for it in this process from then on (``simulate``). Nothing else differs,
and other queues' scripts are what they were: they pay nothing for it.

The key holds ``+N``, N milliseconds ahead of the server's clock (negative: behind it), or ``=N``:
the clock stands still at N ms since the epoch. Entries of streams get their ids from it too, so it
needs a server that completes ``<ms>-*`` (Redis 7, Valkey).
"""

from __future__ import annotations

import functools
import hashlib
import re

from . import scripts
from .keys import without_priority
from .plain_commands import Command

_CLOCK = """\
(function()
  local real = redis.call('TIME')
  local ms, micros = real[1] * 1000 + math.floor(real[2] / 1000), real[2] % 1000
  local kept = redis.call('GET', KEYS[#KEYS])
  if kept and string.sub(kept, 1, 1) == '=' then
    ms, micros = tonumber(string.sub(kept, 2)), 0
  elseif kept then
    ms = ms + tonumber(kept)
  end
  return { string.format('%d', math.floor(ms / 1000)),
    string.format('%d', ms % 1000 * 1000 + micros), string.format('%d', ms) .. '-*' }
end)()"""
"""An expression: some scripts have as many local variables as a script may have."""
_READ = f"return {_CLOCK}"
_MOVE = """\
local by = tonumber(ARGV[2])
local keys = redis.call('KEYS', ARGV[3])
if by < 0 and #keys > redis.call('EXISTS', KEYS[1]) then return 0 end
redis.call('SET', KEYS[1], ARGV[1])
for i = 1, by > 0 and #keys or 0 do
  local left = redis.call('PTTL', keys[i])
  if left > by then redis.call('PEXPIRE', keys[i], left - by)
  elseif left >= 0 then redis.call('DEL', keys[i]) end
end
return 1
"""
_REMOVE = """\
local keys = redis.call('KEYS', ARGV[1])
for _, key in ipairs(keys) do redis.call('UNLINK', key) end
return #keys
"""
_TIME = "redis.call('TIME')"
_NEW_ENTRY = re.compile(r"'\*'(?=, (?:'id'|unpack))")
_SPECIAL = re.compile(r"([*?\[\]\\^-])")

_clocks: dict[str, str] = {}


def clock_key(queue: str) -> str:
    """Return the key that holds the clock of a queue in all its priorities."""
    return f"clock:{without_priority(queue)}"


def simulate(queue: str) -> None:
    """Let a queue, in all its priorities, read the time from its clock's key, in this process."""
    _clocks[without_priority(queue)] = clock_key(queue)


def forget(queue: str) -> None:
    """Let a queue have the server's clock again."""
    _clocks.pop(without_priority(queue), None)


def clock_of(queue: str) -> str | None:
    """Return the key from which a queue's scripts read the time; None: they ask the server."""
    return _clocks.get(without_priority(queue)) if _clocks else None


@functools.cache
def load(verb: str) -> scripts.Script:
    """Return the script of a verb as simulated queues have it; its clock is one more key."""
    real = scripts.load(verb)
    text = real.text.replace(_TIME, _CLOCK)
    return _known(verb, real.source, _NEW_ENTRY.sub(lambda _: f"{_CLOCK}[3]", text))


def verb_of(command: Command) -> str:
    """Return the verb of a script's command; '' for another command, or an unknown script."""
    found = _by_sha.get(command[1]) if command[0] == "EVALSHA" else None
    return "" if found is None else found.name


def argument_of(command: Command, name: str) -> str:
    """Return one argument of a script's command, by its name in the header."""
    args = scripts.header_of(verb_of(command)).args
    return str(command[3 + command[2] + args.index(name)])


def read_clock(queue: str) -> Command:
    """Ask for the time of a queue's clock; ``read_time`` reads the answer."""
    return ("EVALSHA", _known("read_clock", "", _READ).sha, 1, clock_key(queue))


def move_clock(queue: str, value: str, by_ms: int) -> Command:
    """Set a clock to what lies ``by_ms`` ahead; what the queue keeps for a time is kept for so much
    less. The answer is 0 where that is back in time, and the queue has anything already."""
    sha = _known("move_clock", "", _MOVE).sha
    return ("EVALSHA", sha, 1, clock_key(queue), value, by_ms, _pattern(queue))


def remove_all(queue: str) -> Command:
    """Remove every key of a queue, in all its priorities; the answer is how many there were."""
    return ("EVALSHA", _known("remove_all", "", _REMOVE).sha, 0, _pattern(queue))


def _pattern(queue: str) -> str:
    escaped = _SPECIAL.sub(r"\\\1", without_priority(queue))
    return f"*{escaped}*"


_by_sha: dict[str, scripts.Script] = {}


def _known(verb: str, source: str, text: str) -> scripts.Script:
    sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
    script = _by_sha.get(sha)
    if script is None:
        script = _by_sha[sha] = scripts.Script(verb, source, text, sha)
        scripts.remember(script)
    return script
