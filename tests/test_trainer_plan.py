from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.config import Train
from engine.errors import ConfigError, MissingError
from trainer.arguments import Load, changed, plan_steps, training_arguments
from trainer.plan import Machine, Plan, make_plan

LAPTOP = Machine("cpu", bfloat16=False)
SERVER = Machine("cpu", bfloat16=True, bitsandbytes=True, unsloth=True)
T4 = Machine("cuda", bfloat16=False, unsloth=True, bitsandbytes=True, memory_bytes=16 * 2**30)
H100 = Machine("cuda", bfloat16=True, unsloth=True, bitsandbytes=True, memory_bytes=80 * 2**30)
BARE_H100 = Machine("cuda", bfloat16=True, memory_bytes=80 * 2**30)

UNSLOTH_CHANGES: dict[str, Any] = {
    "logging_nan_inf_filter": False,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "weight_decay": 0.001,
    "seed": 3407,
    "optim": "adamw_8bit",
    "learning_rate": 5e-05,
    "per_device_eval_batch_size": 4,
    "eval_accumulation_steps": 2,
    "torch_empty_cache_steps": 250,
    "logging_steps": 1,
    "bf16": False,
    "fp16": False,
    "report_to": "none",
    "include_num_input_tokens_seen": "no",
    "auto_find_batch_size": False,
    "dataloader_pin_memory": True,
    "padding_free": None,
    "warmup_steps": 0.1,
    "loss_type": "nll",
}
"""Defaults of SFTConfig that importing Unsloth 2026.10.7 replaces (read in its models/rl.py)."""


@pytest.mark.parametrize(
    ("machine", "backend", "tuning", "dtype"),
    [
        (LAPTOP, "trl", "lora", "float32"),
        (SERVER, "trl", "lora", "bfloat16"),
        (T4, "unsloth", "qlora", "float16"),
        (H100, "unsloth", "qlora", "bfloat16"),
        (BARE_H100, "trl", "lora", "bfloat16"),
    ],
)
def test_auto_takes_what_the_machine_has(machine: Machine, backend: str, tuning: str, dtype: str) -> None:
    plan = make_plan(Train(), machine)
    assert (plan.backend, plan.tuning, plan.dtype) == (backend, tuning, dtype)


def test_cards_that_stay_idle_are_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6")
    make_plan(Train(), H100)
    assert capsys.readouterr().err == "train  on one of 3 GPUs; --processes 3 takes all\n"
    make_plan(Train(backend="trl"), msgspec.structs.replace(H100, processes=3))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4")
    make_plan(Train(), H100)
    assert not capsys.readouterr().err


def test_a_qlora_that_becomes_lora_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    make_plan(Train(tuning="qlora"), LAPTOP)
    make_plan(Train(tuning="lora"), LAPTOP)
    assert capsys.readouterr().err.count("no GPU here, so it is lora") == 1


def test_what_was_asked_for_is_taken_where_it_can_be() -> None:
    plan = make_plan(Train(backend="trl", tuning="full", dtype="float32"), H100)
    assert (plan.backend, plan.tuning, plan.dtype) == ("trl", "full", "float32")
    assert make_plan(Train(dtype="bfloat16"), LAPTOP).dtype == "bfloat16"


@pytest.mark.parametrize(
    ("train", "machine", "error", "says"),
    [
        (Train(backend="unsloth"), SERVER, MissingError, "train.backend = unsloth: there is no GPU"),
        (Train(backend="unsloth"), BARE_H100, MissingError, "Unsloth is not installed"),
        (Train(report_to=("trackio",)), LAPTOP, MissingError, "train.report_to: trackio is not installed"),
        (Train(patience=1, checkpoint_steps=0), LAPTOP, ConfigError, "set train.checkpoint_steps above 0"),
        (Train(dtype="float16"), LAPTOP, ConfigError, "float16 needs a GPU"),
        (Train(dtype="bfloat16"), T4, ConfigError, "this GPU does not compute in it"),
    ],
)
def test_what_cannot_be_is_a_sentence(train: Train, machine: Machine, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        make_plan(train, machine)


def test_packing_keeps_the_tokens_of_a_step() -> None:
    load = Load(rows=1000, longest=120, tokens=50_000, validation_rows=50)
    plain = plan_steps(Train(batch_size=16), load)
    packed = plan_steps(Train(batch_size=16, packing=True), load)
    assert (plain.batch_size, plain.max_length) == (16, 2048)
    assert packed.batch_size * packed.max_length == pytest.approx(16 * load.mean, rel=0.05)
    assert packed.total == plain.total
    long = plan_steps(Train(batch_size=64, packing=True, max_length=400), load)
    assert long.max_length == 400
    assert long.batch_size * 400 == pytest.approx(64 * load.mean, rel=0.05)


def test_a_packed_row_holds_the_longest_row() -> None:
    load = Load(rows=100, longest=900, tokens=3000, validation_rows=0)
    assert plan_steps(Train(batch_size=2, packing=True), load).max_length == 900


def test_checkpoints_fall_on_points_of_the_loss_curve() -> None:
    steps = plan_steps(Train(checkpoint_steps=7, batch_size=1), Load(10_000, 10, 100_000, 0))
    assert steps.log == 10
    assert steps.checkpoint == 10
    assert plan_steps(Train(checkpoint_steps=0), Load(10_000, 10, 100_000, 0)).checkpoint == 0


def resolved(train: Train, machine: Machine) -> dict[str, Any]:
    load = Load(rows=1000, longest=120, tokens=50_000, validation_rows=50)
    plan = make_plan(train, machine)
    return training_arguments(train, plan, load, folder=Path("out"), gradient_checkpointing=False)


@pytest.mark.parametrize("train", [Train(), Train(packing=True, max_length=512), Train(tuning="full", max_steps=9)])
def test_both_backends_get_the_same_arguments(train: Train) -> None:
    import msgspec

    other = msgspec.structs.replace(train, backend="trl")
    assert make_plan(train, H100).backend != make_plan(other, H100).backend
    assert resolved(train, H100) == resolved(other, H100)


@pytest.mark.model
@pytest.mark.parametrize("train", [Train(), Train(packing=True), Train(tuning="full", scheduler="cosine", max_steps=9)])
def test_unsloth_s_defaults_change_nothing(train: Train) -> None:
    """What SFTConfig resolves to is the same whether TRL's defaults stand beneath our arguments or Unsloth's."""
    from trl import SFTConfig

    arguments = resolved(train, SERVER)
    ours, theirs = (SFTConfig(**{**beneath, **arguments}).to_dict() for beneath in ({}, UNSLOTH_CHANGES))
    assert ours == theirs
    assert UNSLOTH_CHANGES.keys() <= arguments.keys()


def as_unsloth_makes_them(config: Any) -> Any:
    """Change arguments as Unsloth 2026.10.7 does when it builds a trainer (its models/rl.py and utils/packing.py)."""
    if config.packing:
        config.padding_free, config.remove_unused_columns = True, False
    elif config.padding_free is None:
        config.padding_free = True
    if not config.bf16 and not config.fp16:
        config.bf16 = True
    if config.eval_strategy.value != "no":
        if config.per_device_eval_batch_size == 8 > config.per_device_train_batch_size:
            config.per_device_eval_batch_size = config.per_device_train_batch_size
        if config.eval_accumulation_steps is None:
            config.eval_accumulation_steps = config.gradient_accumulation_steps
    if not config.bf16_full_eval and not config.fp16_full_eval:
        config.bf16_full_eval, config.fp16_full_eval = config.bf16, config.fp16
    return config


@pytest.mark.model
@pytest.mark.parametrize(
    "train", [Train(), Train(batch_size=8), Train(batch_size=8, packing=True), Train(packing=True, tuning="full")]
)
def test_unsloth_s_trainer_finds_nothing_to_change(train: Train) -> None:
    from trl import SFTConfig

    arguments = resolved(train, SERVER)
    assert changed(arguments, as_unsloth_makes_them(SFTConfig(**arguments))) == {}


@pytest.mark.model
def test_a_library_that_changes_an_argument_is_caught() -> None:
    from trl import SFTConfig

    arguments = resolved(Train(), SERVER)
    config = SFTConfig(**arguments)
    assert changed(arguments, config) == {}
    config.weight_decay = 0.5
    assert changed(arguments, config) == {"weight_decay": (0.01, 0.5)}


def test_a_plan_is_a_value() -> None:
    assert make_plan(Train(), H100) == Plan("cuda", "unsloth", "qlora", "bfloat16", 80 * 2**30)
