"""Settings of a server that can lose tasks, found when a worker starts."""

from __future__ import annotations

from ..errors import RedistqError
from ..logger import logger
from .broker import Broker

log = logger("redistq.broker")


def check_server(broker: Broker) -> list[str]:
    """Warnings about a server's settings that can lose tasks: eviction and no persistence.

    Answers sentences that name the setting; an empty list when all is well or when the server
    does not let us look.
    """
    warnings = []
    try:
        memory = _info(broker.call(("INFO", "memory")))
        policy = memory.get("maxmemory_policy", "")
        if policy not in ("", "noeviction") and not policy.startswith("volatile"):
            warnings.append(
                f"the server's maxmemory-policy is {policy}, which may evict the queue's keys and "
                "lose tasks; set maxmemory-policy noeviction"
            )
        elif policy.startswith("volatile"):
            warnings.append(
                f"the server's maxmemory-policy is {policy}, which may evict results and dead "
                "letters before their time; set maxmemory-policy noeviction"
            )
        persistence = _info(broker.call(("INFO", "persistence")))
        if persistence.get("aof_enabled") == "0":
            reply = broker.call(("CONFIG", "GET", "save"))
            if len(reply) == 2 and not reply[1]:
                warnings.append(
                    "the server keeps nothing on disk (appendonly no, save ''): a restart loses "
                    "every task; set appendonly yes"
                )
            else:
                warnings.append(
                    "the server has no append-only file: a crash loses what came after its last "
                    "snapshot; set appendonly yes"
                )
    except RedistqError as error:
        log.debug("the server's settings could not be read: %s", error)
    return warnings


def _info(reply: bytes) -> dict[str, str]:
    lines = (line.partition(":") for line in reply.decode().splitlines() if ":" in line)
    return {name: value for name, _, value in lines}
