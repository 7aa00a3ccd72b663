"""The main job with nothing replaced: real vLLM, the packaged teacher, a real training run, real held-out items."""

import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from engine.verify import verify

ROOT = Path(__file__).resolve().parent.parent
SMALL = [
    "prompts.count=24",
    "filter.cap_per_template=20",
    "student.layers=2",
    "train.max_steps=3",
    "train.batch_size=4",
    "eval.limit=8",
]


def run(folder: Path, *overrides: str) -> tuple[dict, str]:  # type: ignore[type-arg]
    command = [sys.executable, "-m", "potstill", "run", str(ROOT / "data" / "quickstart.toml"), "--out", str(folder)]
    command += [part for override in (*SMALL, *overrides) for part in ("--set", override)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, timeout=280)
    assert done.returncode == 0, done.stderr
    return orjson.loads(done.stdout.splitlines()[-1]), done.stderr


@pytest.mark.model
def test_teacher_to_report(tmp_path: Path) -> None:
    result, said = run(tmp_path)
    assert result["asked"] == 24
    assert result["kept"] == 20, "a cap of 20, and the teacher's answers pass the other rules"
    assert result["kept"] + sum(result["rejected"].values()) + result["skipped"] + result["failed"] == 24
    assert result["train"]["parameters"] < 67_000_000
    scores = result["eval"]
    assert scores["items"] == 8
    assert scores["teacher"] >= 0.75, "with its examples the teacher is right about 98 times in a hundred"
    assert scores["untrained"] == 0
    assert set(scores) == {"teacher", "student", "untrained", "retained", "retained_low", "retained_high", "items"}
    assert "retained" in Path(result["report"]).read_text(encoding="utf-8")
    assert "raw 24 -> dedup" in said
    assert verify(tmp_path)["finished"]
    again, said = run(tmp_path)
    assert "nothing to do" in said
    assert again["eval"] == scores
