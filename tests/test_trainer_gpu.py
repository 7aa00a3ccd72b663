"""Unsloth beside the plain backend on a GPU. Each training is a process of its own, as Unsloth patches for good."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from students import make_rows, tiny_student, write_run

import potstill
from engine.rows import Row

pytestmark = pytest.mark.gpu

SHAPE = {"hidden_size": 128, "intermediate_size": 256, "num_key_value_heads": 2, "head_dim": 64}
"""Small, but with heads that the GPU kernels take."""


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    if not torch.cuda.is_available() or importlib.util.find_spec("unsloth") is None:
        pytest.skip("needs a GPU and Unsloth")
    folder = tmp_path_factory.mktemp("workshop")
    tiny_student(folder / "student", **SHAPE)
    write_run(folder / "run", make_rows(400))
    (folder / "config.toml").write_text(
        f'[student]\nmodel = "{folder / "student"}"\n'
        "[train]\nbatch_size = 8\nlearning_rate = 2e-3\nwarmup_steps = 5\nval_fraction = 0.1\n"
    )
    return folder


def copies(count: int) -> list[Row]:
    """Return rows whose answers are in their questions, so that a student is sure of each and rounding moves none."""
    names = ("Anna", "Boris", "Clara", "David", "Elena", "Frank", "Grace", "Henry", "Irene", "James", "Karen")
    cities = ("Paris", "London", "Berlin", "Madrid", "Rome", "Vienna", "Oslo", "Dublin", "Athens", "Lisbon")
    rows = []
    for index, row in enumerate(make_rows(count, template="json", instruction="Format as JSON.")):
        name, age, city = names[index % len(names)], 20 + index % 53, cities[index % len(cities)]
        output = f'{{"name": "{name}", "age": {age}, "city": "{city}"}}'
        rows.append(msgspec.structs.replace(row, input=f"{name}, {age}, {city}", output=output))
    return rows


def trained(workshop: Path, name: str, *settings: str, data: str = "run") -> dict[str, Any]:
    """Train in a process of its own; return its result."""
    changes = [argument for setting in settings for argument in ("--set", setting)]
    arguments = [str(workshop / "config.toml"), "--data", str(workshop / data), "--out", str(workshop / name)]
    return run("train", *arguments, *changes, cwd=workshop)


def run(*arguments: str, cwd: Path) -> dict[str, Any]:
    """Run a command of potstill and return its result."""
    command = [sys.executable, potstill.__file__, *arguments, "--debug"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, cwd=cwd)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.count("\n") == 1, result.stdout
    assert "train  unsloth made" not in result.stderr, "it trained with other arguments than the plain backend"
    sys.stderr.write(result.stderr)
    found: dict[str, Any] = json.loads(result.stdout)
    return found


@pytest.fixture(scope="module")
def plain(workshop: Path) -> dict[str, Any]:
    return trained(workshop, "plain", "train.backend=trl", "train.tuning=lora")


def test_auto_is_unsloth_and_learns_what_the_plain_backend_learns(workshop: Path, plain: dict[str, Any]) -> None:
    done = trained(workshop, "unsloth", "train.tuning=lora")
    assert (plain["backend"], done["backend"]) == ("trl", "unsloth")
    same = ("parameters", "trained_parameters", "rows", "validation_rows", "steps", "trained_tokens", "padded_tokens")
    assert [done[key] for key in same] == [plain[key] for key in same]
    assert done["eval_loss"] == pytest.approx(plain["eval_loss"], rel=0.05)
    assert not list(workshop.glob("unsloth_compiled_cache"))


@pytest.mark.parametrize(
    ("tuning", "more"), [("qlora", ()), ("full", ()), ("lora", ("train.packing=true", "train.max_length=512"))]
)
def test_each_way_of_tuning_learns(workshop: Path, plain: dict[str, Any], tuning: str, more: tuple[str, ...]) -> None:
    done = trained(workshop, f"{tuning}{len(more)}", f"train.tuning={tuning}", *more)
    assert (done["backend"], done["tuning"]) == ("unsloth", tuning)
    assert done["trained_tokens"] == pytest.approx(plain["trained_tokens"], rel=0.02)
    assert done["eval_loss"] < plain["eval_loss"] * 1.2
    adapter = workshop / f"{tuning}{len(more)}" / "student" / "adapter_config.json"
    assert adapter.exists() == (tuning != "full")
    if adapter.exists():
        settings = json.loads(adapter.read_text())
        # vLLM serves neither of these.
        assert settings["modules_to_save"] is None
        assert settings["bias"] == "none"


@pytest.mark.model
@pytest.mark.timeout(900)
def test_a_student_of_the_packaged_model_leaves_in_every_form_and_is_served(
    workshop: Path, teacher_folder: Path
) -> None:
    write_run(workshop / "copies", copies(440))
    learns = ("train.learning_rate=5e-4", "train.epochs=4", "train.val_fraction=0.25")
    student = ("train.tuning=qlora", f"student.model={teacher_folder}")
    done = trained(workshop, "left", *student, *learns, data="copies")
    assert (done["backend"], done["tuning"]) == ("unsloth", "qlora")
    # With a cache of a given size vLLM measures nothing, so other work on the card does not matter.
    room = ("teacher.gpu_memory_utilization=0.2", "teacher.engine_args.kv_cache_memory_bytes=3000000000")
    settings = ("eval.max_tokens=48", "teacher.max_model_len=512", *room)
    short = [argument for setting in settings for argument in ("--set", setting)]
    left = str(workshop / "left")
    found = run(*("export-model", left, "--to", "adapter,merged,fp8,w4a16", "--engine", "vllm", *short), cwd=workshop)
    for form in found["forms"].values():
        assert (form["verified"], form["engine"]) == (True, "vllm"), found
        assert form["items"] >= 90
    served = run("serve", left, "--smoke", "--port", "8128", *short, cwd=workshop)
    assert "--enable-lora" in served["command"]
    assert served["same"] >= 7, served
