from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from engine.config import Train, dump, load
from engine.errors import ConfigError
from engine.presets import PRESETS
from engine.shards import Manifest
from trainer.done import fingerprint
from trainer.plan import Machine, make_plan

T4 = Machine("cuda", bfloat16=False, unsloth=True, bitsandbytes=True, memory_bytes=16 * 2**30)
L4 = Machine("cuda", bfloat16=True, unsloth=True, bitsandbytes=True, memory_bytes=24 * 2**30)
H100 = Machine("cuda", bfloat16=True, unsloth=True, bitsandbytes=True, memory_bytes=80 * 2**30)


@pytest.mark.parametrize(
    ("name", "tuning", "dtype", "rows", "machine"),
    [
        ("t4", "qlora", "float16", 8, T4),
        ("24gb", "lora", "bfloat16", 8, L4),
        ("h100", "lora", "bfloat16", 16, H100),
    ],
)
def test_each_preset_is_what_it_says(name: str, tuning: str, dtype: str, rows: int, machine: Machine) -> None:
    train = load(None, [f"train.preset={name}"]).train
    plan = make_plan(train, machine)
    assert (plan.tuning, plan.dtype) == (tuning, dtype)
    assert train.batch_size * train.gradient_accumulation == rows
    assert train.epochs == Train().epochs
    said = msgspec.to_builtins(train)
    assert {key: said[key] for key in PRESETS[name]} == PRESETS[name]


def test_every_preset_is_tested() -> None:
    assert list(PRESETS) == ["t4", "24gb", "h100"]


def test_what_is_written_wins(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text('[train]\npreset = "h100"\nmax_length = 512\n')
    train = load(path, ["train.packing=false"]).train
    assert (train.max_length, train.packing, train.batch_size) == (512, False, 16)
    assert load(path, ["train.preset=t4"]).train.dtype == "float16"


def test_a_resolved_configuration_loads_to_itself(tmp_path: Path) -> None:
    config = load(None, ["train.preset=t4", "train.batch_size=1"])
    (tmp_path / "config.toml").write_bytes(dump(config))
    assert load(tmp_path / "config.toml") == config


def test_an_unknown_preset_is_refused_with_the_known_ones() -> None:
    for wrong in ("a100", "7", "[]"):
        with pytest.raises(ConfigError, match=r"train\.preset = .* is not known; take one of t4, 24gb, h100"):
            load(None, [f"train.preset={wrong}"])


def test_the_name_alone_trains_no_other_student() -> None:
    written = ["train." + f"{key}={str(value).lower()}" for key, value in PRESETS["t4"].items()]
    assert fingerprint(load(None, written), Manifest()) == fingerprint(load(None, ["train.preset=t4"]), Manifest())
    assert fingerprint(load(None, []), Manifest()) != fingerprint(load(None, ["train.preset=t4"]), Manifest())
