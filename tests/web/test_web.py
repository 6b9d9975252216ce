"""The web dashboard as an application: who is let in, what pages show, what buttons do.

Asked through Starlette's client, against a real server. The command and a browser have their own.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from support.farm import EVIL, Farm, fill
from support.workers import until

from redistq import ConfigurationError, TaskProducer, web
from redistq.web import command, live, streams
from redistq.web.live import Gallery

TOKEN = "a-full-token-of-the-test"
VIEWER = "a-viewers-token-of-the-test"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
HTML = {"Accept": "text/html,*/*"}


def client_of(app: Any, role: str = "", **options: Any) -> TestClient:
    """A browser, which has followed the address with a token unless ``role`` is empty."""
    client = TestClient(app, base_url="http://testserver", headers=HTML, **options)
    if role:
        client.get(f"/?token={role}")
    return client


@pytest.fixture
def app(url: str, farm: Farm) -> Any:
    """The application, and a queue with something of everything."""
    fill(farm)
    return web.app(url=url, token=TOKEN, viewer_token=VIEWER)


@pytest.fixture
def full(app: Any) -> Iterator[TestClient]:
    """A browser of somebody who may act."""
    with client_of(app, TOKEN) as client:
        yield client


def act(client: TestClient, what: str, queue: str = "tasks", **more: str) -> Any:
    """Press a button, with JavaScript."""
    return client.post(
        f"/act?q={queue}",
        data={"what": what, **more},
        headers={"Accept": "application/json", "Origin": "http://testserver"},
    )


def test_pages_show_what_there_is_and_lead_to_it(full: TestClient, farm: Farm) -> None:
    """Overview, queue, task, batch and search; text of the queue stays text."""
    home = full.get("/").text
    assert 'href="/queue?q=tasks"' in home
    page = full.get("/queue?q=tasks").text
    assert EVIL not in page
    assert unescape(page).count(EVIL) >= 2
    for words in ("Retry failed (1)", "Retry group", "Cancel not started", "Recent attempts"):
        assert words in page
    failed = farm.monitor.records.dead()[0]
    assert f'href="/task?q=tasks&amp;id={failed.id}"' in page
    shown = full.get(f"/task?q=tasks&id={failed.id}").text
    for words in (failed.id, "ValueError", "Traceback: ", "Edit and retry"):
        assert words in unescape(shown)
    assert full.get("/task?q=tasks&id=nobody").status_code == 404
    batch = full.get("/batch?q=tasks&id=b1").text
    assert re.search(r"2 of 3 \(67%\)", batch)
    assert "/task?q=tasks&amp;id=b1%3A2" in batch
    assert full.get("/batch?q=tasks&id=b9").status_code == 404
    found = full.get("/search?q=tasks&text=valueerror").text
    assert failed.id in found
    assert "1 task found" in found
    assert "Nothing was found" in full.get("/search?q=tasks&text=work&state=expired").text
    assert failed.id in full.get("/search?q=tasks&state=failed").text
    assert full.get("/queue?q=a b").status_code == 400


def test_buttons_do_what_they_say(full: TestClient, farm: Farm, db: Any) -> None:
    """What cannot be undone is asked first; without JavaScript it is a page that asks."""
    assert act(full, "pause").json()["said"].endswith("Paused.")
    assert db.hget("meta:tasks", "paused") == "1"
    assert ">Resume<" in full.get("/queue?q=tasks").text
    act(full, "resume")
    assert db.hget("meta:tasks", "paused") in (None, "0")
    asked = act(full, "retry").json()
    assert asked["question"] == "Send 1 failed task to the workers again?"
    assert db.zcard("dead:tasks") == 1
    plain = {"Accept": "text/html", "Origin": "http://testserver"}
    page = full.post("/act?q=tasks", data={"what": "retry"}, headers=plain)
    assert "Send 1 failed task to the workers again?" in page.text
    sure = {"what": "group-retry ValueError\r\nwork", "sure": "1"}
    back = full.post("/act?q=tasks", data=sure, headers=plain)
    assert back.url.path == "/queue"
    assert "1 failed task sent again." in back.text
    assert db.zcard("dead:tasks") == 0
    waiting = farm.monitor.records.delayed()[0].id
    assert "cancelled" in act(full, f"task-cancel {waiting}").json()["said"]
    assert act(full, "nonsense").status_code == 400


def test_a_failed_task_is_sent_with_other_arguments(full: TestClient, farm: Farm, db: Any) -> None:
    """What is no JSON comes back as it was typed."""
    failed = farm.monitor.records.dead()[0].id
    assert "textarea" in full.get(f"/edit?q=tasks&id={failed}").text
    own = {"Origin": "http://testserver"}
    wrong = full.post("/send?q=tasks", data={"id": failed, "payload": "{nope"}, headers=own)
    assert wrong.status_code == 400
    assert "{nope" in wrong.text
    before = db.xlen("tasks")
    done = full.post("/send?q=tasks", data={"id": failed, "payload": "[7]"}, headers=own)
    assert "is added, with other arguments" in done.text
    assert db.xlen("tasks") == before + 1


def shown(client: TestClient, words: str) -> str:
    """The queue's page once it shows these words: what a page before has just seen is shared."""
    page = until(
        lambda: words in (text := client.get("/queue?q=tasks").text) and text,
        f"{words} on the page",
    )
    return str(page)


def test_how_to_edit_is_said_to_who_edits_alone(full: TestClient, farm: Farm, app: Any) -> None:
    """What a button does is said on all pages of the queue; what does nothing yet, on one."""
    failed = farm.monitor.records.dead()[0].id
    how = "Edit the arguments, then Send"
    assert how in full.get(f"/edit?q=tasks&id={failed}").text
    with client_of(app, VIEWER) as other:
        for page in ("/queue?q=tasks", f"/task?q=tasks&id={failed}"):
            assert how not in full.get(page).text
            assert how not in other.get(page).text
        act(full, "pause")
        assert "UTC: Paused." in other.get("/queue?q=tasks").text


def test_limits_are_paused_by_their_buttons(full: TestClient, farm: Farm) -> None:
    """A key with its state, and no button for who only looks."""
    farm.producer.limits.set("api", at_most=1)
    shown(full, 'value="key-pause api"')
    assert act(full, "key-pause api").json()["said"].endswith("api is paused.")
    state = farm.producer.limits.get("api")
    assert state is not None
    assert state.paused_ms is not None
    assert 'value="key-pause api"' not in shown(full, 'value="key-resume api"')
    assert act(full, "key-resume api").json()["said"].endswith("api is resumed.")
    state = farm.producer.limits.get("api")
    assert state is not None
    assert state.paused_ms is None


def test_schedules_are_paused_and_run_by_their_buttons(
    full: TestClient, farm: Farm, db: Any
) -> None:
    """Run now adds a task, once while the one before goes on; a name that is none is said."""
    farm.producer.schedules.set("nightly", cron="0 3 * * *", task="report")
    assert 'value="run nightly"' in shown(full, 'value="schedule-pause nightly"')
    said = act(full, "schedule-pause nightly").json()["said"]
    assert said.endswith("Schedule nightly is paused.")
    assert farm.producer.schedules.get("nightly").paused
    shown(full, 'value="schedule-resume nightly"')
    act(full, "schedule-resume nightly")
    assert not farm.producer.schedules.get("nightly").paused
    before = db.xlen("tasks")
    assert act(full, "run nightly").json()["said"].endswith("is added.")
    assert db.xlen("tasks") == before + 1
    assert "That did not work" in act(full, "run nobody").json()["said"]


def test_viewers_have_no_buttons_for_limits_and_schedules(
    full: TestClient, app: Any, farm: Farm
) -> None:
    """They see both, and who asks all the same is refused."""
    farm.producer.limits.set("api", at_most=1)
    farm.producer.schedules.set("nightly", cron="0 3 * * *", task="report")
    shown(full, 'value="key-pause api"')
    shown(full, 'value="schedule-pause nightly"')
    with client_of(app, VIEWER) as viewer:
        page = viewer.get("/queue?q=tasks").text
        assert ">nightly<" in page
        assert "key-pause" not in page
        assert "schedule-pause" not in page
        for what in ("key-pause api", "schedule-pause nightly", "run nightly"):
            assert act(viewer, what).status_code == 403
    assert farm.producer.limits.get("api").paused_ms is None


def test_a_graph_is_drawn_on_its_page(full: TestClient, farm: Farm) -> None:
    """An image with words for who cannot see it; its picture is SVG with the tasks' names, and of
    what is no graph of this queue there is none."""
    pytest.importorskip("matplotlib")
    with farm.producer.graph("nightly") as graph:
        first = graph.add("load")
        graph.add("report", after=first)
    page = unescape(full.get(f"/batch?q=tasks&id={graph.id}").text)
    image = re.search(r'<img src="(/graph.svg\?[^"]+)" alt="([^"]+)"', page)
    assert image, page
    assert "2 tasks in 2 layers" in image[2]
    picture = full.get(image[1])
    assert picture.headers["content-type"] == "image/svg+xml"
    assert picture.text.lstrip().startswith("<?xml")
    for name in ("load", "report"):
        assert f"<!-- {name}" in picture.text
    assert full.get("/graph.svg?q=tasks&id=nobody").status_code == 404
    assert full.get("/graph.svg?q=a b&id=nightly").status_code == 400


def test_who_may_not_is_not_let_in(app: Any, db: Any) -> None:
    """Without a token, with another, from other names and pages; viewers look and do nothing."""
    with client_of(app) as nobody:
        assert nobody.get("/").status_code == 401
        assert (
            "tasks" not in nobody.get("/queue?q=tasks").text.split("<main>")[1].split("value=")[0]
        )
        for path in ("/api/queues", "/events?q=tasks", "/live?q=tasks"):
            assert nobody.get(path).status_code == 401
            assert nobody.get(f"{path}{'&' if '?' in path else '?'}token=wrong").status_code == 401
        assert nobody.get("/health").status_code == 200
        assert nobody.get("/health").text == ""
        assert act(nobody, "pause").status_code == 401
        signed = nobody.post("/sign-in", data={"token": TOKEN, "to": "/queue?q=tasks"})
        assert signed.url.path == "/queue"
        wrong = nobody.post("/sign-in", data={"token": "x", "to": "https://evil.example/"})
        assert wrong.status_code == 401
        away = nobody.post(
            "/sign-in", data={"token": TOKEN, "to": "//evil.example"}, follow_redirects=False
        )
        assert away.headers["location"] == "/"
    with client_of(app, VIEWER) as viewer:
        page = viewer.get("/queue?q=tasks").text
        assert "read-only" in page
        assert 'name="what"' not in page
        assert act(viewer, "pause").status_code == 403
        assert viewer.get("/edit?q=tasks&id=1").status_code == 403
    with client_of(app, TOKEN) as full:
        for origin in ("http://evil.example", "null", "http://testserver:81"):
            assert full.get("/", headers={"Origin": origin}).status_code == 403
        answer = full.post("/act?q=tasks", data={"what": "pause"})
        assert answer.status_code == 403, "neither Origin nor Sec-Fetch-Site says whence"
    assert db.hget("meta:tasks", "paused") is None


def test_it_is_mounted_in_another_application(url: str, farm: Farm) -> None:
    """Under a prefix, behind a proxy that takes off another; links and cookie stay below it."""
    fastapi = pytest.importorskip("fastapi")
    fill(farm)
    outer = fastapi.FastAPI()
    with TaskProducer(url=url) as producer:
        outer.mount("/queue", web.app(producer, token=TOKEN))
        outer.mount("/look", web.app(url=url, auth="outer", read_only=True))
        with client_of(outer, root_path="/api") as browser:
            answer = browser.get(f"/queue/queue?q=tasks&token={TOKEN}", follow_redirects=False)
            assert answer.headers["location"] == "/api/queue/queue?q=tasks"
            assert "Path=/api/queue;" in answer.headers["set-cookie"]
            page = browser.get("/queue/queue?q=tasks", headers=BEARER).text
            for path in re.findall(r'(?:href|src|action|data-live)="(/[^"]*)"', page):
                assert path.startswith("/api/queue/"), path
            named = TestClient(web.app(producer, auth="outer", allow_hosts=["queue.example"]))
            assert named.get("/health").status_code == 403
            assert named.get("/health", headers={"Host": "queue.example:80"}).status_code == 200
            page = browser.get("/look/").text
            assert 'href="/api/look/queue?q=tasks"' in page
            done = browser.post("/look/act?q=tasks", data={"what": "pause"})
            assert done.status_code == 403


def test_figures_are_told_as_json(app: Any, farm: Farm) -> None:
    """As ``redistq monitor --json`` has them; errors too."""
    with TestClient(app, headers={"Authorization": f"Bearer {VIEWER}"}) as client:
        (row,) = client.get("/api/queues").json()
        assert (row["queue"], row["queued"], row["dead"]) == ("tasks", 2, 1)
        assert client.get("/api/queue?q=tasks").json()["queue_length"] == 2
        failed = farm.monitor.records.dead()[0].id
        task = client.get(f"/api/task?q=tasks&id={failed}").json()
        assert (task["state"], task["attempts"][0]["state"]) == ("failed", "failed")
        unknown = client.get("/api/task?q=tasks&id=nobody")
        assert unknown.status_code == 404
        assert "error" in unknown.json()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"token": "short"},
        {"token": TOKEN, "viewer_token": TOKEN},
        {"token": TOKEN, "auth": "outer"},
        {"auth": "nobody"},
        {"token": TOKEN, "queues": ["no name"]},
    ],
)
def test_an_application_is_not_made_by_mistake(url: str, options: dict[str, Any]) -> None:
    """Without a token nobody is let in, unless it is said that others ask."""
    with pytest.raises(ConfigurationError):
        web.app(url=url, **options)


def test_a_picture_is_drawn_once_for_all_and_only_while_it_is_watched() -> None:
    """Who is slow gets the newest, without what came between; sections that stay are not sent."""
    drawn = 0

    def draw() -> tuple[dict[str, str], float]:
        nonlocal drawn
        drawn += 1
        return {"count": str(drawn), "same": "same"}, 0.01

    async def watched() -> None:
        gallery = Gallery()
        quick, slow = gallery.watch("key", draw), gallery.watch("key", draw)
        first = parts_of(await anext(quick))
        assert first["same"] == "same"
        await anext(slow)
        for _ in range(5):
            assert "same" not in parts_of(await anext(quick))
        assert gallery.viewers == 2
        newest = parts_of(await anext(slow))
        assert int(newest["count"]) >= 6
        assert drawn < 20, "once for both"
        await quick.aclose()
        await slow.aclose()
        assert gallery.viewers == 0
        before = drawn
        await asyncio.sleep(0.1)
        assert drawn <= before + 1

    asyncio.run(watched())


def test_a_reader_that_takes_nothing_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is kept for it."""
    monkeypatch.setattr(streams, "SLOW_S", 0.05)
    yielded = 0

    async def events() -> AsyncIterator[str]:
        nonlocal yielded
        while True:
            yielded += 1
            yield "data: {}\n\n"

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()

    async def answer() -> None:
        await asyncio.wait_for(streams.EventStream(events()).stream_response(send), 20)

    asyncio.run(answer())
    assert yielded == 1


def parts_of(text: str) -> dict[str, str]:
    """The sections of an event."""
    found: dict[str, str] = json.loads(text.partition("data: ")[2])
    return found


def test_the_guide_names_what_there_is() -> None:
    """Options, variables and bounds."""
    guide = (Path(__file__).resolve().parents[2] / "docs" / "web.md").read_text(encoding="utf-8")
    options = {name for act in command.parser()._actions for name in act.option_strings}
    for option in options - {"-h", "--help", "--port", "--host", "--group", "--open"}:
        assert option in guide, option
    for name in (command.ENV_TOKEN, command.ENV_VIEWER_TOKEN):
        assert f"`{name}`" in guide
    assert f"At most {live.MOST_VIEWERS} pages" in guide
    assert f"takes nothing for {streams.SLOW_S:.0f} s" in guide
    assert f"at port {command.parser().get_default('port')}" in guide
