"""Several processes, on a CPU: the same steps, one set of files, and nobody left behind."""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from students import make_config, make_rows, tiny_student, write_run

from engine.config import Train, dump
from engine.errors import ConfigError
from trainer import launch
from trainer.arguments import Load, plan_steps, share
from trainer.journal import Journal, read_lines
from trainer.plan import Machine, make_plan
from trainer.train import train


@pytest.mark.parametrize(
    ("batch", "accumulation", "processes", "own"),
    [(2, 4, 1, (2, 4)), (2, 4, 2, (2, 2)), (2, 4, 8, (1, 1)), (6, 1, 4, None), (6, 2, 4, (3, 1)), (4, 3, 2, (3, 2))],
)
def test_processes_share_the_rows_of_a_step(
    batch: int, accumulation: int, processes: int, own: tuple[int, int] | None
) -> None:
    settings = Train(batch_size=batch, gradient_accumulation=accumulation)
    if own is None:
        with pytest.raises(ConfigError, match="= 6 rows a step, over all processes: they cannot be shared by 4"):
            share(settings, processes)
        return
    part = share(settings, processes)
    assert (part.batch_size, part.gradient_accumulation) == own
    assert part.batch_size * part.gradient_accumulation * processes == batch * accumulation
    load = Load(rows=batch * accumulation * 5, longest=10, tokens=100, validation_rows=0)
    assert plan_steps(part, load, processes).total == plan_steps(settings, load).total


def test_with_several_processes_the_backend_is_trl(capsys: pytest.CaptureFixture[str]) -> None:
    node = Machine("cuda", bfloat16=True, unsloth=True, bitsandbytes=True, memory_bytes=2**36, processes=8)
    plan = make_plan(Train(), node)
    assert (plan.backend, plan.processes) == ("trl", 8)
    assert "Unsloth trains on one GPU, so the backend is trl" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="backend = unsloth: Unsloth trains on one GPU"):
        make_plan(Train(backend="unsloth"), node)
    with pytest.raises(ConfigError, match="backend = unsloth: topk_kd needs the student's logits"):
        make_plan(Train(backend="unsloth", method="topk_kd"), msgspec.structs.replace(node, processes=1))


def test_only_one_journal_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    journal = Journal(tmp_path / "metrics.jsonl", parts={}, writes=False)
    journal.begin(None)
    journal.log(1, 1, 1.0, {"loss": 2.0})
    journal.close()
    assert journal.loss == 2.0
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().err == ""


def front_door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Put a few lines in the place of potstill.py."""
    path = tmp_path / "door.py"
    path.write_text("import json, os, signal, sys, time\nrank = int(os.environ['RANK'])\n" + code)
    monkeypatch.setattr(launch, "FRONT_DOOR", path)
    monkeypatch.setattr(launch, "GRACE_S", 1.0)


def test_the_first_process_speaks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    front_door(
        tmp_path,
        monkeypatch,
        "print('noise')\nprint(json.dumps({'rank': rank, 'world': os.environ['WORLD_SIZE'], 'said': sys.argv[1:]}))",
    )
    assert launch.launch(["train", "x"], 3) == {"rank": 0, "world": "3", "said": ["train", "x"]}


def test_a_process_that_fails_ends_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    front_door(
        tmp_path,
        monkeypatch,
        "if rank == 1:\n    print('why', file=sys.stderr)\n    sys.exit(2)\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\ntime.sleep(60)",
    )
    started = time.monotonic()
    with pytest.raises(launch.ProcessError, match=r"process 1 of 2 failed \(see above\)") as caught:
        launch.launch([], 2)
    assert time.monotonic() - started < 30, "the first process, which sleeps, was waited for"
    assert caught.value.exit_code == 2
    assert capfd.readouterr().err == "why\n"


def test_a_process_that_is_killed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    front_door(tmp_path, monkeypatch, "if rank == 0: os.kill(os.getpid(), signal.SIGKILL)\ntime.sleep(60)")
    with pytest.raises(launch.ProcessError, match="process 0 of 2 was killed by signal 9") as caught:
        launch.launch([], 2)
    assert caught.value.exit_code == 137


@pytest.mark.model
def test_two_processes_learn_what_one_learns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Same steps, same tokens, same losses, and in one folder what one process leaves there."""
    import potstill

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    student = tiny_student(tmp_path / "tiny")
    run = write_run(tmp_path / "run", make_rows(52))
    keys: dict[str, Any] = {"epochs": 2, "learning_rate": 1e-2, "val_fraction": 0.2, "checkpoint_steps": 2}
    keys |= {"batch_size": 2, "gradient_accumulation": 4}
    config = make_config(student, student_keys={"init": "prune", "layers": 1}, **keys)
    one = train(config, run, tmp_path / "one")
    (tmp_path / "config.toml").write_bytes(dump(config))
    command = ["train", str(tmp_path / "config.toml"), "--data", str(run), "--out", str(tmp_path / "two")]
    assert potstill.main([*command, "--processes", "2"]) == 0
    out, err = capfd.readouterr()
    assert out.count("\n") == 1
    two = json.loads(out)
    sys.stderr.write(err)
    assert err.count("2 processes") == 1
    same = (
        "rows",
        "validation_rows",
        "steps",
        "fingerprint",
        "untrained",
        "student",
        "trained_tokens",
        "padded_tokens",
    )
    assert [two[key] for key in same] == [getattr(one, key) for key in same]
    files = [
        sorted(str(path.relative_to(tmp_path / out)) for path in (tmp_path / out).rglob("*")) for out in ("one", "two")
    ]
    assert files[0] == files[1]
    curves = [read_lines(tmp_path / out / "train" / "metrics.jsonl") for out in ("one", "two")]
    first, second = ([line.loss for line in curve if line.loss is not None] for curve in curves)
    assert first[-1] < 0.8 * first[0]
    assert second == pytest.approx(first, rel=1e-3)
    assert two["eval_loss"] == pytest.approx(one.eval_loss, rel=1e-3)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
