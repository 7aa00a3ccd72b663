"""Where a training reports to, and that stdout stays for the result."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from students import make_rows, write_run

import potstill
from trainer.trackers import reporting

pytestmark = pytest.mark.model


def test_reports_go_where_asked_and_stdout_is_the_result_alone(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_run(tmp_path / "run", make_rows(24))
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "config.toml").write_text(
        f'[student]\nmodel = "{student}"\n'
        '[train]\nbackend = "trl"\ntuning = "full"\nmax_steps = 3\nreport_to = ["tensorboard", "wandb"]\n'
    )
    command = [sys.executable, potstill.__file__, "train", str(tmp_path / "config.toml"), "--data", str(run)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1, "W&B has a farewell of its own"
    assert json.loads(done.stdout)["steps"] == 3
    assert list((run / "train" / "logs").glob("events.*"))
    assert list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))


def test_two_trainings_of_one_process_write_each_to_its_own_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    for name in ("teacher", "student"):
        with reporting((), logs=tmp_path / name):
            assert os.environ["TENSORBOARD_LOGGING_DIR"] == str(tmp_path / name)
    assert "TENSORBOARD_LOGGING_DIR" not in os.environ
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "mine")
    with reporting((), logs=tmp_path):
        assert os.environ["TENSORBOARD_LOGGING_DIR"] == "mine"
