"""Jupyter kernels for the tests: cells run in a real one, which can be interrupted and killed."""

from __future__ import annotations

import os
import queue
import re
import textwrap
import time
from pathlib import Path

from support.clients import KEY


class Kernel:
    """A Jupyter kernel that runs cells, and can be interrupted and killed.

    ``url`` is its server; None for one of its own, embedded. ``more`` is added to its environment;
    with ``watches_files`` it shows what its child processes print, as outside of tests.
    """

    def __init__(
        self, folder: Path, url: str | None, *, watches_files: bool = False, **more: str
    ) -> None:
        from jupyter_client.manager import KernelManager

        env = {
            **os.environ,
            **({} if url is None else {"REDISTQ_URL": url}),
            "REDISTQ_SIGNING_KEY": KEY,
            "IPYTHONDIR": str(folder / "ipython"),
            "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
            **more,
        }
        if watches_files:
            env.pop("PYTEST_CURRENT_TEST", None)
        self.manager = KernelManager(kernel_name="python3")
        self.manager.start_kernel(cwd=str(folder), env=env, extra_arguments=["--log-level=ERROR"])
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=60)

    def send(self, code: str) -> str:
        """Start a cell; answers its message id."""
        message: str = self.client.execute(textwrap.dedent(code))
        return message

    def output(self, message: str, timeout: float = 60.0, until: str = "") -> str:
        """What a cell shows, errors included, until it ends or has shown ``until``."""
        text, deadline = "", time.monotonic() + timeout
        while True:
            try:
                news = self.client.get_iopub_msg(timeout=max(0.1, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"the cell did not end:\n{text}") from None
            if news["parent_header"].get("msg_id") != message:
                continue
            kind, content = news["msg_type"], news["content"]
            if kind == "stream":
                text += content["text"]
            elif kind in ("execute_result", "display_data"):
                text += content["data"].get("text/plain", "") + "\n"
            elif kind == "error":
                text += re.sub(r"\x1b\[[\d;]*m", "", "\n".join(content["traceback"])) + "\n"
            elif kind == "status" and content["execution_state"] == "idle":
                return text
            if until and until in text:
                return text

    def run(self, code: str, timeout: float = 60.0) -> str:
        """Run a cell to its end; what it shows."""
        return self.output(self.send(code), timeout)

    @property
    def pid(self) -> int:
        """Its process id."""
        return int(self.manager.provisioner.pid)

    def kill(self) -> None:
        """End the process at once."""
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)
