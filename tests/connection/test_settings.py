"""Where the server is: the order in which it is looked for, URLs, and what is shown of them."""

from __future__ import annotations

import socket
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis
from support.servers import Server, free_port

import redistq.connection.address as settings
from redistq import (
    AsyncTaskProducer,
    Client,
    ConfigurationError,
    RedistqError,
    ServerUnavailable,
    TaskProducer,
    TaskScheduler,
    TaskWorker,
)
from redistq.connection.address import Address, redacted, rejoin, resolve
from redistq.protocol.keys import QueueKeys
from redistq.worker.settings import WorkerSettings


@pytest.fixture
def nobody_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing answers at the default address, whatever runs on this machine."""
    monkeypatch.setattr(settings, "_answers", lambda host, port: False)


def test_what_was_named_wins(monkeypatch: pytest.MonkeyPatch, nobody_home: None) -> None:
    """A url first, then a host, port or password, then REDISTQ_URL."""
    monkeypatch.setenv("REDISTQ_URL", "redis://from-env:1/2")
    assert resolve("redis://given:2/3", "host", 4).url == "redis://given:2/3"
    assert resolve(None, "host", 6379, 5).url == "redis://host:6379/5"
    assert resolve(None, "localhost", 6380).url == "redis://localhost:6380/0"
    assert resolve(None, password="p@ss/word").url == "redis://:p%40ss%2Fword@localhost:6379/0"
    assert resolve().url == "redis://from-env:1/2"
    assert resolve(None, "::1", 7).url == "redis://[::1]:7/0"


def test_a_local_server_is_used_when_it_answers(
    monkeypatch: pytest.MonkeyPatch, server: Server
) -> None:
    """Without anything named, what answers on the default port is the server."""
    monkeypatch.setattr(settings, "DEFAULT_PORT", server.port)
    assert resolve(None, "localhost", server.port).url == f"redis://localhost:{server.port}/0"


@pytest.mark.parametrize(
    ("reply", "answer"), [(b"+PONG\r\n", True), (b"-NOAUTH x\r\n", True), (b"HTTP/1.1", False)]
)
def test_only_what_speaks_redis_answers(reply: bytes, answer: bool) -> None:
    """PONG and an error are answers; another protocol, or nobody, is none."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(100)
                connection.sendall(reply)

        thread = threading.Thread(target=serve)
        thread.start()
        assert settings._answers("127.0.0.1", listener.getsockname()[1]) is answer
        thread.join()
    assert settings._answers("127.0.0.1", free_port()) is False


def add_one(payload: int) -> int:
    return payload + 1


def test_nothing_configured_means_the_embedded_server(nobody_home: None) -> None:
    """A producer, a scheduler and a worker without any setting meet in the embedded server."""
    with TaskProducer() as producer, TaskWorker(task_handlers={"add_one": add_one}, lease=2):
        assert producer.address.embedded
        assert producer.get_result(producer.add_task("add_one", 1), 20) == 2
        assert producer.get_result(producer.add_task("add_one", 1, delay=0.05), 20) == 2
        other = resolve(db=3)
        assert other.embedded
        assert "db=3" in other.url
        assert rejoin(other) == other
        worker = TaskWorker(task_handlers={"add_one": add_one}, processes=1, stream="q2", lease=2)
        with worker, TaskProducer(stream="q2") as second:
            assert second.get_result(second.add_task("add_one", 5), 20) == 6


def test_a_server_that_was_named_is_never_embedded(tmp_path: Path) -> None:
    """A named server that is away is an error, not an embedded server."""
    with TaskProducer(url=f"redis://127.0.0.1:{free_port()}/0", timeout=0.5) as producer:
        assert not producer.address.embedded
        with pytest.raises(ServerUnavailable):
            producer.add_task("a")


@pytest.mark.parametrize(
    "url",
    ["", "localhost", "http://x", "unix+cluster:///x", "redis+other://x", "redis:/x", "://"],
)
def test_urls_that_cannot_work_are_refused(url: str) -> None:
    """A URL of no known kind is refused with examples of those that work."""
    with pytest.raises(ConfigurationError, match="is no server's URL; use redis://"):
        TaskProducer(url=url)


@pytest.mark.parametrize("port", [0, 70_000, "6379", -1])
def test_ports_that_cannot_work_are_refused(port: Any) -> None:
    """A port is a number from 1 to 65535."""
    with pytest.raises(ConfigurationError, match="redis_port"):
        TaskProducer("localhost", port)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://:secret@host:1/0", "redis://***@host:1/0"),
        ("rediss://me:secret@host:1/0", "rediss://me:***@host:1/0"),
        ("redis://host:1/0", "redis://host:1/0"),
        ("redis+sentinel://u:secret@a:1,b:2/m/0", "redis+sentinel://u:***@a:1,b:2/m/0"),
        ("redis://host:1/0?password=secret", "redis://host:1/0?password=***"),
        ("redis://[bad", "<a URL that cannot be read>"),
        ("redis://me:secret\n@host:1/0", "redis://me:***@host:1/0"),
        (
            "redis://me:\tse\r\ncret@host:1/0?password=sec\nret",
            "redis://me:***@host:1/0?password=***",
        ),
    ],
)
def test_passwords_are_not_shown(url: str, shown: str) -> None:
    """Neither logs nor messages nor reprs contain the password of a URL."""
    assert redacted(url) == shown
    assert "secret" not in str(Address(url))
    if "[" not in url:
        assert "secret" not in repr(TaskProducer(url=url))


MARKS = "#/?@:[]% \\&=;,+!$'\"<>^`{|}~"
KINDS = ("redis", "rediss", "redis+sentinel", "redis+cluster")
FORMS = (":{}@127.0.0.1:1/0", "me:{}@127.0.0.1:1/main", ":{}@[::1]:1")


@pytest.mark.parametrize("scheme", KINDS)
@pytest.mark.parametrize("form", FORMS)
def test_a_password_with_marks_of_its_own_is_shown_nowhere(
    scheme: str, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not percent-encoded as it should be: whatever part of the URL it is taken for, neither it nor
    a piece of it is in an error, in what that came from, or in a repr."""
    for mark in MARKS:
        for password in (f"s3cr{mark}etWord", f"123{mark}456789", f"{mark}s3crets{mark}"):
            url = f"{scheme}://" + form.format(password)
            monkeypatch.setenv("REDISTQ_URL", url)
            said = [redacted(url)]
            for make in (lambda url=url: TaskProducer(url=url, timeout=0.01), resolve):
                try:
                    made = make()
                    said.append(repr(made))
                    if isinstance(made, TaskProducer) and "+" not in scheme:
                        made.add_task("a")
                except RedistqError as error:
                    said.append("".join(traceback.format_exception(error, chain=True)))
            for text in said:
                text = text.replace("127.0.0.1", "")
                for line in text.splitlines():
                    if not line.startswith("  "):  # not the source lines of a traceback
                        for piece in ("s3cr", "etWord", "123", "4567"):
                            assert piece not in line, (url, line)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://:12#34@host:1/0", "redis://***@host:1/0"),
        ("redis://:12/34@host:1/0", "redis://***@host:1/0"),
        ("redis://:12?3=4@host:1/0", "redis://***@host:1/0"),
        ("redis://:1@2@host:1/0", "redis://***@host:1/0"),
        ("redis://host/0?pass%77ord=secret&db=1", "redis://host/0?pass%77ord=***&db=1"),
        ("redis://host/0?password=a@b", "redis://host/0?password=***"),
        ("redis://me:x@host/0?ssl_password=secret", "redis://me:***@host/0?ssl_password=***"),
        ("unix:///a@b.sock?password=secret", "unix:///a@b.sock?password=***"),
        ("unix://me:secret@/a@b.sock", "unix://me:***@/a@b.sock"),
        ("http://me:secret@host", "http://me:***@host"),
        ("me:secret@host:6379", "***@host:6379"),
        ("redis://secret@host/0", "redis://***@host/0"),
        ("redis://me:it'secret@host/0", "redis://me:***@host/0"),
        ('redis://:<secret>"@host/0', "redis://***@host/0"),
    ],
)
def test_what_is_shown_of_a_url(url: str, shown: str) -> None:
    """The server and the user's name, where it is certain which part these are."""
    assert redacted(url) == shown
    text = f"before '{url}' after"
    if "://" in url:
        assert settings.without_passwords(text) == f"before '{shown}' after"


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("redis://:a#b@host:1/0", "quote"),
        ("redis://:a\udc80b@host:1/0", "no text"),
        ("redis://user:12/34@host:1/0", "quote"),
        ("redis://host:port/0", "1 to 65535"),
        ("redis://host:70000/0", "1 to 65535"),
        ("redis://host:1/zero", "database"),
        ("redis://host:1/0/1", "database"),
        ("redis+sentinel://a:1,b:x/main", "1 to 65535"),
        ("redis+sentinel://a:1/main/x", "database"),
        ("redis://host:1/0?colour=red", "colour"),
        ("redis://host:1/0?socket_timeout=soon", "socket_timeout"),
    ],
)
def test_a_url_that_can_be_understood_in_another_way_is_refused(url: str, why: str) -> None:
    """The message names what is wrong and how to write it."""
    with pytest.raises(ConfigurationError, match=why):
        TaskProducer(url=url, timeout=0.1).add_task("a")


@pytest.mark.parametrize(
    "url",
    [
        *("redis://", "redis://host", "redis://:6379/0", "redis:///1", "redis://[::1]:1/0/"),
        *("redis://h:1?db=2", "rediss://u@h:1/0?ssl_cert_reqs=none", "redis://:p%23w@h"),
        *("unix:///a b@c.sock?db=1", "redis://[fe80::1%25eth0]:1"),
        *("redis+cluster://h:1", "redis+sentinel://:p%2Fw@h,h2:2/main/3?client_name=a"),
    ],
)
def test_urls_that_can_work_are_taken(url: str) -> None:
    """All that redis-py understands in one way only."""
    assert resolve(url).url == url
    assert str(resolve(url)) == redacted(url)


def test_a_password_in_a_variable_is_not_reported(url: str) -> None:
    """The variables in the report of a function's error hide the passwords of URLs."""

    def fail() -> None:
        where = "redis://:s3cret@host:1/0"
        raise ValueError(len(where))

    with Client(url, signing_key=b"k" * 16) as client:
        client.start_workers(1)
        future = client.submit(fail)
        assert future.exception(30)
        assert "redis://***@host:1/0" in str(future.report["locals"])
        assert "s3cret" not in str(future.report["locals"])


def test_a_password_is_in_the_arguments_of_no_process(
    private_server: Callable[..., Server], caplog: pytest.LogCaptureFixture
) -> None:
    """Supervisors and worker processes are told where the server is in another way."""
    server = private_server()
    with server.client() as db:
        db.config_set("requirepass", "s3cret")
    url = server.url.replace("//", "//:s3cret@")
    with TaskWorker(url=url, task_handlers={"a": abs}, processes=2) as worker:
        ours = psutil.Process().children(recursive=True)
        assert len(ours) >= 3
        assert "s3cret" not in str([process.cmdline() for process in ours if process.is_running()])
        assert "s3cret" not in repr(worker) + caplog.text


def test_an_address_in_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nobody_home: None
) -> None:
    """REDISTQ_URL_FILE names a file with the URL, which others cannot write; REDISTQ_URL wins."""
    file = tmp_path / "url"
    file.write_text("redis://:secret@from-file:1/0\n")
    file.chmod(0o644)
    monkeypatch.setenv("REDISTQ_URL_FILE", str(file))
    assert resolve().url == "redis://:secret@from-file:1/0"
    monkeypatch.setenv("REDISTQ_URL", "redis://from-env:1/2")
    assert resolve().url == "redis://from-env:1/2"
    monkeypatch.delenv("REDISTQ_URL")
    file.chmod(0o666)
    with pytest.raises(ConfigurationError, match="chmod go-w"):
        resolve()
    file.unlink()
    with pytest.raises(ConfigurationError, match="REDISTQ_URL_FILE"):
        resolve()


def test_a_password_is_not_shown_when_the_server_is_away(caplog: pytest.LogCaptureFixture) -> None:
    """The error and the log of a lost server name its address without the password."""
    url = f"redis://:secret@127.0.0.1:{free_port()}/0"
    producer = TaskProducer(url=url, timeout=0.2)
    with pytest.raises(ServerUnavailable) as failure:
        producer.add_task("a")
    assert "secret" not in str(failure.value) + caplog.text


def test_a_unix_socket_and_a_database_are_addresses_too(server: Server) -> None:
    """Tasks travel over a unix socket, and databases keep queues apart."""
    url = f"{server.unix_url}?db=2"
    with (
        TaskProducer(url=url) as producer,
        TaskWorker(url=url, task_handlers={"add_one": add_one}, lease=2),
    ):
        assert producer.get_result(producer.add_task("add_one", 1), 10) == 2
    with server.client() as client:
        assert client.dbsize() == 0


def test_a_password_that_is_wrong_is_said_at_once(
    private_server: Callable[..., Server],
) -> None:
    """A refused password is a ConfigurationError, not an endless wait for the server."""
    server = private_server()
    with server.client() as client:
        client.config_set("requirepass", "right")
    for url in (server.url, server.url.replace("://", "://:wrong@")):
        with pytest.raises(ConfigurationError, match=r"password|refused"):
            TaskProducer(url=url).add_task("a")
        with pytest.raises(ConfigurationError):
            TaskWorker(url=url, task_handlers={"a": add_one}).start()
    right = server.url.replace("://", "://:right@")
    with (
        TaskProducer(url=right) as producer,
        TaskWorker(url=right, task_handlers={"add_one": add_one}, lease=2),
    ):
        assert producer.get_result(producer.add_task("add_one", 1), 10) == 2


# -- the queue's and the worker's settings ---------------------------------------------------------


def test_worker_settings_travel_to_other_processes() -> None:
    """What as_dict gives, of makes again; unknown options are named with the known ones."""
    made = WorkerSettings(queue="q", lease=3, threads=2)
    assert WorkerSettings.of(made.as_dict()) == made
    with pytest.raises(ConfigurationError, match=r"no option 'thread'; .* options are .*async"):
        WorkerSettings.of({"thread": 1})


@pytest.mark.parametrize(
    "options",
    [
        {"threads": 0},
        {"threads": 1.5},
        {"threads": True},
        {"threads": 2000},
        {"async_concurrency": 0},
        {"max_recoveries": -1},
        {"max_result_bytes": 0},
        {"lease": 0.5},
        {"lease": "10"},
        {"result_ttl": -1},
        {"unknown_grace": -1},
        {"shutdown_timeout": None},
        {"history_max": -1},
        {"dead_ttl": float("nan")},
        {"lease": float("inf")},
    ],
    ids=str,
)
def test_worker_settings_that_cannot_work_are_refused(options: dict[str, Any]) -> None:
    """Each impossible value is refused by name before a server is asked for."""
    (name,) = options
    with pytest.raises(ConfigurationError, match=name):
        WorkerSettings(**options)


def test_keys_of_a_clustered_queue_share_a_slot() -> None:
    """On a cluster every key carries the queue's hash tag, and a delayed key must as well."""
    keys = QueueKeys("mail", clustered=True)
    assert keys.stream == "{mail}"
    assert keys.task("7") == "task:{mail}:7"
    assert QueueKeys("a{b}c", clustered=True).stream == "a{b}c"
    with pytest.raises(ConfigurationError, match="hash tag"):
        QueueKeys("mail", "later", clustered=True)
    assert QueueKeys("mail", "later{mail}", clustered=True).delayed == "later{mail}"
    for name in ("", "a b", "a\n"):
        with pytest.raises(ConfigurationError, match="queue's name"):
            QueueKeys(name)


# -- Cluster and Sentinel --------------------------------------------------------------------------


@pytest.fixture
def cluster(private_server: Callable[..., Server]) -> Server:
    """A cluster of one node that serves every slot."""
    # The bus's port is named: by default it is 10,000 higher, which may be no port at all.
    bus = ["--cluster-port", str(free_port())]
    server = private_server(args=["--cluster-enabled", "yes", *bus])
    with server.client() as client:
        client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", 1)
        _until_ok(client)
    return server


def _until_ok(db: redis.Redis) -> None:
    from support.workers import until

    def ok() -> bool:
        state: Any = db.execute_command("CLUSTER", "INFO")
        return "cluster_state:ok" in (state if isinstance(state, str) else str(state)) or (
            isinstance(state, dict) and state.get("cluster_state") == "ok"
        )

    until(ok, "the cluster to be up")


def run_everything(url: str) -> None:
    """Tasks of all kinds through both producers and a worker at ``url``."""
    import asyncio

    async def awaited() -> list[Any]:
        async with AsyncTaskProducer(url=url) as producer:
            ids = await producer.add_tasks([("add_one", n) for n in range(5)])
            return [await producer.get_result(i, 10) for i in ids]

    with (
        TaskProducer(url=url) as producer,
        TaskWorker(url=url, task_handlers={"add_one": add_one}, lease=2),
    ):
        assert producer.get_result(producer.add_task("add_one", 1), 10) == 2
        assert producer.get_result(producer.add_task("add_one", 1, delay=0.05), 10) == 2
        with TaskScheduler(url=url):
            assert producer.get_result(producer.add_task("add_one", 3, delay=0.05), 10) == 4
        assert asyncio.run(awaited()) == [1, 2, 3, 4, 5]
        assert producer.snapshot().counters["succeeded"] == 8


def test_a_cluster_runs_tasks(cluster: Server) -> None:
    """Both producers, the scheduler and a worker work on a Redis Cluster."""
    url = cluster.url.replace("redis://", "redis+cluster://")
    run_everything(url)
    with cluster.client() as client:
        assert client.exists("{tasks}", "history:{tasks}") == 2


@pytest.fixture
def sentinel(private_server: Callable[..., Server], tmp_path: Path) -> Iterator[str]:
    """A master and a Sentinel that watches it; the URL through the Sentinel."""
    import subprocess

    from support.workers import until

    master = private_server()
    port = free_port()
    config = tmp_path / "sentinel.conf"
    config.write_text(
        f"port {port}\nbind 127.0.0.1\ndir {tmp_path}\n"
        f"sentinel monitor main 127.0.0.1 {master.port} 1\n"
    )
    process = subprocess.Popen(
        [str(master.binary), str(config), "--sentinel"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        with redis.Redis(port=port, protocol=2, decode_responses=True) as client:

            def ready() -> bool:
                try:
                    return bool(
                        client.execute_command("SENTINEL", "get-master-addr-by-name", "main")
                    )
                except redis.ConnectionError:
                    return False

            until(ready, "the Sentinel to know its master")
        yield f"redis+sentinel://127.0.0.1:{port}/main/0"
    finally:
        process.kill()
        process.wait()


def test_sentinels_lead_to_the_master(sentinel: str) -> None:
    """Both producers, the scheduler and a worker find the master through a Sentinel."""
    run_everything(sentinel)


def test_a_sentinel_url_without_a_service_is_refused() -> None:
    """The message shows the form of a Sentinel URL."""
    for url in ("redis+sentinel://host:1", "redis+sentinel:///main"):
        with pytest.raises(ConfigurationError, match="a Sentinel URL names its service"):
            TaskProducer(url=url, timeout=0.2).add_task("a")


@pytest.mark.parametrize(
    "given",
    [
        {"password": "s3cret\ud800"},
        {"password": b"s3cret"},
        {"url": "redis://:s3cret\ud800@127.0.0.1:1/0"},
        {"url": "redis://127.0.0.1:1/0?password=s3cret\udc80"},
        {"url": "redis+sentinel://me:s3cret\ud800@127.0.0.1:1/main/0"},
        {"host": "redis://me:s3cret\ud800@127.0.0.1:1/0"},
        {"url": b"redis://:s3cret@127.0.0.1:1/0"},
        {"host": "a\ud800"},
    ],
)
def test_what_is_no_text_is_refused_without_the_password(given: dict[str, Any]) -> None:
    """Half of a surrogate pair cannot be sent: the error says so, can be printed, and neither it
    nor what led to it holds the password."""
    with pytest.raises(ConfigurationError, match=r"no text|is text") as found:
        resolve(**given)
    error: BaseException | None = found.value
    while error is not None:
        assert "s3cret" not in str(error) + repr(error) + repr(error.args)
        str(error).encode()
        error = error.__context__


def test_an_address_made_by_hand_is_text_too() -> None:
    """The connection would fail with a UnicodeEncodeError that holds the password."""
    with pytest.raises(ConfigurationError, match="no text"):
        Address("redis://:s3cret\ud800@127.0.0.1:1/0")
