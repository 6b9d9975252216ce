"""Workers in odd surroundings: what handlers fork and start, how Python was started, and what is
closed, missing or in the way."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from support.workers import Command, alive, command, history, registered, until, worker_commands

import redistq
from redistq import ConfigurationError, TaskProducer
from redistq.system import interpreter as interpreters
from redistq.system.interpreter import interpreter
from redistq.system.processes import Helper
from redistq.worker import child as _child

JOBS = """
import asyncio, atexit, multiprocessing, os, signal, subprocess, sys, time, warnings
from concurrent.futures import ProcessPoolExecutor
from redistq import task

def square(n):
    return n * n

def ended(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

@task(retries=0, timeout=30)
def pool(method):
    with multiprocessing.get_context(method).Pool(1) as pool:
        return pool.map(square, [1, 2, 3])

@task(retries=0, timeout=30)
def executor(method):
    with ProcessPoolExecutor(1, multiprocessing.get_context(method)) as pool:
        return list(pool.map(square, [1, 2, 3]))

@task(retries=0, timeout=30)
def manager(payload):
    with multiprocessing.Manager() as manager:
        return dict(manager.dict(a=1))

@task(retries=0, timeout=30)
def reads(how):
    if how == "program":
        return subprocess.run(["cat"], capture_output=True, text=True, timeout=10).stdout
    return sys.stdin.read()

@task(retries=0, timeout=30)
async def reads_beside(payload):
    program = await asyncio.create_subprocess_exec("cat", stdout=subprocess.PIPE)
    return (await program.communicate())[0].decode()

@task(retries=0, timeout=30)
def interrupts(payload):
    program = subprocess.Popen(["sleep", "60"])
    program.send_signal(signal.SIGINT)
    return program.wait(10)

@task(retries=0)
def forks(how):
    if pid := os.fork():
        return ["parent", ended(pid)]
    if how == "exits":
        sys.exit(7)
    if how == "raises":
        raise ValueError("in the child")
    return "child"

@task(retries=0)
async def forks_beside(how):
    if pid := os.fork():
        return ["parent", ended(pid)]
    return "child"

@task(retries=0)
def forks_and_ends(how):
    if not (pid := os.fork()):
        time.sleep(60)
    os.kill(pid, signal.SIGTERM)
    return ended(pid)

@task
def flags(payload):
    try:
        warnings.warn("a", UserWarning)
        warned = "warned"
    except UserWarning:
        warned = "raised"
    return {
        "debug": __debug__, "warning": warned, "own option": sys._xoptions.get("own"),
        "isolated": sys.flags.isolated, "no bytecode": sys.dont_write_bytecode,
        "argv": sys.argv[1:],
    }

@task
def prints(payload):
    print("printed", payload)
    print("to the error", payload, file=sys.stderr)
    return os.getpid()

@task
def leaves_an_orphan(payload):
    shell = subprocess.run(["sh", "-c", "sleep 0.1 >&- & echo $!"], capture_output=True)
    return int(shell.stdout)

@task
def is_there(pid):
    return os.path.exists(f"/proc/{pid}")

@task
def fails_outside(payload):
    return subprocess.run(["sh", "-c", "exit 3"]).returncode

atexit.register(lambda: open("bye", "a").write("x"))
"""


@pytest.fixture
def jobs(tmp_path: Path) -> Path:
    """A folder with the module of handlers."""
    (tmp_path / "jobs.py").write_text(JOBS)
    return tmp_path


@pytest.fixture
def worker(jobs: Path, url: str) -> Iterator[Callable[..., Command]]:
    """Starts the worker command with one thread."""
    with worker_commands(jobs, url, "jobs", "--threads", "1") as start:
        yield start


@pytest.fixture
def producer(url: str) -> Iterator[TaskProducer]:
    """A producer for the default server."""
    with TaskProducer(url=url) as producer:
        yield producer


# -- what handlers fork and start ------------------------------------------------------------------


def test_handlers_start_processes_of_any_kind(
    worker: Callable[..., Command], producer: TaskProducer
) -> None:
    """Pools by fork, spawn and forkserver work and end; children get an empty standard input and
    the usual signals; the worker drains as ever."""
    one = worker()
    expected: list[tuple[str, Any, Any]] = [
        *((name, how, [1, 4, 9]) for name in ("pool", "executor") for how in ("fork", "spawn")),
        ("executor", "forkserver", [1, 4, 9]),
        ("manager", None, {"a": 1}),
        ("reads", "program", ""),
        ("reads", "itself", ""),
        ("reads_beside", None, ""),
        ("interrupts", None, -signal.SIGINT),
        ("forks_and_ends", None, -signal.SIGTERM),
    ]
    for name, payload, result in expected:
        assert producer.get_result(producer.add_task(name, payload), 40) == result, (name, payload)
    one.send(signal.SIGTERM)
    assert one.wait() == 0


@pytest.mark.parametrize(
    ("name", "how", "code"),
    [
        ("forks", "returns", 0),
        ("forks", "exits", 7),
        ("forks", "raises", 1),
        ("forks_beside", "returns", 0),
    ],
)
def test_a_forked_process_ends_with_its_handler(
    worker: Callable[..., Command],
    producer: TaskProducer,
    db: redis.Redis,
    name: str,
    how: str,
    code: int,
) -> None:
    """However it leaves the handler, the task is its parent's: settled once, with its result."""
    worker()
    task_id = producer.add_task(name, how)
    assert producer.get_result(task_id, 15) == ["parent", code]
    assert producer.get_result(producer.add_task("prints", 1), 10) in registered(db).values()
    assert history(db, task_id) == ["succeeded"]


def test_a_process_that_a_handler_left_keeps_no_line_open(tmp_path: Path) -> None:
    """Neither a forked process nor a started program holds the pipes of a helper or its starter."""
    (tmp_path / "leaves.py").write_text(
        "import os, subprocess, time\n"
        "def begin(starter):\n"
        "    if not os.fork(): time.sleep(60); os._exit(0)\n"
        "    left = subprocess.Popen(['sleep', '60'], close_fds=False)\n"
        "    starter.report({'left': left.pid})\n"
        "    os._exit(0)\n"
    )
    sys.path.insert(0, str(tmp_path))
    try:
        helper = Helper("leaves")
        helper.introduce({})
        news = helper.report(20)
        assert news is not None
        assert helper.process.wait(10) == 0
        assert helper.report(20) is None
        assert helper._reports == -1, "it is the end, not the time limit"
    finally:
        sys.path.remove(str(tmp_path))
        os.killpg(helper.pid, signal.SIGKILL)
        helper.let_go()


# -- modules that cannot work ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("import sys; sys.exit(5)", "ends the program when it is imported (sys.exit(5))"),
        ("import os; os._exit(5)", "3 times in a row; the last one exited with code 5"),
        ("import ctypes; ctypes.string_at(0)", "the last one was killed by SIGSEGV"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("import asyncio; raise asyncio.CancelledError", "CancelledError"),
        ("class Odd(BaseException): pass\nraise Odd('x')", "Odd: x"),
    ],
    ids=["sys.exit", "os._exit", "crash", "interrupt", "cancelled", "odd"],
)
def test_a_module_that_ends_its_process_ends_the_command(
    worker: Callable[..., Command], jobs: Path, source: str, words: str
) -> None:
    """Exit code 2 and the reason, instead of new processes for ever."""
    (jobs / "ends.py").write_text(source)
    one = worker(module="ends", ready=False)
    assert one.wait() == 2, one.output
    assert words in one.output
    assert "\nThread 0x" not in one.output  # of a crash the thread that crashed, not all of ours


@pytest.mark.parametrize("copy", ["goes on", "fails", "exits"])
def test_a_process_that_a_module_forked_takes_no_part(
    worker: Callable[..., Command],
    jobs: Path,
    producer: TaskProducer,
    db: redis.Redis,
    copy: str,
) -> None:
    """The copy ends with the import, however that ends; the worker that imports goes on alone."""
    ends = {"goes on": "pass", "fails": "raise ValueError", "exits": "raise SystemExit(0)"}[copy]
    (jobs / "forks.py").write_text(
        "import os\nfrom redistq import task\n"
        f"copy = os.fork()\nif not copy: {ends}\n"
        "@task\ndef code(payload):\n"
        "    return os.waitstatus_to_exitcode(os.waitpid(copy, 0)[1])\n"
        "@task\ndef where(payload): return os.getpid()\n"
    )
    one = worker(module="forks")
    assert producer.get_result(producer.add_task("code"), 15) == (1 if copy == "fails" else 0)
    ran = {producer.get_result(producer.add_task("where"), 15) for _ in range(10)}
    assert ran == set(registered(db).values())
    one.send(signal.SIGTERM)
    assert one.wait() == 0
    assert "cannot start" not in one.output


def test_a_worker_that_was_ready_once_is_started_again_for_ever(
    worker: Callable[..., Command], jobs: Path, db: redis.Redis
) -> None:
    """Starts that fail later, even without a reason, do not end the command."""
    (jobs / "fickle.py").write_text(
        "import os\nfrom redistq import task\n"
        "if os.path.exists('bad'): os._exit(5)\n"
        "@task\ndef ok(payload): return payload\n"
    )
    one = worker(module="fickle")
    (jobs / "bad").touch()
    os.kill(next(iter(registered(db).values())), signal.SIGKILL)
    until(lambda: one.output.count("exited with code 5; starting another") >= 3, "three tries", 20)
    (jobs / "bad").unlink()
    until(lambda: registered(db), "a worker again", 20)
    one.send(signal.SIGTERM)
    assert one.wait() == 0


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_a_worker_that_still_imports_is_ended_at_once(
    worker: Callable[..., Command], jobs: Path, end: signal.Signals
) -> None:
    """An import without end holds up neither a stop nor, once the supervisor is gone, the
    process."""
    (jobs / "endless.py").write_text(
        "import os, time\nprint('child', os.getpid(), flush=True)\nwhile True: time.sleep(0.01)\n"
    )
    one = worker(module="endless", ready=False)
    one.says("child")
    child = int(one.output.split("child ")[1].split()[0])
    one.send(end)
    assert one.wait(8) == (0 if end == signal.SIGTERM else -end)
    until(lambda: not alive(child), "its end")


def test_a_slow_import_is_shown_where_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """While handlers are being imported, the place is logged again and again."""
    monkeypatch.setattr(_child, "SLOW_IMPORT_S", 0.01)
    loaded = threading.Event()
    watch = threading.Thread(target=_child._say_when_slow, args=(loaded, threading.get_ident()))
    with caplog.at_level(logging.WARNING):
        watch.start()
        until(lambda: len(caplog.records) > 1, "two lines")
        loaded.set()
        watch.join()
    assert "still being imported after 0.01 s" in caplog.messages[0]
    assert "test_a_slow_import_is_shown_where_it_is" in caplog.messages[0]


# -- the interpreter -------------------------------------------------------------------------------


def test_handlers_run_with_the_options_of_the_command(
    worker: Callable[..., Command], producer: TaskProducer
) -> None:
    """-O, -W, -X and -B hold in worker processes; the command line of ours is not theirs."""
    worker(flags=("-O", "-B", "-W", "error::UserWarning", "-X", "own=1"))
    assert producer.get_result(producer.add_task("flags"), 10) == {
        "debug": False,
        "warning": "raised",
        "own option": "1",
        "isolated": 0,
        "no bytecode": True,
        "argv": [],
    }


@pytest.mark.parametrize("flag", ["-I", "-P"])
def test_a_safe_path_still_finds_handlers(
    worker: Callable[..., Command], producer: TaskProducer, flag: str
) -> None:
    """Options that keep the current folder off the path leave it last, where handlers are found."""
    worker(flags=(flag,))
    flags = producer.get_result(producer.add_task("flags"), 10)
    assert flags["isolated"] == (flag == "-I")


PROGRAM = """
import os, sys
from redistq import RedistqError, TaskWorker
open("runs", "a").write("x")
sys.executable = {executable}
try:
    with TaskWorker(task_handlers={{"f": abs}}, processes={processes}): print("started")
except RedistqError as error: print(type(error).__name__, error)
"""


@pytest.mark.parametrize("processes", [0, 1])
@pytest.mark.parametrize("executable", ["None", "''", "'/bin/false'", "os.path.abspath('frozen')"])
def test_a_program_that_is_no_interpreter_is_not_started_as_one(
    tmp_path: Path, url: str, executable: str, processes: int
) -> None:
    """Embedded and frozen Pythons get an error that names the setting, and the way out works."""
    frozen = tmp_path / "frozen"
    frozen.write_text(f"#!/bin/sh\nexec {sys.executable} program.py\n")
    frozen.chmod(0o755)
    (tmp_path / "program.py").write_text(PROGRAM.format(executable=executable, processes=processes))
    with command(tmp_path, "program.py", url=url) as one:
        assert one.wait() == 0
        assert "ConfigurationError sys.executable is" in one.output
        assert "set REDISTQ_PYTHON to one of this version" in one.output
    assert (tmp_path / "runs").read_text() == "x"
    with command(tmp_path, "program.py", url=url, REDISTQ_PYTHON=sys.executable) as one:
        assert one.wait() == 0
        assert "started" in one.output


def test_an_interpreter_that_cannot_run_us_is_said(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is missing, is no program, or ends without a word: the error names it or its end."""
    not_there = tmp_path / "nothing"
    monkeypatch.setenv("REDISTQ_PYTHON", str(not_there))
    with pytest.raises(ConfigurationError, match="nothing', which is no program"):
        interpreter()
    for content, words in (("", "cannot be run"), ("#!/bin/sh\nexit 9\n", "exited with code 9")):
        python = tmp_path / "python"
        python.write_text(content)
        python.chmod(0o755)
        monkeypatch.setenv("REDISTQ_PYTHON", str(python))
        worker = redistq.TaskWorker(url=url, task_handlers={"f": abs})
        with pytest.raises(ConfigurationError, match=words):
            worker.start()
        assert not worker.running


def test_a_link_to_an_interpreter_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interpreter under another name is known by what the link leads to."""
    monkeypatch.delenv("REDISTQ_PYTHON", raising=False)
    link = tmp_path / "service"
    link.symlink_to(os.path.realpath(sys.executable))
    monkeypatch.setattr(sys, "executable", str(link))
    assert interpreter() == str(link)
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with pytest.raises(ConfigurationError, match="REDISTQ_PYTHON"):
        interpreter()


# -- names and places ------------------------------------------------------------------------------


@pytest.mark.own_start
def test_files_named_like_modules_that_we_need_are_not_taken_for_them(
    worker: Callable[..., Command], jobs: Path, producer: TaskProducer
) -> None:
    """A queue.py or redis.py beside the handlers breaks nothing; what we do not use is theirs."""
    taken = "queue redis logging random socket hiredis argparse typing re enum secrets hmac pickle"
    for name in taken.split():
        (jobs / f"{name}.py").write_text("raise ImportError('the wrong one')\n")
    (jobs / "statistics.py").write_text("own = True\n")
    (jobs / "mine.py").write_text(
        "import statistics\nfrom redistq import task\n"
        "@task\ndef own(payload): return statistics.own\n"
    )
    one = worker(module="mine")
    assert producer.get_result(producer.add_task("own"), 10) is True
    one.send(signal.SIGTERM)
    assert one.wait() == 0


def test_the_package_works_out_of_a_zip(tmp_path: Path, url: str) -> None:
    """Scripts are read and processes started where the package has no folder of its own."""
    package = Path(redistq.__file__).parent
    scripts = package / "_lua" if (package / "_lua").is_dir() else package.parent / "lua"
    with zipfile.ZipFile(tmp_path / "app.zip", "w") as app:
        for path in package.rglob("*.py"):
            app.write(path, f"redistq/{path.relative_to(package)}")
        for path in scripts.rglob("*.lua"):
            app.write(path, f"redistq/_lua/{path.relative_to(scripts)}")
    program = (
        "import sys\nsys.path.insert(0, 'app.zip')\n"
        "import redistq\nfrom redistq import TaskProducer, TaskWorker\n"
        "assert 'app.zip' in redistq.__file__\n"
        "for processes in (0, 1):\n"
        "    with TaskWorker(task_handlers={'f': abs}, processes=processes), TaskProducer() as p:\n"
        "        print('got', p.get_result(p.add_task('f', -3), 20))\n"
    )
    with command(tmp_path, "-c", program, url=url) as one:
        assert one.wait(40) == 0, one.output
        assert one.output.count("got 3") == 2


def test_a_working_folder_that_was_deleted_is_no_obstacle(tmp_path: Path, url: str) -> None:
    """Threads and processes start all the same."""
    program = (
        "import os, shutil\nfrom redistq import TaskProducer, TaskWorker\n"
        "shutil.rmtree(os.getcwd())\n"
        "for processes in (0, 1):\n"
        "    with TaskWorker(task_handlers={'f': abs}, processes=processes), TaskProducer() as p:\n"
        "        print('got', p.get_result(p.add_task('f', -3), 20))\n"
    )
    folder = tmp_path / "gone"
    folder.mkdir()
    with command(folder, "-c", program, url=url) as one:
        assert one.wait(40) == 0, one.output
        assert one.output.count("got 3") == 2


# -- standard streams ------------------------------------------------------------------------------


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_streams_cost_no_task(
    jobs: Path, url: str, producer: TaskProducer, closed: str
) -> None:
    """What handlers print goes nowhere, and not into a connection that got the stream's number."""
    line = f"exec {sys.executable} -m redistq.worker jobs {closed}"
    env = {**os.environ, "REDISTQ_URL": url}
    shell = subprocess.Popen(["sh", "-c", line], cwd=jobs, env=env, stderr=subprocess.DEVNULL)
    try:
        for n in range(3):
            assert producer.get_result(producer.add_task("prints", n), 15)
        assert producer.get_result(producer.add_task("pool", "fork"), 15) == [1, 4, 9]
    finally:
        shell.terminate()
        assert shell.wait(15) == 0


def test_the_input_of_the_command_is_not_that_of_its_handlers(
    jobs: Path, url: str, producer: TaskProducer
) -> None:
    """What comes in there is nobody's, and a handler that reads waits for nothing."""
    env = {**os.environ, "REDISTQ_URL": url}
    args = [sys.executable, "-m", "redistq.worker", "jobs"]
    with subprocess.Popen(args, cwd=jobs, env=env, stdin=subprocess.PIPE) as worker:
        try:
            for how in ("program", "itself"):
                assert producer.get_result(producer.add_task("reads", how), 15) == ""
        finally:
            worker.terminate()


def test_prints_into_a_pipe_that_nobody_reads_cost_no_task(
    jobs: Path, url: str, producer: TaskProducer
) -> None:
    """The reader of a worker's output may end: tasks go on, and the exit code is right."""
    worker = subprocess.Popen(
        [sys.executable, "-m", "redistq.worker", "jobs"],
        cwd=jobs,
        env={**os.environ, "REDISTQ_URL": url},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        assert worker.stdout is not None
        producer.get_result(producer.add_task("prints", "first"), 15)
        worker.stdout.close()
        for n in range(5):
            assert producer.get_result(producer.add_task("prints", n), 15)
    finally:
        worker.terminate()
        assert worker.wait(15) == 0


def test_a_clean_stop_runs_exit_functions_and_keeps_prints(
    worker: Callable[..., Command], jobs: Path, producer: TaskProducer, db: redis.Redis
) -> None:
    """Functions registered with atexit run once in each worker process; what was printed is there,
    of a killed process too."""
    one = worker(PYTHONUNBUFFERED="")
    producer.get_result(producer.add_task("prints", "early"), 10)
    (first,) = registered(db).values()
    os.kill(first, signal.SIGKILL)
    one.says("printed early")
    assert producer.get_result(producer.add_task("prints", "late"), 10) != first
    one.send(signal.SIGTERM)
    assert one.wait() == 0
    assert "printed late" in one.output
    assert (jobs / "bye").read_text() == "x"


def test_exit_functions_that_do_not_end_hold_up_nothing(
    worker: Callable[..., Command], jobs: Path, producer: TaskProducer
) -> None:
    """They get a few seconds; then the process ends, cleanly."""
    (jobs / "lingers.py").write_text(
        "import atexit, time\nfrom redistq import task\nfrom redistq.worker import child\n"
        "child.ATEXIT_S = 0.2\natexit.register(time.sleep, 600)\n"
        "@task\ndef ok(payload): return payload\n"
    )
    one = worker(module="lingers")
    assert producer.get_result(producer.add_task("ok", 1), 10) == 1
    one.send(signal.SIGTERM)
    assert one.wait(10) == 0
    assert "exit functions did not end within 0.2 s" in one.output


# -- process 1 -------------------------------------------------------------------------------------


def can_be_process_1() -> bool:
    """Whether this machine lets us make a process space of our own."""
    if shutil.which("unshare") is None:
        return False
    probe = ["unshare", "--pid", "--fork", "--mount-proc", "true"]
    return subprocess.run(probe, capture_output=True).returncode == 0


@pytest.mark.skipif(not can_be_process_1(), reason="needs root and unshare")
def test_as_process_1_it_buries_what_handlers_left_behind(
    jobs: Path, url: str, producer: TaskProducer
) -> None:
    """Orphans leave no zombies, programs of handlers keep their exit codes, a signal drains."""
    space = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    worker = subprocess.Popen(
        [*space, sys.executable, "-m", "redistq.worker", "jobs"],
        cwd=jobs,
        env={**os.environ, "REDISTQ_URL": url},
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(3):
            orphan = producer.get_result(producer.add_task("leaves_an_orphan"), 15)
            assert producer.get_result(producer.add_task("fails_outside"), 15) == 3
            until(
                lambda pid=orphan: not producer.get_result(producer.add_task("is_there", pid), 15),
                "its burial",
            )
        children = Path(f"/proc/{worker.pid}/task/{worker.pid}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGTERM)
        assert worker.wait(15) == 0
    finally:
        worker.kill()
        worker.wait()


# -- the line to a process -------------------------------------------------------------------------


def test_a_process_that_does_not_listen_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However much there is to say; told to stop before it knows what it is for, it is ended."""
    sleeper = tmp_path / "python-sleeper"
    sleeper.write_text("#!/bin/sh\nexec sleep 60\n")
    sleeper.chmod(0o755)
    monkeypatch.setenv("REDISTQ_PYTHON", str(sleeper))
    helper = Helper("redistq.worker.child")
    helper.introduce({"handlers": "x" * 1_000_000}, timeout=0.2)
    assert helper.report(0.1) is None
    helper.order("stop 30")
    assert helper.process.wait(10) == -signal.SIGKILL
    assert helper.report(10) is None
    helper.let_go()
    helper.let_go()
    helper.order("stop 1")


def test_sockets_of_coroutine_libraries_keep_their_own_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """gevent and eventlet put their own sockets in place: a limit in the kernel is none there."""
    from redistq.connection.transport import SocketTransport

    green = type("socket", (socket.socket,), {"__module__": "gevent._socket3"})
    for kind, timeout in ((green, 1.5), (socket.socket, None)):
        monkeypatch.setattr(socket, "socket", kind)
        with kind() as sock:
            parser = SimpleNamespace(parse_error=Exception)
            line = SocketTransport(SimpleNamespace(_sock=sock, _parser=parser))
            line.limit(1.5)
            assert sock.gettimeout() == timeout


def test_pipes_are_no_standard_streams() -> None:
    """Though those be closed, a pipe takes no number of theirs: a child's own would replace it."""
    code = (
        "import os, sys\nfrom redistq.system.processes import pipe\n"
        "for n in (0, 1): os.close(n)\n"
        "ends = pipe()\n"
        "print(min(ends) > 2, [*map(os.get_inheritable, ends)], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr == "True [False, False]\n"


def test_the_import_path_travels_as_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Relative entries become absolute, odd ones are left out, markers of finders stay."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lib").mkdir()
    odd: list[Any] = ["", "lib", "__editable__.x.__path_hook__", tmp_path, "/nowhere"]
    monkeypatch.setattr(sys, "path", odd)
    expected = [str(tmp_path), str(tmp_path / "lib"), "__editable__.x.__path_hook__", "/nowhere"]
    assert interpreters.import_path() == expected
    monkeypatch.setattr(sys, "path", ["/nowhere", "/mine"])
    interpreters.use_import_path(expected)
    assert sys.path == [*expected, "/mine"]
