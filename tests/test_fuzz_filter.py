"""The fuzz of `potstill filter`: a short one, and a planted fault. The long one is tests/fuzz_filter.py."""

from __future__ import annotations

import random
from pathlib import Path

import fuzz_filter
import pytest
from fuzz_cases import drawn_case

from engine.filter_folder import FilterFolder


@pytest.fixture(autouse=True)
def _switch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POTSTILL_NATIVE", "1")  # the fuzz changes it, and this puts it back


def run(tmp_path: Path, cases: int) -> fuzz_filter.Fuzz:
    pytest.importorskip("pyarrow")
    fuzz, chance = fuzz_filter.Fuzz(tmp_path / "case", tmp_path / "found"), random.Random(7)
    for _ in range(cases):
        fuzz.one(drawn_case(chance))
    return fuzz


def test_random_cases_end_well(tmp_path: Path) -> None:
    counts = run(tmp_path, 60).counts
    assert counts["findings"] == 0
    assert counts["runs"] + counts["sentences"] == 60 + counts["compared"]
    assert counts["runs"] > 20
    assert counts["rows"] > 100


def test_a_planted_fault_is_found_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finish = FilterFolder.finish

    def lose_one(folder: FilterFolder, seconds: float) -> dict[str, object]:
        summary = finish(folder, seconds)
        return {**summary, "kept": max(0, summary["kept"] - 1)}

    monkeypatch.setattr(FilterFolder, "finish", lose_one)
    fuzz = run(tmp_path, 30)
    assert fuzz.counts["findings"] > 0
    kept = sorted((tmp_path / "found").iterdir())
    assert len(kept) == min(20, fuzz.counts["findings"])
    assert "Broken" in kept[0].name
