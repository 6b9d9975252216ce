"""A worker's child process, started by its keeper: runs a crew until told to stop.

Orders come as lines on standard input (first a JSON line that says all, then ``stop SECONDS``);
end-of-file means that the keeper is gone. News go to the descriptor named on the command line.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path.append(str(Path(__file__).resolve().parent.parent))


def main() -> None:
    """Run one worker process; ends by ``os._exit`` so that no stuck thread can keep it."""
    from redistq.errors import RedistqError, ServerUnavailable

    status = int(sys.argv[1])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    line = sys.stdin.buffer.readline()
    if not line:
        return
    spec = json.loads(line)
    for path in spec["path"]:
        if path not in sys.path:
            sys.path.append(path)
    logging.basicConfig(
        level=spec.get("log_level", "WARNING"),
        format="%(asctime)s %(levelname)s %(name)s[%(process)d]: %(message)s",
    )
    # A runner that computes gives up the interpreter after 1 ms instead of 5: fetcher and settler
    # wait for it after every answer of the server.
    sys.setswitchinterval(0.001)
    code = 1
    try:
        code = _work(spec, status)
    except ServerUnavailable as error:
        logging.getLogger("redistq.worker").warning("%s", error)  # the keeper tries again
    except Exception as error:
        if not isinstance(error, RedistqError):
            logging.getLogger("redistq.worker").exception("this worker process cannot start")
        _say(status, {"failure": f"{type(error).__name__}: {error}"})
    finally:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _work(spec: dict[str, Any], status: int) -> int:
    from redistq.board import Board
    from redistq.broker import Broker
    from redistq.crew import Crew
    from redistq.settings import Address, rejoin
    from redistq.worker import announce, registry_from, with_function_calls
    from redistq.worker_settings import WorkerSettings

    settings = WorkerSettings.of(spec["settings"])
    if pickled := spec.get("handlers"):
        import cloudpickle

        registry = registry_from(cloudpickle.loads(base64.b64decode(pickled)))
    else:
        registry = registry_from(spec["targets"])
    address = rejoin(Address(**spec["address"]))
    lanes = settings.lanes_for(address)
    broker = Broker(address, slot_key=lanes[0].keys.stream)
    board = Board(Path(spec["board"]))
    named = len(registry)
    registry = with_function_calls(registry, settings, broker, lanes)
    if len(registry) > named:
        from redistq.task_output import catch_standard_output

        catch_standard_output()
    crew = Crew(settings, registry, broker, lanes, spec["consumer"], board)

    details = announce(broker, lanes, settings, spec["consumer"], registry)
    crew.start()
    _say(status, {"ready": True, "details": details})
    os.close(status)  # a process that a handler forks must not hold it open

    ended = threading.Event()
    # Without a keeper nobody beats for us: what is not finished within the lease is not ours.
    timeout, alone = [settings.lease / 2], [True]

    def listen() -> None:
        for line in sys.stdin.buffer:
            command, _, seconds = line.decode().strip().partition(" ")
            if command == "stop":
                timeout[0], alone[0] = float(seconds), False
                break
        ended.set()

    def on_term(*_: Any) -> None:
        timeout[0], alone[0] = settings.shutdown_timeout, False
        ended.set()

    signal.signal(signal.SIGTERM, on_term)
    threading.Thread(target=listen, name="redistq-orders", daemon=True).start()
    while not ended.wait(3600):
        pass
    finished = crew.stop(timeout[0])
    if alone[0]:
        board.remove()
    return 0 if finished else 1


def _say(status: int, news: dict[str, Any]) -> None:
    try:
        os.write(status, json.dumps(news).encode() + b"\n")
    except OSError:
        pass  # the keeper is gone, which standard input tells as well


if __name__ == "__main__":
    main()
