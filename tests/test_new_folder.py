"""A bundle's folder appears whole or not at all."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest
from bundles import export_run, make_rows, write_run

from engine.errors import UsageError


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run"), make_rows(40))


def test_a_bundle_that_is_there_is_not_written_over(run: Path, tmp_path: Path) -> None:
    out, _ = export_run(run, "openai", out=tmp_path / "b")
    before = (out / "manifest.json").stat()
    with pytest.raises(UsageError, match="is there already"):
        export_run(run, "openai", out=tmp_path / "b")
    assert (out / "manifest.json").stat() == before


def test_what_a_killed_export_left_is_cleared_away(run: Path, tmp_path: Path) -> None:
    left = tmp_path / "b.part" / "formats" / "old"
    left.mkdir(parents=True)
    (left / "train.jsonl").write_text("half a li")
    out, _ = export_run(run, "openai", out=tmp_path / "b")
    assert not (out / "formats/old").exists()
    assert not (tmp_path / "b.part").exists()


def test_two_exports_of_one_name_do_not_meet(run: Path, tmp_path: Path) -> None:
    (tmp_path / "b.part").mkdir()
    with (tmp_path / "b.part" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UsageError, match="is being written by another process"):
            export_run(run, "openai", out=tmp_path / "b")
    assert export_run(run, "openai", out=tmp_path / "b")[0].is_dir()
