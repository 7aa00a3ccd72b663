"""Unsloth beside the plain backend on a GPU. Each training is a process of its own, as Unsloth patches for good."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from students import make_rows, tiny_student, write_run

import potstill

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


def trained(workshop: Path, name: str, *settings: str) -> dict[str, Any]:
    """Train in a process of its own; return its result."""
    changes = [argument for setting in settings for argument in ("--set", setting)]
    command = [sys.executable, potstill.__file__, "train", str(workshop / "config.toml"), "--debug"]
    command += ["--data", str(workshop / "run"), "--out", str(workshop / name), *changes]
    result = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False, cwd=workshop)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.count("\n") == 1, result.stdout
    sys.stderr.write(result.stderr)
    done: dict[str, Any] = json.loads(result.stdout)
    return done


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
