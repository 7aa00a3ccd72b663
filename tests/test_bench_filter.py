"""The bench of the filter: small, but whole."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from bench.cli import WORKLOADS
from bench.naive import naive_filter
from bench.rows import make_lines, make_phrases
from engine.errors import PotstillError
from potstill import main


def test_rows_are_the_same_every_time_and_have_every_fault(tmp_path: Path) -> None:
    lines = list(make_lines(3000))
    assert lines == list(make_lines(3000))
    assert lines != list(make_lines(3000, seed=2))
    source = tmp_path / "rows.jsonl"
    source.write_bytes(b"".join(lines))
    left = naive_filter(source, tmp_path / "kept.jsonl", make_phrases(6))
    assert left["raw"] == 3000
    assert 0.27 < 1 - left["duplicate"] / left["raw"] < 0.33
    assert left["duplicate"] > left["length"] > left["phrase"] > left["cap"] > 1000
    lean = naive_filter(source, tmp_path / "lean.jsonl", make_phrases(6), lean=True)
    assert lean == left
    assert (tmp_path / "lean.jsonl").read_bytes() == (tmp_path / "kept.jsonl").read_bytes()


def test_the_bench_measures_and_writes_its_page(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    command = "bench filter --rows 1500 --rounds 2 --phrases 6 50 --memory-rows 1500 --peers --write"
    assert main([*command.split(), str(tmp_path)]) == 0
    found = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert found == json.loads((tmp_path / "filter.json").read_text())
    for phrases in ("6", "50"):
        assert set(found["speed"][phrases]["pipelines"]) == {"naive", "naive-lean", "potstill", "potstill-python"}
        assert found["speed"][phrases]["pipelines"]["naive"]["cpu_us"] > 0
    assert found["memory"]["1500"]["peak_mb"]["potstill"] > 10
    for stages in found["stages_us"].values():
        assert stages["sum"] > stages["read"]
    assert 0 < found["live_us"]["verdict"] < found["live_us"]["verdict, line and write"]
    page = (tmp_path / "filter.md").read_text()
    assert "| 50 | 1,500 | potstill |" in page
    assert found["machine"]["cpu"] in page


@pytest.mark.parametrize("peer", ["polars", "duckdb"])
def test_peers_keep_the_same_rows(peer: str, capfd: pytest.CaptureFixture[str]) -> None:
    if importlib.util.find_spec(peer) is None:
        pytest.skip(f"{peer} is not installed")
    command = f"bench filter --rows 1500 --rounds 1 --phrases 6 --memory-rows --peers {peer}"
    assert main(command.split()) == 0
    assert peer in json.loads(capfd.readouterr().out.splitlines()[-1])["speed"]["6"]["pipelines"]


def test_a_difference_ends_the_bench() -> None:
    from bench.filter import _check_same

    _check_same({"a": {"kept": 1, "kept_xxh3": "x"}, "b": {"kept": 1, "kept_xxh3": "x"}})
    with pytest.raises(PotstillError, match="keep different rows"):
        _check_same({"a": {"kept": 1, "kept_xxh3": "x"}, "b": {"kept": 1, "kept_xxh3": "y"}})


def test_every_workload_has_a_module() -> None:
    for module, help_line in WORKLOADS.values():
        assert importlib.util.find_spec(module) is not None
        assert help_line
