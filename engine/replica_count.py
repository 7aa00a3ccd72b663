"""`teacher.replicas = "auto"`: how many teachers, by cards, their memory, the model's size and the cores.

Promises a number and the reason for it, without loading a model or touching a card: sizes come from the weights' files
and the driver. Each figure has its measurement beside it; where nothing was measured, it is one a card.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from engine.config import Teacher
from engine.gpu import cards, look_at_gpus
from engine.model_hash import hub_folder
from engine.models import resolve_model
from engine.vllm_settings import RESERVED_BYTES

SMALL_BYTES = 2 * 2**30
"""Weights up to which a step takes the host longer than the card. Measured on one H100: one replica of a model of 135 M
parameters keeps the card busy for a fifth of the time, 4 B parameters (8 GB) for four fifths. Between them nothing was
measured. Source: docs/results/engine-h100.md."""
MOST_ON_A_CARD = 4
"""Of 135 M parameters, four write three times as many rows as one; eight keep the card little busier than four."""
CORES_EACH = 4
"""A replica keeps one and a half to two busy: its loop, its renderer and vLLM's engine. Four were measured on 16."""
CACHE_BYTES = 4 * 2**30
"""KV cache that each should have at least, so that prompts need not queue for it."""


class Machine(msgspec.Struct, frozen=True):
    """What there is to share out."""

    cards: int
    card_bytes: int | None
    """Memory of the smallest card, or None where the driver does not say."""
    cores: int


def resolve(teacher: Teacher) -> tuple[Teacher, str]:
    """Return the teacher with a number of replicas, and why so many; "" where the user gave a number."""
    if teacher.replicas != "auto":
        return teacher, ""
    if teacher.backend != "vllm":
        count, why = 1, f"teacher.backend is {teacher.backend}"
    else:
        machine = this_machine()
        count, why = choose(teacher, weight_bytes(teacher) if machine.cards else None, machine)
    return msgspec.structs.replace(teacher, replicas=count), why


def choose(teacher: Teacher, weights: int | None, machine: Machine) -> tuple[int, str]:
    """Return the number of replicas for a model of so many bytes (None: not known), and the reason."""
    if not machine.cards:
        return 1, "there is no card, and one teacher keeps all cores busy"
    groups = max(1, machine.cards // teacher.tensor_parallel_size)
    on_a_card, why = _on_a_card(teacher, weights, machine, groups)
    if groups == 1:
        return on_a_card, why
    return groups * on_a_card, f"{groups} groups of cards, {on_a_card} on each: {why}"


def _on_a_card(teacher: Teacher, weights: int | None, machine: Machine, groups: int) -> tuple[int, str]:
    if teacher.tensor_parallel_size > 1:
        return 1, "the model is spread over several cards"
    if weights is None:
        return 1, "the model's size is not known before it is downloaded"
    size = f"weights of {weights / 2**30:.1f} GiB"
    if weights > SMALL_BYTES:
        return 1, f"{size} fill a card alone"
    if machine.card_bytes is None:
        return 1, "the driver does not say how much memory a card has"
    room = int(teacher.gpu_memory_utilization * machine.card_bytes // (weights + RESERVED_BYTES + CACHE_BYTES))
    cores = machine.cores // groups // CORES_EACH
    count = max(1, min(MOST_ON_A_CARD, room, cores))
    limit = {room: "memory", cores: "cores", MOST_ON_A_CARD: "what was measured to scale"}.get(count, "at least one")
    return count, f"{size}, {machine.card_bytes / 2**30:.0f} GiB a card, {machine.cores} cores; limited by {limit}"


def weight_bytes(teacher: Teacher) -> int | None:
    """Return the size of the model's weights on this disk, or None where they are not here."""
    folder = hub_folder(resolve_model(teacher.model, key="teacher.model"), None)
    return _size(folder) if folder is not None else None


def _size(folder: Path) -> int | None:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors")) or None


def this_machine() -> Machine:
    """Look at this machine: the cards that the process may use, their memory, and its cores."""
    count = len(cards())
    return Machine(count, _card_bytes() if count else None, len(os.sched_getaffinity(0)))


def _card_bytes() -> int | None:
    return min((gpu.total_bytes for gpu in look_at_gpus()), default=None)
