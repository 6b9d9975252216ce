"""Names under which a web server of ours is asked for: its own, and nobody else's.

Used by the dashboard's page and by the figures for Prometheus. A page of any web site, open in a
browser here, can reach every port of this machine, and whoever runs the site can make its name
point here (DNS rebinding): then the browser lets the page read the answers. Such a request names
the site in its ``Host``.
"""

from __future__ import annotations

import functools
import ipaddress
import socket
from collections.abc import Callable, Sequence


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach that address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def named_here(host: str, more: Sequence[str] = ()) -> Callable[[str], bool]:
    """Which names in a request mean a server that listens at ``host``.

    On this machine alone: its own. Elsewhere every IP address too: only a name can be made to point
    here by somebody who has a web site.
    """
    local = is_loopback(host)
    names = {"localhost", host, *more}
    if not local:
        names |= {socket.gethostname(), socket.getfqdn()}
    names = {_plain(name) for name in names}

    @functools.lru_cache(1000)
    def is_own_name(name: str) -> bool:
        name = _plain(name)
        if name in names:
            return True
        try:
            ip = ipaddress.ip_address(name)
        except ValueError:
            return False
        return ip.is_loopback or not local

    return is_own_name


def host_in(header: str) -> str:
    """The name in a ``Host`` header, without its port."""
    if header.startswith("["):
        return header.partition("]")[0][1:]
    return header.partition(":")[0]


def _plain(name: str) -> str:
    return name.lower().strip("[]").rstrip(".")
