"""A project's tasks as they stand in a module of Celery; read as text, with either package."""

import datetime
import decimal
import uuid

from celery import Celery, shared_task
from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded
from celery.signals import task_postrun, task_prerun

app = Celery("project")
seen = []


class Odd(Exception):
    """An error of the project's own."""


@app.task
def add(a, b=1):
    return a + b


@app.task(name="named.task")
def named(a):
    return [a]


@shared_task
def double(a):
    return 2 * a


@app.task
def total(numbers):
    return sum(numbers)


@app.task
def echo(*args, **kwargs):
    return {"args": list(args), "kwargs": kwargs}


@app.task
def types(moment, day, amount, key, data):
    return [type(one).__name__ for one in (moment, day, amount, key, data)] + [
        moment,
        day,
        amount,
        key,
        data,
    ]


@app.task
def divide(a, b):
    return a / b


@app.task
def odd(*args):
    raise Odd("odd", 3)


@app.task
def missing():
    return {}["absent"]


@app.task(bind=True, max_retries=2, default_retry_delay=0.01)
def retrying(self, ok_at):
    if self.request.retries < ok_at:
        raise self.retry(exc=ValueError(f"attempt {self.request.retries}"))
    return self.request.retries


@app.task(bind=True, max_retries=1)
def retried_without_error(self):
    self.retry(countdown=0.01)


@app.task(bind=True, max_retries=None)
def retry_for_long(self, ok_at):
    if self.request.retries < ok_at:
        self.retry(countdown=0.01)
    return self.request.retries


@app.task(bind=True, autoretry_for=(KeyError,), retry_kwargs={"max_retries": 2, "countdown": 0.01})
def auto(self, ok_at):
    if self.request.retries < ok_at:
        raise KeyError("again")
    return self.request.retries


@app.task(autoretry_for=(Exception,), dont_autoretry_for=(TypeError,), max_retries=3)
def not_auto():
    raise TypeError("never again")


@app.task(bind=True)
def request(self):
    found = self.request
    return {
        "same": found.id == self.request.id,
        "retries": found.retries,
        "args": list(found.args),
        "direct": found.called_directly,
        "eager": found.is_eager,
        "queue": found.delivery_info["routing_key"] is not None,
        "name": self.name,
    }


@app.task
def ignored():
    raise Ignore()


@app.task
def rejected():
    raise Reject("no")


@app.task(ignore_result=True)
def no_result():
    return 5


@app.task
def on_error(request, error, trace):
    seen.append(("on_error", type(error).__name__, str(error)))


@app.task
def on_error_id(task_id):
    seen.append(("on_error_id", isinstance(task_id, str)))


@app.task
def note(value):
    seen.append(("note", value))


@app.task(bind=True)
def replaced(self, n):
    raise self.replace(add.s(n, 1) | double.s())


@app.task(bind=True)
def replaced_by_chord(self, n):
    from celery import chord

    raise self.replace(chord([add.s(i, 0) for i in range(n)], total.s()))


@app.task
def waits_inside():
    return add.delay(1, 2).get(timeout=1)


@app.task(soft_time_limit=1)
def soft():
    try:
        end = datetime.datetime.now() + datetime.timedelta(seconds=20)
        while datetime.datetime.now() < end:
            pass
    except SoftTimeLimitExceeded:
        return "tidied up"


@app.task
def calls_directly(n):
    return add(n, 1) + add.run(n, 2)


@task_prerun.connect
def before(task_id, task, args, kwargs, **_):
    seen.append(("prerun", task.name, list(args)))


@task_postrun.connect
def after(task, retval, state, **_):
    seen.append(("postrun", task.name, state))


EXAMPLES = {
    "moment": datetime.datetime(2026, 1, 2, 3, 4, tzinfo=datetime.UTC),
    "day": datetime.date(2026, 1, 2),
    "amount": decimal.Decimal("1.10"),
    "key": uuid.UUID(int=5),
    "data": b"\xff\x00",
}
