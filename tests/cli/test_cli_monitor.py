"""redistq monitor: tables, JSON and CSV, exit codes, hostile text, and the live screen."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

import pytest
from support.farm import EVIL, Farm, fill
from support.gate import HandMade
from support.servers import Server
from support.terminals import Terminal

from redistq.cli import main as redistq_command
from redistq.cli import monitor as cli_monitor

MARKUP = "[bold red]x[/]"
CLEAR = "\x1b[2J\x1b]0;owned\x07\u202eevil"
LISTINGS = {
    "workers": "worker host pid state threads pending running task task_id task_since started_at "
    "deadline_at python version names rss cpu memory_limit",
    "consumers": "consumer pending idle_s inactive_s state",
    "recent": "finished_at task_id name state attempt worker queued_at started_at "
    "wait_s run_s note",
    "pending": "task_id name state worker attempt recovered queued_at since held_s "
    "deliveries entry payload done total progress",
    "delayed": "task_id name state due_at due_in_s reason event attempt recovered error_type "
    "payload",
    "dead": "task_id name state died_at error_type error attempt worker run_s payload traceback",
    "failures": "error_type name count first_at last_at example_id error",
    "batches": "batch name state total waiting succeeded failed cancelled retried created_at "
    "finished_at took_s expired version",
    "waiting": "task_id name state reason under since waited_s place parents priority attempt "
    "due_at payload",
    "limits": "key rule at_most rate per_s burst in_use waiting next_token_in_s paused_at excess "
    "on_failure weight",
    "graphs": "graph state layers total waiting succeeded failed cancelled expired retried "
    "created_at finished_at took_s",
}
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command in this process: its exit code, what it printed, its complaints."""

    def run(*args: str, columns: int = 80, at: str = url) -> tuple[int, str, str]:
        monkeypatch.setenv("COLUMNS", str(columns))
        capsys.readouterr()
        try:
            code = cli_monitor.main(["--url", at, *args])
        except SystemExit as error:
            code = int(error.code or 0)
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def hostile(farm: Farm) -> str:
    """A dead letter, a delayed and a held task, all with hostile text; the dead one's id."""
    farm.register("w1")
    farm.fetch("w1")
    farm.producer.add_task(MARKUP, {"x": EVIL})
    error = {"type": MARKUP, "message": CLEAR + EVIL, "traceback": f"Traceback\n  {CLEAR}{MARKUP}"}
    ((entry, fields),) = farm.fetch("w1")
    farm.settle("w1", [(entry, fields)], error=error)
    farm.producer.add_task(CLEAR, EVIL)
    farm.fetch("w1")
    farm.producer.add_task(EVIL, CLEAR, delay=100)
    return fields[1].decode()


# -- for scripts ---------------------------------------------------------------------------------


@pytest.mark.parametrize("filled", [False, True], ids=["empty", "filled"])
@pytest.mark.parametrize("listing", LISTINGS)
def test_json_and_csv_are_complete_and_stable(
    farm: Farm, run: Run, listing: str, filled: bool
) -> None:
    """Every listing has the same fields in both, whole values, ISO times; empty ones are valid."""
    if filled:
        fill(farm)
        HandMade(farm.client).some_of_everything()
        farm.client.hset("batch:tasks:b1", "dependants", 1)
    code, out, err = run(listing, "--json")
    assert (code, err) == (0, "")
    rows = json.loads(out)
    names = LISTINGS[listing].split()
    assert bool(rows) == filled
    for row in rows:
        assert list(row) == names
        for name, value in row.items():
            if value is not None and (name.endswith("_at") or name == "since"):
                assert datetime.fromisoformat(value).tzinfo is not None
            if value is not None and name.endswith("_s"):
                assert isinstance(value, int | float)
    code, out, _ = run(listing, "--csv")
    table = list(csv.reader(io.StringIO(out)))
    assert table[0] == names
    assert len(table) == len(rows) + 1


def test_json_holds_text_whole(farm: Farm, run: Run) -> None:
    """What a table cuts, JSON has whole; it is ASCII, so nothing in it drives a terminal."""
    hostile(farm)
    _, out, _ = run("dead", "--json")
    (row,) = json.loads(out)
    assert row["error"] == CLEAR + EVIL
    assert row["traceback"].startswith("Traceback\n")
    assert out.isascii()
    assert "\x1b" not in out


def test_scripts_need_no_optional_package(
    farm: Farm, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """JSON and CSV work without rich and pandas; a table says what to install."""
    fill(farm)
    for name in ("rich", "rich.console", "rich.table", "rich.text", "rich.box", "pandas"):
        monkeypatch.setitem(sys.modules, name, None)
    for listing in (*LISTINGS, "stats"):
        assert run(listing, "--json")[0] == 0
        assert run(listing, "--csv")[0] == 0
    code, _, err = run("dead")
    assert code == 2
    assert "pip install redistq[cli]" in err


def test_limits(farm: Farm, run: Run) -> None:
    """-n bounds the rows; less than one is refused."""
    farm.producer.add_tasks([{"type": "work", "payload": n, "delay": 9} for n in range(9)])
    assert len(json.loads(run("delayed", "-n", "4", "--json")[1])) == 4
    assert run("delayed", "-n", "0")[0] == 2
    assert run("delayed", "--json", "--csv")[0] == 2


def test_options_stand_before_or_after_the_command(farm: Farm, run: Run, url: str) -> None:
    """--queue may stand on either side."""
    farm.producer.add_task("work")
    assert json.loads(run("--queue", "other", "stats", "--json")[1])["queue_length"] == 0
    assert json.loads(run("stats", "--queue", "other", "--json")[1])["queue"] == "other"
    assert json.loads(run("stats", "--json")[1])["queue_length"] == 1


# -- for people ----------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [80, 200])
@pytest.mark.parametrize("listing", [*LISTINGS, "stats", "dashboard"])
def test_tables_fit_and_show_text_as_text(farm: Farm, run: Run, listing: str, columns: int) -> None:
    """No line is wider than the terminal; no control character and no markup gets through."""
    fill(farm)
    hostile(farm)
    code, out, err = run(listing, columns=columns)
    assert (code, err) == (0, "")
    from rich.cells import cell_len

    assert max(cell_len(line) for line in out.splitlines()) <= columns
    assert not any(c in out for c in "\x1b\x07\x9b\u202e")
    if listing in ("recent", "dead", "failures", "dashboard"):
        assert MARKUP[:10] in out


def test_dead_letters_in_80_columns(farm: Farm, run: Run) -> None:
    """Time, id, task, error and the start of the message are all there."""
    task_id = hostile(farm)
    _, out, _ = run("dead")
    (row,) = [line for line in out.splitlines() if task_id in line]
    assert MARKUP[:10] in row
    assert "�[2J" in row
    assert row.strip()[:8].count(":") == 2


def test_one_task_is_told_whole(farm: Farm, run: Run) -> None:
    """Attempts, payload, error and traceback, as text; JSON has the attempts too."""
    task_id = hostile(farm)
    code, out, _ = run("task", task_id)
    assert code == 0
    assert "\x1b" not in out
    for words in (task_id, MARKUP, EVIL, "Traceback", "failed"):
        assert words in out
    told = json.loads(run("task", task_id, "--json")[1])
    assert (told["state"], told["error_type"], len(told["attempts"])) == ("failed", MARKUP, 1)
    assert run("task", task_id, "--csv")[1].startswith("attempt,state,")


def test_an_empty_queue_says_so(run: Run) -> None:
    """Instead of an empty table a sentence."""
    assert run("dead")[1] == "No dead letters.\n"
    assert "redistq worker" in run("workers")[1]


def test_piped_dashboard_is_one_picture(farm: Farm, run: Run) -> None:
    """Without a terminal the dashboard prints what it would show, once, without keys."""
    fill(farm)
    code, out, _ = run("dashboard")
    assert code == 0
    for words in ("queued 2", "delayed 1", "dead 1", "Workers (1)", "Recent (3)", "ValueError"):
        assert words in out
    assert "q quit" not in out


# -- exit codes ----------------------------------------------------------------------------------


def test_exit_codes(farm: Farm, run: Run) -> None:
    """0 done, 1 no server, 2 cannot work, 3 not found; complaints go to standard error."""
    assert run("stats")[0] == 0
    code, out, err = run("--timeout", "0.3", "stats", at="redis://127.0.0.1:1/0")
    assert (code, out) == (1, "")
    assert "no answer from redis://127.0.0.1:1/0" in err
    assert run("stats", at="http://x")[0] == 2
    assert run("--queue", "a b", "stats")[0] == 2
    assert run("nonsense")[0] == 2
    assert run("task", "never")[0] == 3
    assert run("--help")[0] == 0


def test_check_fails_when_work_waits_for_nobody(farm: Farm, run: Run) -> None:
    """stats --check: 0 when all is well, 3 with the reason when it is not."""
    farm.register("w1")
    assert run("stats", "--check")[0] == 0
    farm.client.zadd("workers:tasks", {"w1": 1})
    farm.producer.add_task("work")
    code, _, err = run("stats", "--check")
    assert code == 3
    assert "no worker runs" in err
    farm.register("w1")
    assert run("stats", "--check", "--max-age", "1000", "--max-dead", "0")[0] == 0
    assert run("stats", "--check", "--max-age", "-1")[0] == 3
    code, out, _ = run("stats", "--check", "--max-age", "-1", "--json")
    assert code == 3
    assert "waits for" in json.loads(out)["ailing"][0]


def test_a_reader_that_leaves_is_no_error(farm: Farm, url: str) -> None:
    """`redistq monitor delayed --csv | head -1` ends quietly."""
    farm.producer.add_tasks([{"type": "w" * 190, "payload": n, "delay": 9} for n in range(3000)])
    command = [sys.executable, "-m", "redistq.cli_monitor", "--url", url]
    process = subprocess.Popen(
        [*command, "delayed", "-n", "3000", "--csv"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline().startswith(b"task_id,")
    process.stdout.close()
    assert process.wait(20) == 0
    assert process.stderr.read() == b""
    process.stderr.close()


# -- verbs ---------------------------------------------------------------------------------------


def test_a_closed_output_leaves_the_exit_code(farm: Farm, url: str) -> None:
    """``stats --check >&-`` is not taken for a server that is away."""
    line = f"exec {sys.executable} -m redistq.cli_monitor --url {url} stats >&-"
    done = subprocess.run(line, shell=True, stderr=subprocess.PIPE, timeout=30)
    assert (done.returncode, done.stderr) == (0, b"")


def test_pause_and_resume(farm: Farm, run: Run) -> None:
    """They change the queue and say so."""
    assert run("pause")[:2] == (0, "queue tasks is paused\n")
    assert farm.monitor.snapshot().paused
    assert run("resume")[0] == 0
    assert not farm.monitor.snapshot().paused


def test_replay_and_purge(farm: Farm, run: Run) -> None:
    """By id, or all with --yes; neither or both is refused; an id that is not dead is said."""
    farm.register("w1")
    ids = farm.producer.add_tasks([("work", n) for n in range(4)])
    farm.settle("w1", farm.fetch("w1"), error={"type": "E", "message": "", "traceback": ""})
    assert run("replay")[0] == 2
    assert run("replay", "--all", ids[0])[0] == 2
    assert run("replay", "--all")[0] == 2  # nobody is there to ask
    assert run("replay", ids[0])[:2] == (0, "1 task replayed\n")
    assert run("replay", "never")[0] == 3
    assert run("purge", ids[1])[:2] == (0, "1 task purged\n")
    assert run("replay", "--all", "--yes")[:2] == (0, "2 tasks replayed\n")
    assert farm.monitor.snapshot().ready == 3


def test_cancel(farm: Farm, run: Run) -> None:
    """Each id with how it stands; 3 when one could not be cancelled."""
    task_id = farm.producer.add_task("work")
    assert run("cancel", task_id)[:2] == (0, f"{task_id} cancelled\n")
    assert run("cancel", task_id, "never")[0] == 3


def test_cancel_waiting(farm: Farm, run: Run) -> None:
    """--waiting cancels what is ready and what is delayed, with --yes, and leaves what runs; with
    ids, or without either, it is refused."""
    farm.register("w1")
    held = farm.producer.add_task("work")
    farm.fetch("w1")
    ids = farm.producer.add_tasks([("work", n) for n in range(3)])
    ids.append(farm.producer.add_task("work", delay=60))
    assert run("cancel")[0] == 2
    assert run("cancel", "--waiting", ids[0])[0] == 2
    code, _, err = run("cancel", "--waiting")  # nobody is there to ask
    assert (code, err) == (2, "redistq: cancel --waiting needs --yes without a terminal\n")
    assert farm.monitor.snapshot().ready == 3
    assert run("cancel", "--waiting", "--yes") == (0, "4 tasks cancelled\n", "")
    assert {farm.producer.get_task(task_id).state for task_id in ids} == {"cancelled"}
    assert farm.producer.get_task(held).state == "running"
    assert run("cancel", "--waiting", "--yes") == (0, "0 tasks cancelled\n", "")


def test_cancelling_what_waits_asks(farm: Farm, url: str) -> None:
    """At a terminal it says how many, and anything but yes leaves them waiting."""
    farm.producer.add_tasks([("work", n) for n in range(2)])
    farm.producer.add_task("work", delay=60)
    for answer, left in ((b"n\n", 3), (b"y\n", 0)):
        terminal = Terminal(80, 24, "redistq.cli_monitor", "--url", url, "cancel", "--waiting")
        try:
            terminal.shows("Cancel 3 waiting tasks? This cannot be undone. [y/N]")
            terminal.press(answer)
            assert terminal.ends() == 0
        finally:
            terminal.close()
        shot = farm.monitor.snapshot()
        assert shot.ready + shot.delayed == left


def test_purging_all_asks(farm: Farm, url: str) -> None:
    """At a terminal it asks, and anything but yes leaves all as it was."""
    fill(farm)
    for answer, left in ((b"n\n", 1), (b"y\n", 0)):
        terminal = Terminal(80, 24, "redistq.cli_monitor", "--url", url, "purge", "--all")
        try:
            terminal.shows("Delete 1 dead letter for good? [y/N]")
            terminal.press(answer)
            assert terminal.ends() == 0
        finally:
            terminal.close()
        assert farm.monitor.snapshot().dead == left


# -- one command ---------------------------------------------------------------------------------


def test_redistq_hands_over(farm: Farm, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`redistq monitor`, `redistq dashboard` and `redistq worker` are what their names say."""
    assert redistq_command(["monitor", "--url", url, "stats", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["queue"] == "tasks"
    assert redistq_command(["dashboard", "--url", url]) == 0
    assert "queued 0" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        redistq_command(["worker", "--help"])
    assert ended.value.code == 0
    assert "python -m redistq.worker" in capsys.readouterr().out
    assert redistq_command(["--help"]) == 0
    assert redistq_command([]) == 2
    assert redistq_command(["dance"]) == 2
    assert redistq_command(["--version"]) == 0


def test_the_module_and_the_command_run(url: str) -> None:
    """`python -m redistq.cli_monitor` and the installed `redistq` are the same."""
    for command in (
        [sys.executable, "-m", "redistq.cli_monitor"],
        [sys.executable, "-m", "redistq.cli", "monitor"],
    ):
        done = subprocess.run(
            [*command, "--url", url, "consumers", "--csv"],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == "consumer,pending,idle_s,inactive_s,state\n"


# -- the live screen -----------------------------------------------------------------------------


@pytest.fixture
def screen(url: str) -> Iterator[Callable[..., Terminal]]:
    """A factory of live screens in terminals of a size."""
    opened: list[Terminal] = []

    def open_screen(columns: int = 80, rows: int = 24, at: str = url, *more: str) -> Terminal:
        command = ("redistq.cli_monitor", "--url", at, *more, "dashboard", "--interval", "0.1")
        terminal = Terminal(columns, rows, *command)
        opened.append(terminal)
        return terminal

    yield open_screen
    for terminal in opened:
        terminal.close()


@pytest.mark.parametrize(("columns", "rows"), [(80, 24), (200, 50)])
def test_the_screen_shows_the_queue(farm: Farm, screen: Any, columns: int, rows: int) -> None:
    """Figures, workers, lists and keys fit the terminal; hostile text is shown as text."""
    fill(farm)
    hostile(farm)
    terminal = screen(columns, rows)
    terminal.shows("Dead letters (2)")
    text = terminal.shows("q quit")  # the last line: all of the picture is there
    for words in (
        "waiting",
        "Workers (1)",
        "Recent (4)",
        MARKUP,
        "ValueError: " + EVIL[:20],
        "q quit",
    ):
        assert words in text
    assert len(terminal.lines) == rows
    assert b"\x1b]0;owned" not in terminal.raw
    assert "\u202e" not in text
    terminal.press(b"q")
    assert terminal.ends() == 0
    assert terminal.restored()


@pytest.mark.parametrize(("columns", "rows"), [(80, 24), (200, 50)])
def test_the_screen_shows_how_far_tasks_are(
    farm: Farm, screen: Any, columns: int, rows: int
) -> None:
    """As a bar and in words, within the line."""
    task_id = farm.producer.add_task("resize", {"n": 1})
    farm.register("w1")
    farm.fetch("w1")
    now = farm.monitor.now_ms()
    farm.client.hset(f"task:tasks:{task_id}", "progress", f"1 3 4 {now} {now + 60_000} a cat")
    terminal = screen(columns, rows)
    terminal.shows("███████▌░░ 3 of 4 (75%)")
    if columns > 80:
        terminal.shows("a cat")
    terminal.press(b"q")
    assert terminal.ends() == 0


def test_a_limit_is_paused_from_the_screen(farm: Farm, screen: Any) -> None:
    """Its list is there once there are limits; P pauses the key aimed at, Enter shows who waits."""
    terminal = screen()
    terminal.shows("queued 0")
    assert "Limits" not in terminal.text
    farm.producer.limits.set("k", at_most=1)
    ids = [farm.producer.add_task("work", limits="k") for _ in range(3)]
    terminal.shows("Limits: waiting 2 for limits")
    terminal.shows("1/1 in use")
    for _ in range(3):  # recent, dead, in hand, limits
        terminal.press(b"\t")
    terminal.shows("P pause/resume key")
    terminal.press(b"P")
    terminal.shows("k is paused")
    terminal.shows("‖ paused for")
    terminal.press(b"\r")
    terminal.shows(f"{ids[1]}  work  limit")
    terminal.press(b"\x1b")
    terminal.press(b"P")
    terminal.shows("k is resumed")
    terminal.press(b"q")
    assert terminal.ends() == 0


def test_a_schedule_is_changed_from_the_screen(farm: Farm, screen: Any) -> None:
    """Its list is there once there are schedules; P pauses the one aimed at, n runs it now, Enter
    shows its next times."""
    terminal = screen()
    terminal.shows("queued 0")
    assert "Schedules" not in terminal.text
    farm.producer.schedules.set("nightly", cron="0 3 * * *", task="work")
    terminal.shows("Schedules (1)")
    terminal.shows("At 03:00 every day")
    for _ in range(3):  # recent, dead, in hand, schedules
        terminal.press(b"\t")
    terminal.shows("n run now")
    terminal.press(b"n")
    terminal.shows("is there")
    terminal.shows("queued 1")
    terminal.press(b"P")
    terminal.shows("nightly is paused")
    terminal.shows("‖ paused")
    terminal.press(b"P")
    terminal.shows("nightly is resumed")
    terminal.press(b"\r")
    terminal.shows("missed: once, overlap: skip, by api")
    terminal.shows("next:")
    terminal.press(b"\x1b")
    terminal.press(b"q")
    assert terminal.ends() == 0


def test_figures_move(farm: Farm, screen: Any) -> None:
    """What is added while the screen is up appears by itself."""
    terminal = screen()
    terminal.shows("queued 0")
    farm.producer.add_tasks([("work", n) for n in range(7)])
    terminal.shows("queued 7")
    terminal.shows("no worker is listening")
    terminal.press(b"q")
    assert terminal.ends() == 0


def test_p_pauses_and_resumes(farm: Farm, screen: Any) -> None:
    """One key, at once, and the screen says which it is."""
    terminal = screen()
    terminal.shows("queued 0")
    terminal.press(b"p")
    terminal.shows("Paused")
    assert farm.monitor.snapshot().paused
    terminal.press(b"p")
    terminal.until(lambda text: "Paused:" not in text, "no longer paused")
    assert not farm.monitor.snapshot().paused


def test_r_asks_before_it_sends_dead_letters_again(farm: Farm, screen: Any) -> None:
    """Any key but y leaves them; y sends them all."""
    fill(farm)
    terminal = screen()
    terminal.shows("Dead letters (1)")
    terminal.press(b"r")
    terminal.shows("Send 1 failed task to the workers again? y / n")
    terminal.press(b"n")
    terminal.shows("nothing was changed")
    assert farm.monitor.snapshot().dead == 1
    terminal.press(b"r")
    terminal.shows("Send 1 failed task to the workers again? y / n")
    terminal.press(b"y")
    terminal.shows("1 failed task sent again")
    assert farm.monitor.snapshot().dead == 0
    terminal.press(b"r")
    terminal.shows("there are no dead letters")


def test_arrows_move_and_enter_shows(farm: Farm, screen: Any) -> None:
    """Down moves the mark, Tab changes the list, Enter shows a task's traceback, Esc goes back."""
    fill(farm)
    hostile(farm)
    terminal = screen()
    terminal.shows("Dead letters (2)")

    def marked() -> str:
        return next((line for line in terminal.lines if line.startswith("▸")), "")

    terminal.until(lambda _: MARKUP in marked(), "the newest end is marked")
    terminal.press(b"\x1b[B")
    terminal.until(lambda _: "ValueError" in marked(), "the next is marked")
    terminal.press(b"\t")
    terminal.until(lambda _: f"{MARKUP}: " in marked(), "the first dead letter is marked")
    terminal.press(b"\r")
    terminal.shows("Traceback")
    assert "Recent (" not in terminal.shows("Esc back")
    terminal.press(b"\x1b")
    terminal.shows("Recent (")
    terminal.press(b"\x1b[Z\x1bOA\x1b[5~\x1b[99~z")  # back, up, page up, and keys of no meaning
    terminal.until(lambda _: MARKUP in marked(), "the newest end is marked again")
    terminal.press(b"q")
    assert terminal.ends() == 0
    assert terminal.restored()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)]
)
def test_a_signal_restores_the_terminal(screen: Any, number: signal.Signals, code: int) -> None:
    """However it is told to end, the terminal is as it was before."""
    terminal = screen()
    terminal.shows("queued 0")
    os.kill(terminal.process.pid, number)
    assert terminal.ends() == code
    assert terminal.restored()


def test_a_server_that_goes_is_said_and_comes_back(private_server: Any, screen: Any) -> None:
    """The screen keeps its last picture, says what is wrong, and goes on by itself."""
    server: Server = private_server()
    terminal = screen(80, 24, server.url, "--timeout", "0.3")
    terminal.shows("queued 0")
    server.kill()
    terminal.shows("no answer from")
    server.start()
    terminal.until(lambda text: "no answer" not in text, "the server answers again")
    terminal.press(b"q")
    assert terminal.ends() == 0
    assert terminal.restored()


def test_a_screen_without_a_server_does_not_start(url: str) -> None:
    """Without a first answer it ends with 1 and leaves the terminal alone."""
    terminal = Terminal(
        80, 24, "redistq.cli_monitor", "--url", "redis://127.0.0.1:1/0", "dashboard"
    )
    try:
        assert terminal.ends() == 1
        assert b"\x1b[?1049h" not in terminal.raw
        assert "no answer" in terminal.text
    finally:
        terminal.close()


def test_a_small_terminal_still_works(farm: Farm, screen: Any) -> None:
    """In 40 columns and 8 lines the head is there and q leaves it."""
    fill(farm)
    terminal = screen(40, 8)
    terminal.shows("queued 2")
    terminal.press(b"q")
    assert terminal.ends() == 0
    assert terminal.restored()


def test_keys_without_a_terminal() -> None:
    """Input that is no terminal, or closed, gives no keys and no error."""
    from redistq.cli.terminal import Keys

    with open(os.devnull) as nothing, Keys(nothing) as keys:
        assert not keys.there
        assert keys.read(0.001) is None
    assert not Keys(nothing).there


COMMANDS = [
    ("redistq.cli_monitor", "stats"),
    ("redistq.cli_monitor", "stats", "--json"),
    ("redistq.cli_monitor", "recent", "--csv"),
    ("redistq.cli_monitor", "dashboard"),
    ("redistq.cli_monitor", "resume"),
    ("redistq.cli", "--help"),
    ("redistq.cli", "--version"),
]


def _ended(url: str, arguments: tuple[str, ...], stdout: Any) -> tuple[int, str]:
    """How a command ended, and what it said on standard error."""
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        env={**os.environ, "REDISTQ_URL": url},
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_output_that_cannot_be_written_is_one_line(url: str, arguments: tuple[str, ...]) -> None:
    """A full disk behind standard output: one line that says so, and exit code 1."""
    with open("/dev/full", "w") as full:
        code, said = _ended(url, arguments, full)
    assert (code, said) == (
        1,
        "redistq: its output cannot be written: No space left on device\n",
    )


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_a_reader_that_has_gone_is_no_error(url: str, arguments: tuple[str, ...]) -> None:
    """``| head`` closes the pipe before all was written: nothing is said."""
    read, write = os.pipe()
    os.close(read)
    try:
        assert _ended(url, arguments, write) == (0, "")
    finally:
        os.close(write)
