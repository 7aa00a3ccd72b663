from __future__ import annotations

from pathlib import Path

import pytest
from students import tiny_student

from engine.config import Train
from engine.errors import TrainError
from trainer.memory import Need, check_card, estimate, read_config

GIB = 2**30


def test_a_card_that_is_too_small_is_a_sentence() -> None:
    need = Need(10, 10, weights_bytes=20 * GIB, activation_bytes=40 * GIB, checkpointed_bytes=5 * GIB)
    check_card(need, 0)
    check_card(need, 26 * GIB)
    with pytest.raises(TrainError, match=r"takes about 25\.0 GiB and the GPU has 24\.0; set train\.tuning = qlora"):
        check_card(need, 24 * GIB)


@pytest.mark.model
def test_counts_are_the_model_s_own(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder = tiny_student(tmp_path)
    config, train = read_config(str(folder)), Train(r=8)
    model = AutoModelForCausalLM.from_pretrained(folder)
    full = estimate(config, train, tuning="full", dtype="float32", tokens=100)
    assert full.parameters == full.trained_parameters == model.num_parameters()
    assert full.weights_bytes == 16 * full.parameters
    adapted = get_peft_model(model, LoraConfig(r=8, target_modules=list(train.target_modules)))
    lora = estimate(config, train, tuning="lora", dtype="bfloat16", tokens=100)
    assert lora.trained_parameters == adapted.get_nb_trainable_parameters()[0]
    assert lora.weights_bytes == 2 * lora.parameters + 16 * lora.trained_parameters


@pytest.mark.model
def test_each_saving_saves(tmp_path: Path) -> None:
    config = read_config(str(tiny_student(tmp_path)))
    full, lora, qlora = (
        estimate(config, Train(), tuning=tuning, dtype="bfloat16", tokens=1000) for tuning in ("full", "lora", "qlora")
    )
    assert full.weights_bytes > lora.weights_bytes > qlora.weights_bytes
    assert full.checkpointed_bytes < full.activation_bytes
    double = estimate(config, Train(), tuning="lora", dtype="bfloat16", tokens=2000)
    assert double.activation_bytes == 2 * lora.activation_bytes
