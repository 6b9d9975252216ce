"""Loggers that never raise, for every module here that logs. Holds no state but a name.

An application may give logging a filter, a handler or a record factory that fails. In its own
code that is an error like any other; in a thread of ours it would cost the thread, and with it
tasks that have nothing to do with it. So here such a failure costs no more than the line's form.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from typing import Any


class Logger(logging.LoggerAdapter[logging.Logger]):
    """A logger whose methods never raise: a line that logging fails on goes to standard error."""

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        """Log one line; all other methods come here."""
        try:
            if self.logger.isEnabledFor(level):
                kwargs["stacklevel"] = kwargs.get("stacklevel", 1) + 1  # whose line it is: not ours
                self.logger.log(level, msg, *args, **kwargs)
        except KeyboardInterrupt:
            raise  # the user's, who wants the program to end
        except BaseException as error:  # whatever was put into logging, sys.exit included
            with contextlib.suppress(BaseException):
                text = str(msg) % args if args else str(msg)
                level_name = logging.getLevelName(level)
                name = self.logger.name
                why = f"(logging failed: {type(error).__name__})"
                print(f"{level_name} {name}: {text} {why}", file=sys.stderr)


def logger(name: str) -> Logger:
    """Return the logger of that name, made safe."""
    return Logger(logging.getLogger(name))
