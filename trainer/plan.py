"""Plan: what this machine makes of the settings that say `auto`: backend, tuning, number format.

Promises that the same settings on the same machine give the same plan, and that a setting which the machine cannot
honour is either refused with a sentence or, where it only saves memory (`qlora`), replaced and said so.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Literal

import msgspec

from engine.config import Train
from engine.errors import ConfigError, MissingError
from engine.gpu import cards
from trainer import ranks
from trainer.ranks import note

VISIBLE = "CUDA_VISIBLE_DEVICES"

Dtype = Literal["float32", "bfloat16", "float16"]


class Machine(msgspec.Struct, frozen=True):
    """What decides a plan."""

    device: Literal["cuda", "cpu"]
    bfloat16: bool
    """The chip computes in bfloat16 itself; emulated, it is slower than float32."""
    unsloth: bool = False
    bitsandbytes: bool = False
    memory_bytes: int = 0
    """Of one card; 0 on a CPU."""
    processes: int = 1
    """That train together, one a card."""


class Plan(msgspec.Struct, frozen=True):
    """Settings without an `auto` among them."""

    device: Literal["cuda", "cpu"]
    backend: Literal["unsloth", "trl"]
    tuning: Literal["qlora", "lora", "full"]
    dtype: Dtype
    memory_bytes: int = 0
    processes: int = 1


def look() -> Machine:
    """Look at the machine, at one card of it: more take one process each.

    Raises: ConfigError where there are more processes than cards.
    """
    import torch

    unsloth, bitsandbytes = (importlib.util.find_spec(name) is not None for name in ("unsloth", "bitsandbytes"))
    with nullcontext() if ranks.launched() else _one_card_in_sight():
        if not torch.cuda.is_available():
            return Machine("cpu", _cpu_bfloat16(), unsloth, bitsandbytes, processes=ranks.processes())
        if ranks.local() >= torch.cuda.device_count():
            raise ConfigError(
                f"{ranks.processes()} processes, and {torch.cuda.device_count()} GPUs are in sight; "
                "start one process a GPU"
            )
        torch.cuda.set_device(ranks.local())
        memory_bytes = torch.cuda.get_device_properties(ranks.local()).total_memory
        bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return Machine("cuda", bfloat16, unsloth, bitsandbytes, memory_bytes, ranks.processes())


@contextmanager
def _one_card_in_sight() -> Iterator[None]:
    """Let CUDA start with the first card alone; it looks once, so what this process starts later sees all again.

    With several in sight, the trainer would spread every batch over them, which TRL refuses.
    """
    before = os.environ.get(VISIBLE)
    os.environ[VISIBLE] = "0" if before is None else before.split(",")[0]
    try:
        yield
    finally:
        if before is None:
            del os.environ[VISIBLE]
        else:
            os.environ[VISIBLE] = before


def check_settings(train: Train) -> None:
    """Check that settings go together, whatever the machine.

    Raises: ConfigError where they do not.
    """
    if train.patience and not train.checkpoint_steps:
        raise ConfigError("train.patience keeps the best checkpoint; set train.checkpoint_steps above 0")
    if train.method == "topk_kd" and train.packing:
        raise ConfigError("train.method = topk_kd keeps rows apart; set train.packing = false")


def make_plan(train: Train, machine: Machine) -> Plan:
    """Settle backend, tuning and number format.

    Raises: MissingError where Unsloth is asked for and not there, ConfigError where the chip lacks the number format.
    """
    for name in train.report_to:
        if importlib.util.find_spec(name) is None:
            raise MissingError(
                f"train.report_to: {name} is not installed; pip install 'potstill[{name}]', or take it out"
            )
    check_settings(train)
    if machine.device == "cuda" and machine.processes == 1 < len(cards()):
        note(f"train  on one of {len(cards())} GPUs; --processes {len(cards())} takes all")
    tuning = train.tuning
    if tuning == "qlora" and (machine.device == "cpu" or not machine.bitsandbytes):
        missing = "no GPU" if machine.device == "cpu" else "no bitsandbytes"
        note(f"train  tuning = qlora needs a GPU and bitsandbytes; {missing} here, so it is lora")
        tuning = "lora"
    dtype = _dtype(train, machine)
    return Plan(machine.device, _backend(train, machine), tuning, dtype, machine.memory_bytes, machine.processes)


def _backend(train: Train, machine: Machine) -> Literal["unsloth", "trl"]:
    ready = machine.device == "cuda" and machine.unsloth
    hindrance = _hindrance(train, machine)
    if train.backend == "unsloth" and not ready:
        missing = (
            "Unsloth is not installed (pip install potstill[gpu])" if machine.device == "cuda" else "there is no GPU"
        )
        raise MissingError(f"train.backend = unsloth: {missing}; set train.backend = auto to train with TRL")
    if train.backend == "unsloth" and hindrance:
        raise ConfigError(f"train.backend = unsloth: {hindrance}; set train.backend = auto to train with TRL")
    if train.backend == "auto" and ready and hindrance:
        note(f"train  {hindrance}, so the backend is trl")
    return "unsloth" if ready and train.backend != "trl" and not hindrance else "trl"


def _hindrance(train: Train, machine: Machine) -> str:
    """Say why Unsloth cannot be had, or nothing."""
    if train.method == "topk_kd":
        return "topk_kd needs the student's logits, which Unsloth does not give"
    if train.method == "on_policy":
        return "on_policy is TRL's own trainer, with a teacher that Unsloth would patch, too"
    if train.dtype == "float32":
        return "Unsloth computes in 16 bits whatever train.dtype says"
    return "Unsloth trains on one GPU" if machine.processes > 1 else ""


def _dtype(train: Train, machine: Machine) -> Dtype:
    if train.dtype == "auto":
        return "bfloat16" if machine.bfloat16 else "float16" if machine.device == "cuda" else "float32"
    if train.dtype == "float16" and machine.device == "cpu":
        raise ConfigError("train.dtype = float16 needs a GPU; set it to auto, float32 or bfloat16")
    if train.dtype == "bfloat16" and machine.device == "cuda" and not machine.bfloat16:
        raise ConfigError("train.dtype = bfloat16: this GPU does not compute in it; set it to auto or float16")
    return train.dtype


def _cpu_bfloat16() -> bool:
    """Say whether the CPU multiplies in bfloat16: then a step took 0.44 of its time in float32 (EPYC, 64 M weights)."""
    import torch

    found = torch.cpu.get_capabilities()
    return any(found.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
