"""``redistq sweep``: spilled values that nothing needs any more go, and no others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support.clients import KEY

from redistq import Client, Spill
from redistq.cli import main

Said = Callable[..., tuple[int, str, str]]


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Said:
    """Run the command; its exit code and what it printed."""

    def run(*args: str) -> tuple[int, str, str]:
        code = main(["sweep", *args])
        out, err = capsys.readouterr()
        return code, out, err

    return run


def test_what_nothing_names_is_deleted(said: Said, url: str, tmp_path: Path) -> None:
    """Once it is old enough; a dry run says which, and deletes nothing."""
    place = str(tmp_path)
    where = (place, "--url", url)
    with Client(url, signing_key=KEY, spill=Spill(place, above=100_000)) as client:
        with client.scatter(b"held" * 100_000):
            (held,) = (tmp_path / "tasks").iterdir()
            for name in ("argument-00-none", "result-00-none"):
                (tmp_path / "tasks" / name).write_bytes(b"left by one that died")
            assert said(*where) == (0, f"0 files of queue tasks deleted in {place}\n", "")
            code, out, _ = said(*where, "--older-than", "0", "--dry-run")
            assert code == 0
            assert sorted(out.split()) == ["tasks/argument-00-none", "tasks/result-00-none"]
            assert said(*where, "--older-than", "0")[1].startswith("2 files of queue tasks")
            assert list((tmp_path / "tasks").iterdir()) == [held]
        said(*where, "--older-than", "0")
        assert list((tmp_path / "tasks").iterdir()) == []


def test_it_deletes_nothing_beside_a_server_that_was_not_named(
    said: Said, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is missing or wrong is said, with exit codes that scripts can read."""
    for name in ("REDISTQ_URL", "REDISTQ_URL_FILE", "REDISTQ_SPILL"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "argument-00-none").touch()
    for code, words, *args in (
        (2, "name the server", str(tmp_path), "--older-than", "0"),
        (2, "name the place", "--url", url),
        (2, "no JSON", str(tmp_path), "--url", url, "--storage-options", "{"),
        (2, "a JSON object", str(tmp_path), "--url", url, "--storage-options", "[]"),
        (2, "--older-than", str(tmp_path), "--url", url, "--older-than", "-1"),
        (1, "nothing", "nothing://there", "--url", url),
    ):
        found, _, err = said(*args)
        assert found == code, args
        assert words in err
    monkeypatch.setenv("REDISTQ_URL", url)
    monkeypatch.setenv("REDISTQ_SPILL", str(tmp_path))
    assert said("--older-than", "0")[:2] == (0, f"1 files of queue tasks deleted in {tmp_path}\n")
