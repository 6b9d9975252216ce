"""Where the server is: what a caller said, the environment, or the embedded default.

Used by the broker. Resolving may start the embedded server, but only when no server was named.
"""

from __future__ import annotations

import os
import re
import socket
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, quote, unquote, urlsplit

from ..errors import ConfigurationError
from ..system.private import read_given

DEFAULT_HOST = "localhost"
DEFAULT_PORT = 6379
ENV_URL = "REDISTQ_URL"
ENV_URL_FILE = "REDISTQ_URL_FILE"
"""A file with the URL, for where the environment can be seen by those who must not."""
_SECRET = re.compile(r"pass|pwd|secret|token|auth|cred", re.IGNORECASE)
"""Options of a URL whose values are not shown."""
_HOST = re.compile(r"(?:\[[0-9A-Fa-f:.%]+\w*\]|[^:\[\]/?#@\s]*)(?::(\d{1,9}))?")
_URL_IN_TEXT = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://(?:[^\s@]*@)?[^\s'\"<>]+")
"""It may be within quotes, and a password may have quotes of its own: those before its @."""
_OVERLOOKED = re.compile(r"[\t\r\n]")
"""What ``urlsplit`` passes over, such as the line's end of a file that a password was read from."""
_SCHEME = re.compile(r"^(rediss?|unix)(\+sentinel|\+cluster)?$")


@dataclass(frozen=True, slots=True)
class Address:
    """A server that is known: a URL of a kind the broker can open.

    ``redis://``, ``rediss://`` (TLS) and ``unix://`` as redis-py has them;
    ``redis+sentinel://host:port,host:port/service/db`` and ``redis+cluster://host:port`` (with
    ``rediss+`` for TLS). ``embedded`` says that the server is our own and must be joined.
    """

    url: str
    embedded: bool = False

    def __post_init__(self) -> None:
        if not _is_text(self.url):
            raise ConfigurationError(
                f"{redacted(self.url)!r} holds characters that are no text (lone surrogates): "
                "decode it, or its password, as UTF-8"
            )
        scheme = self.url.split("://", 1)[0]
        if "://" not in self.url or not _SCHEME.match(scheme) or scheme.startswith("unix+"):
            raise ConfigurationError(
                f"{redacted(self.url)!r} is no server's URL; use redis://host:6379/0, rediss://…, "
                "unix:///path, redis+sentinel://host:26379/service/0 or redis+cluster://host:6379"
            )

    @property
    def clustered(self) -> bool:
        """Whether this is a Redis Cluster."""
        return "+cluster" in self.url.split("://", 1)[0]

    @property
    def sentinel(self) -> bool:
        """Whether the URL names Sentinels."""
        return "+sentinel" in self.url.split("://", 1)[0]

    def __str__(self) -> str:
        return redacted(self.url)

    def __repr__(self) -> str:
        return f"Address({str(self)!r}, embedded={self.embedded})"

    def as_dict(self) -> dict[str, Any]:
        """For a child process."""
        return asdict(self)


def redacted(url: str) -> str:
    """The URL without its password, for messages and logs: less of it where it is not certain which
    part is one."""
    url = _OVERLOOKED.sub("", url).encode("utf-8", "backslashreplace").decode()
    try:
        parts = urlsplit(url)
    except ValueError:
        return "<a URL that cannot be read>"
    if _misread(parts):
        # A password with marks of its own: it ends at the last @, wherever that stands.
        scheme, mark, _ = url.rpartition("@")[0].partition("://")
        shown = url.rpartition("@")[2].partition("?")[0].partition("#")[0]
        return f"{scheme}://***@{shown}" if mark else f"***@{shown}"
    if parts.query:
        items = [
            f"{name}{mark}{'***' if _SECRET.search(unquote(name)) else value}"
            for name, mark, value in (item.partition("=") for item in parts.query.split("&"))
        ]
        before, mark, after = url.partition("?")
        url = before + mark + after.replace(parts.query, "&".join(items), 1)
    if "@" in parts.netloc:
        secret, _, host = parts.netloc.rpartition("@")
        user, named, _ = secret.partition(":")
        if not named:
            user = ""  # "redis://password@host" is a common slip
        shown = f"//{user}:***@{host}" if user else f"//***@{host}"
        url = url.replace(f"//{parts.netloc}", shown, 1)
    return url


def without_passwords(text: str) -> str:
    """Any text with the passwords of the URLs in it hidden."""
    return _URL_IN_TEXT.sub(lambda found: redacted(found[0]), text) if "://" in text else text


def _misread(parts: SplitResult) -> bool:
    """Whether a password seems to have been taken for something else: its @ stands too far."""
    if "@" in parts.netloc or parts.scheme == "unix":  # a socket's path may have an @
        return "@" in parts.fragment
    asked = (item.partition("=") for item in parts.query.split("&"))
    strange = any(
        "@" in name or ("@" in value and not _SECRET.search(unquote(name)))
        for name, _, value in asked
    )
    return strange or "@" in parts.path or "@" in parts.fragment


def _checked(address: Address) -> Address:
    """An address whose URL can be understood in one way only.

    Raises ConfigurationError, which shows no password and does not hold one, either.
    """
    wrong = what_is_wrong(address)
    if wrong:
        raise ConfigurationError(f"{address} cannot be used: {wrong}")
    return address


def what_is_wrong(address: Address) -> str:
    """Why the URL of an address cannot be used, without a part of it; empty when it can."""
    encode = (
        "write the marks in its password as %XX, as urllib.parse.quote(password, safe='') does, or "
        "pass password="
    )
    try:
        parts = urlsplit(address.url)
    except ValueError:
        return encode
    if _misread(parts) or parts.fragment:
        return encode
    if parts.scheme == "unix":
        return ""
    hosts = parts.netloc.rpartition("@")[2]
    for host in hosts.split(",") if address.sentinel else [hosts]:
        found = _HOST.fullmatch(host)
        if not found or (found[1] and not 0 < int(found[1]) < 65536):
            return f"a server is host:port, with a port from 1 to 65535; or {encode}"
    path = [part for part in parts.path.split("/") if part]
    database = path[1:] if address.sentinel else path
    if len(database) > 1 or (database and not database[0].isdecimal()):
        return "its database is a number: redis://host:6379/0"
    return ""


def resolve(
    url: str | None = None,
    host: str = DEFAULT_HOST,
    port: int = DEFAULT_PORT,
    db: int = 0,
    password: str | None = None,
) -> Address:
    """The server to use. Starts the embedded one only when nothing else was named or answers.

    In this order: ``url``; a host, port or password that is not the default; ``REDISTQ_URL``, or
    the file that ``REDISTQ_URL_FILE`` names; localhost:6379 when it answers; the embedded server.
    Raises ConfigurationError for a URL that cannot work and EmbeddedServerError when the embedded
    server cannot start.
    """
    if url is not None and not isinstance(url, str):
        raise ConfigurationError(f"url is text such as redis://host:6379/0, not {type(url)!r}")
    if not isinstance(host, str):
        raise ConfigurationError(
            f"a server is given by its host's name or URL, not by {type(host).__name__}; that of a "
            "client is TaskMonitor(address=client.address, stream=...)"
        )
    if url is None and "://" in host:
        url = host  # TaskProducer("redis://…"): what else could it mean
    if url is not None:
        return _checked(Address(url))
    named = _checked(Address(_tcp_url(host, port, db, password)))
    if (host, port) != (DEFAULT_HOST, DEFAULT_PORT) or password is not None:
        return named
    if from_env := os.environ.get(ENV_URL) or _url_in_file():
        return _checked(Address(from_env))
    if _answers(host, port):
        return named
    return join_embedded(db)


def join_embedded(db: int = 0) -> Address:
    """The embedded server, started if need be; this process counts as its user from now on."""
    from . import embedded

    server = embedded.join()
    return Address(server.url + (f"?db={db}" if db else ""), embedded=True)


def rejoin(address: Address) -> Address:
    """An address that another process resolved, made ours: the embedded server is joined."""
    if address.embedded:
        from . import embedded

        path, _, query = address.url.partition("?")
        joined = embedded.join()
        return (
            replace(address, url=joined.url + (f"?{query}" if query else "")) if path else address
        )
    return address


def _url_in_file() -> str:
    name = os.environ.get(ENV_URL_FILE)
    if not name:
        return ""
    url = read_given(Path(name), f"the server's URL ({ENV_URL_FILE})")
    return url.decode("utf-8", "replace").strip()


def _tcp_url(host: str, port: int, db: int, password: str | None) -> str:
    if not isinstance(port, int) or not 0 < port < 65536:
        raise ConfigurationError(f"redis_port is a number from 1 to 65535, not {port!r}")
    if not _is_text(password or ""):
        raise ConfigurationError(
            "the password holds characters that are no text (lone surrogates): decode it as UTF-8"
            if isinstance(password, str)
            else f"a password is text, not a {type(password).__name__}: decode it first"
        )
    secret = f":{quote(password, safe='')}@" if password else ""
    address = f"[{host}]" if ":" in host else host
    return f"redis://{secret}{address}:{port}/{db}"


def _is_text(value: object) -> bool:
    """Whether a value is text that can be sent: half of a surrogate pair cannot."""
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:
        return False


def _answers(host: str, port: int) -> bool:
    """Whether something that speaks Redis listens there; an answer of NOAUTH is an answer."""
    try:
        with socket.create_connection((host, port), timeout=0.5) as connection:
            connection.sendall(b"*1\r\n$4\r\nPING\r\n")
            return connection.recv(1) in (b"+", b"-")
    except OSError:
        return False
