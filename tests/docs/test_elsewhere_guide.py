"""docs/elsewhere.md names each option of a place, and no other."""

from __future__ import annotations

import inspect
import re

import pytest
from support.documents import DOCS

from redistq import elsewhere

GUIDE = (DOCS / "elsewhere.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "place", [elsewhere.SSH, elsewhere.Slurm, elsewhere.Kubernetes], ids=lambda p: p.__name__
)
def test_options_are_in_the_guide(place: type) -> None:
    """Each keyword that a place takes is named in code."""
    named = set(re.findall(r"\w+", " ".join(re.findall(r"`([^`\n]+)`", GUIDE)) + GUIDE))
    assert set(inspect.signature(place).parameters) - named == set()
