"""A web app whose requests add tasks and tell how they stand.

pip install redistq[fastapi] uvicorn
uvicorn fastapi_app:app                      # in the folder of this file
python -m redistq.worker fastapi_app         # in another terminal

curl -X POST 'localhost:8000/count?words=12'
curl localhost:8000/tasks/ID
curl -N localhost:8000/tasks/ID/events
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Annotated

from fastapi import Depends, FastAPI

from redistq import AsyncTaskProducer, task, track
from redistq.contrib.fastapi import RedistqFastAPI

queue = RedistqFastAPI()  # REDISTQ_URL, or url="redis://..."
app = FastAPI(lifespan=queue.lifespan)
app.include_router(queue.router(), prefix="/tasks")


@task
def count_words(words: int, pause: float = 0.01) -> int:
    """Count for a while, and say how far it is."""
    return sum(1 for _ in track(range(words)) if time.sleep(pause) is None)


@task
def spell(text: str, pause: float = 0.0) -> Iterator[str]:
    """Yield one letter after the other."""
    for letter in text:
        time.sleep(pause)
        yield letter


@app.post("/count")
async def count(words: int) -> dict[str, str]:
    """Add a task by its function."""
    handle = await count_words.adelay(words)
    return {"task": handle.id}


@app.post("/spell")
async def add_spelling(
    text: str, producer: Annotated[AsyncTaskProducer, Depends(queue)]
) -> dict[str, str]:
    """Add a task by its name, with the app's producer."""
    task_id = await producer.add_task("spell", {"args": [text], "kwargs": {}})
    return {"task": task_id}
