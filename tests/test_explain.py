"""`potstill explain`: one row, or the whole yield."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from potstill import main

ROWS: list[dict[str, Any]] = [
    {"question": "Write a short poem", "answer": "A poem of a few words.", "id": "a"},
    {"question": "Write a short poem ", "answer": " A poem of a few words.", "id": "b"},
    {"question": "Write a short song", "answer": "I cannot sing.", "id": "c", "rule": "mine"},
    {"question": "Write a short song", "answer": "I cannot sing.\n", "id": "d"},
    {"question": "Write a short song", "answer": "La la la la", "id": "e", "rule": "mine"},
]


@pytest.fixture
def run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Path:
    """Filter five rows."""
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in ROWS) + "nonsense\n")
    columns = ["--instruction", "question", "--output", "answer"]
    assert main(["filter", str(source), "--out", str(tmp_path / "run"), *columns]) == 0
    capfd.readouterr()
    return tmp_path / "run"


@pytest.mark.parametrize("command", ["explain", "verify"])
def test_filter_settings_of_another_version_are_a_sentence(
    command: str, run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["fingerprint"]["filter.later"] = 3
    (run / "manifest.json").write_text(json.dumps(manifest))
    assert main([command, str(run)]) == 1
    assert "does not know the run's filter settings" in capfd.readouterr().err


def test_one_row(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def explain(row: str) -> dict[str, Any]:
        assert main(["explain", str(run), row]) == 0
        found: dict[str, Any] = json.loads(capfd.readouterr().out)
        return found

    assert explain("b")["first"] == {"outcome": "kept", "id": "a", "number": None, "output": "A poem of a few words."}
    assert explain("3")["first"]["id"] == "c"
    assert explain("3")["first"]["reason"] == "holds 'i cannot'"
    found = explain("c")
    assert (found["outcome"], found["rule"], found["number"]) == ("rejected", "phrase", 2)
    assert found["row"]["rule_of_input"] == "mine"
    assert explain("e")["outcome"] == "kept"
    assert main(["explain", str(run), "z"]) == 2
    assert "has no row z" in capfd.readouterr().err


def test_the_yield(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", str(run)]) == 0
    out, err = capfd.readouterr()
    found = json.loads(out)
    assert found["rows"] == 6
    assert found["by_rule"] == {"kept": 2, "duplicate": 2, "phrase": 1, "failed": 1}
    assert found["templates"]["Write a short song"] == {"kept": 1, "duplicate": 1, "phrase": 1}
    assert "Write a short poem" in err
