"""Which cards a replica has, and how much of them. Knows a teacher's settings and the cards; starts nothing."""

from __future__ import annotations

import msgspec

from engine.config import Teacher
from engine.gpu import cards


def share(teacher: Teacher) -> Teacher:
    """Return one replica's part: its share of the card's memory, and in `replicas` how many share the card."""
    sharing = on_one_card(teacher)
    utilization = teacher.gpu_memory_utilization / sharing
    return msgspec.structs.replace(teacher, replicas=sharing, gpu_memory_utilization=utilization)


def on_one_card(teacher: Teacher) -> int:
    """Return how many replicas share a card, on the card that most share."""
    return -(-teacher.replica_count // max(1, len(cards()) // teacher.tensor_parallel_size))


def environment(number: int, teacher: Teacher) -> dict[str, str]:
    """Return what a replica's environment must say: which cards are its own."""
    own = cards()
    groups = len(own) // teacher.tensor_parallel_size
    if groups < 1:
        return {}
    first = (number % groups) * teacher.tensor_parallel_size
    return {"CUDA_VISIBLE_DEVICES": ",".join(own[first : first + teacher.tensor_parallel_size])}


def cards_used(teacher: Teacher) -> int:
    """Return on how many GPUs a teacher's replicas are."""
    groups = len(cards()) // teacher.tensor_parallel_size
    return min(groups, teacher.replica_count) * teacher.tensor_parallel_size
