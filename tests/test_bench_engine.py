"""The benches of the generation loop, on a teacher that needs no model: what they compare and what they count."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.waste import write_waste

ROOT = Path(__file__).parent.parent
ECHO = ["--set", "teacher.backend=echo", "--set", "teacher.echo.tokens_per_s=200000"]


def bench(*arguments: str) -> tuple[int, dict[str, Any], str]:
    command = [sys.executable, str(ROOT / "potstill.py"), "bench", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    return done.returncode, json.loads(done.stdout.splitlines()[-1]) if done.stdout else {}, done.stderr


def test_the_wasteful_mix_keeps_the_same_rows_early_as_late_for_fewer_tokens() -> None:
    config = str(ROOT / "data" / "bulk.toml")
    code, found, said = bench(
        "engine", "--config", config, *ECHO, "--contenders", "late", "early", "--rows", "1500", "--rounds", "1"
    )
    assert code == 0, said
    late, early = found["results"]["late"], found["results"]["early"]
    assert early["same_kept"] == 1.0
    tokens = {name: rounds[0]["tokens"] for name, rounds in found["rounds"].items()}
    assert tokens["early"] < 0.8 * tokens["late"], "which is what takes the time, with a teacher that costs something"
    assert early["x_late"] > 0
    assert late["kept_per_s"] > 0
    asked = {name: rounds[0]["rows"] for name, rounds in found["rounds"].items()}
    assert asked == {"late": 1500, "early": 1500}


def test_a_contender_has_settings_of_its_own_and_an_unknown_one_is_named() -> None:
    config = str(ROOT / "data" / "bulk.toml")
    slow = "potstill@teacher.echo.max_num_seqs=4@teacher.echo.tokens_per_s=20000"
    code, found, said = bench(
        "engine", "--config", config, *ECHO, "--contenders", "potstill", slow, "--rows", "400", "--rounds", "1"
    )
    assert code == 0, said
    assert found["results"][slow]["rows_per_s"] < found["results"]["potstill"]["rows_per_s"]
    assert "potstill: round 1 of 1, " in said, "so that a bench which is cut off says what it found"
    code, _, said = bench("engine", "--config", config, "--contenders", "chat", "chatter")
    assert code == 1
    assert "no chatter" in said


def test_a_bulk_run_is_killed_resumed_and_adds_up(tmp_path: Path) -> None:
    config, run = str(ROOT / "data" / "bulk.toml"), str(tmp_path / "run")
    wanted = [
        "--set",
        "output.accepted=3000",
        "--set",
        "teacher.echo.tokens_per_s=60000",
        "--set",
        "teacher.replicas=2",
    ]
    code, found, said = bench("bulk", "--config", config, *ECHO, *wanted, "--out", run, "--kills", "0.1,0.5")
    assert code == 0, said
    assert [part["killed"] for part in found["parts"]] == [True, True, False]
    assert (found["kept"], found["kept_twice"], found["no_gap"], found["finished"]) == (3000, 0, True, True)
    assert found["prompts"] == found["ends"] == found["summary"]["asked"]


def test_the_mix_wastes_what_it_says(tmp_path: Path) -> None:
    write_waste(tmp_path / "a.jsonl", 1000, seed=1)
    records = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert len(records) == 1000
    asked = [record["instruction"] + record["input"] for record in records]
    assert len(asked) - len(set(asked)) == pytest.approx(120, abs=2)
    assert sum(record["template"] == "json" for record in records) > 320
    write_waste(tmp_path / "b.jsonl", 1000, seed=1)
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
