"""Code that type checkers refuse: each line with a mark, and no other."""

from __future__ import annotations

from redistq import Registry, task

registry = Registry()


@task
def add(a: int, b: int = 1) -> int:
    return a + b


@task(retries=2)
def greet(name: str, *, loud: bool = False) -> str:
    return name


@registry.task
async def fetch(url: str) -> bytes:
    return url.encode()


def here() -> None:
    add.delay("1")  # wrong: an argument of another type
    add.delay()  # wrong: an argument is missing
    add.delay(1, 2, 3)  # wrong: one too many
    add.delay(1, c=2)  # wrong: there is none of that name
    add("1")  # wrong: called here
    greet.delay("x", True)  # wrong: it is given by name
    greet.delay("x", loud="yes")  # wrong: by name, of another type
    text: str = add.delay(1).result()  # wrong: the result is an int
    add.options(retries=1).delay("1")  # wrong: with options too
    add.options(retires=1)  # wrong: no such option
    add.options(timeout=[])  # wrong: an option of another type
    fetch.delay(3)  # wrong: of a coroutine, too
    number: int = fetch.delay("x").result()  # wrong: the coroutine returns bytes
    nothing = add.delay(1).nothing  # wrong: a handle has no such thing
    print(text, number, nothing)


async def with_await() -> None:
    await fetch.adelay(1)  # wrong: an argument of another type
    text: str = await (await fetch.adelay("x"))  # wrong: the result is bytes
    await add(1)  # wrong: an int is no coroutine
    print(text)


@task(retires=3)  # wrong: no such option
def misspelt(payload: object) -> None: ...
