"""NotSupported: what a bridge says of what it does not do."""

from __future__ import annotations

from ..errors import ConfigurationError


class NotSupported(ConfigurationError, NotImplementedError):
    """Something that redistq does not do as the other package does; names the next step."""

    def __init__(self, what: str, step: str) -> None:
        self.what = what
        self.step = step
        super().__init__(f"{what} is not supported by redistq: {step}")
