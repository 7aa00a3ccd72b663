"""Quantised forms of models that are not like the packaged one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from students import tiny_student, untrained_student

from engine.errors import UsageError
from trainer import quantise

pytestmark = [pytest.mark.model, pytest.mark.usefixtures("one_thread")]

WRITERS = [quantise.write_fp8, quantise.write_w4a16]


@pytest.fixture(autouse=True)
def rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantise, "_training_rows", lambda student: [[5, 6, 7, 8, 9]] * 3)


@pytest.mark.parametrize("write", WRITERS)
def test_a_row_of_zeros_in_float16_stays_one(tmp_path: Path, write: Callable[..., dict[str, Any]]) -> None:
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    folder = tiny_student(tmp_path / "model", hidden_size=64, intermediate_size=128)
    model = AutoModelForCausalLM.from_pretrained(folder).half()
    model.model.layers[0].self_attn.k_proj.weight.data[3] = 0
    model.save_pretrained(folder)
    (tmp_path / "out").mkdir()
    write(untrained_student(folder), tmp_path / "out")
    for name, weight in load_file(tmp_path / "out" / "model.safetensors").items():
        assert weight.float().isfinite().all(), name
        if name.endswith("scale"):
            assert weight.dtype == torch.float16
            assert weight.min() > 0, name
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="float32")
    assert loaded(torch.tensor([[5, 6, 7]])).logits.isfinite().all()


@pytest.mark.parametrize("write", WRITERS)
def test_experts_are_not_left_in_16_bits_without_a_word(tmp_path: Path, write: Callable[..., dict[str, Any]]) -> None:
    shape = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    folder = tiny_student(tmp_path / "model", kind="Qwen3Moe", **shape)
    with pytest.raises(UsageError, match=r"experts whose weights are one stack .*; use llm-compressor"):
        write(untrained_student(folder), tmp_path)
