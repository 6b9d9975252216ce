"""Workers of these tests run in folders of their own, where no test module is."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def no_handlers_of_test_modules(
    own_default_registry: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What test modules register when they are collected is not sent there."""
    from redistq.handlers import default_registry

    monkeypatch.setattr(default_registry, "_handlers", {})
