"""Several processes, on a CPU: the same steps, one set of files, and nobody left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from students import make_config, make_rows, tiny_student, write_run

from engine.config import Train, dump
from engine.errors import ConfigError, UsageError
from trainer import launch, ranks
from trainer.arguments import Load, plan_steps, share
from trainer.done import Done
from trainer.journal import Journal, read_lines
from trainer.loop import on_one_card
from trainer.plan import VISIBLE, Machine, look, make_plan
from trainer.train import train

ROOT = Path(__file__).resolve().parent.parent
SAME = 1e-4
"""Relative difference of losses: what another order of sums costs in float32."""


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
    alone = make_plan(Train(dtype="float32"), msgspec.structs.replace(node, processes=1))
    assert (alone.backend, alone.dtype) == ("trl", "float32"), "Unsloth would compute in 16 bits"


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


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"ACCELERATE_USE_FSDP": "true", "WORLD_SIZE": "2"}, "with FSDP: each process trains the whole model"),
        ({"ACCELERATE_USE_CPU": "True", "MASTER_PORT": "29500"}, "started this one alone; use potstill train --proc"),
    ],
)
def test_a_launcher_that_does_something_else_is_refused(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], says: str
) -> None:
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(UsageError, match=says):
        ranks.heed_launcher()


def test_number_format_and_compilation_are_the_configuration_s(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ranks.SETTLED:
        monkeypatch.setenv(name, "anything")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "False")
    ranks.heed_launcher()
    assert not os.environ.keys() & set(ranks.SETTLED)


@pytest.mark.parametrize("before", [None, "2,3"])
def test_one_process_sees_one_card_and_what_it_starts_sees_all(
    monkeypatch: pytest.MonkeyPatch, before: str | None
) -> None:
    import torch

    seen: list[str | None] = []

    def is_available() -> bool:
        seen.append(os.environ.get(VISIBLE))
        return False

    monkeypatch.setattr(torch.cuda, "is_available", is_available)
    monkeypatch.delenv(VISIBLE, raising=False)
    if before is not None:
        monkeypatch.setenv(VISIBLE, before)
    look()
    assert seen == ["0" if before is None else "2"]
    assert os.environ.get(VISIBLE) == before
    monkeypatch.setenv("WORLD_SIZE", "2")
    look()
    assert seen[1] == before


def test_a_trainer_takes_one_card_where_cuda_knows_several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from trl import SFTConfig

    for name, value in {"is_available": True, "device_count": 2, "set_device": None}.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    arguments = SFTConfig(output_dir=str(tmp_path), bf16=False, gradient_checkpointing=False)
    assert arguments.n_gpu == 2, "as the library has it"
    assert on_one_card(arguments).n_gpu == 1
    assert arguments.train_batch_size == arguments.per_device_train_batch_size


class Alone(msgspec.Struct):
    """What one process made, and how the same is asked for again."""

    done: Done
    out: Path
    arguments: list[str]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Alone:
    folder = tmp_path_factory.mktemp("alone")
    student = tiny_student(folder / "tiny")
    run = write_run(folder / "run", make_rows(52))
    keys: dict[str, Any] = {"epochs": 2, "learning_rate": 1e-2, "val_fraction": 0.2, "checkpoint_steps": 2}
    keys |= {"batch_size": 2, "gradient_accumulation": 4}
    config = make_config(student, student_keys={"init": "prune", "layers": 1}, **keys)
    (folder / "config.toml").write_bytes(dump(config))
    done = train(config, run, folder / "one")
    return Alone(done, folder / "one", ["train", str(folder / "config.toml"), "--data", str(run)])


def check_same(alone: Alone, out: Path, two: dict[str, Any]) -> None:
    """Same steps, same tokens, same losses, and in one folder what one process leaves there."""
    one = alone.done
    for key in ("rows", "validation_rows", "steps", "fingerprint", "untrained", "student"):
        assert two[key] == getattr(one, key)
    assert (two["trained_tokens"], two["padded_tokens"]) == (one.trained_tokens, one.padded_tokens)
    files = [sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) for folder in (alone.out, out)]
    assert files[0] == files[1]
    curves = [read_lines(folder / "train" / "metrics.jsonl") for folder in (alone.out, out)]
    first, second = ([line.loss for line in curve if line.loss is not None] for curve in curves)
    assert first[-1] < 0.8 * first[0]
    assert second == pytest.approx(first, rel=SAME)
    assert two["eval_loss"] == pytest.approx(one.eval_loss, rel=SAME)


@pytest.mark.model
def test_two_processes_learn_what_one_learns(
    tmp_path: Path, alone: Alone, one_thread: None, capfd: pytest.CaptureFixture[str]
) -> None:
    import potstill

    assert potstill.main([*alone.arguments, "--out", str(tmp_path), "--processes", "2"]) == 0
    out, err = capfd.readouterr()
    assert out.count("\n") == 1
    assert err.count("2 processes") == 1
    check_same(alone, tmp_path, json.loads(out))
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.model
@pytest.mark.parametrize(
    "launcher",
    [
        # It asks for bfloat16, and train.dtype = float32 goes before.
        "accelerate.commands.launch --multi_gpu --num_processes 2 --main_process_port 0 --mixed_precision bf16",
        pytest.param("torch.distributed.run --standalone --nproc_per_node 2", marks=pytest.mark.slow),
    ],
)
def test_other_launchers_do_the_same(tmp_path: Path, alone: Alone, one_thread: None, launcher: str) -> None:
    command = [sys.executable, "-m", *launcher.split(), "-m", "potstill", *alone.arguments, "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("2 processes") == 1
    assert "[transformers]" not in done.stderr
    [line] = done.stdout.splitlines()
    check_same(alone, tmp_path, json.loads(line))


@pytest.mark.model
def test_accelerate_on_a_cpu_is_not_taken_for_several(tmp_path: Path, alone: Alone) -> None:
    """It starts one process, however many are asked for, and says nothing."""
    launcher = ["accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    command = [sys.executable, "-m", *launcher, "-m", "potstill", *alone.arguments, "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, timeout=200)
    assert done.returncode != 0
    assert "potstill train: accelerate launch was asked for several processes and started this one" in done.stderr
    assert not list(tmp_path.iterdir())
