"""Ranks: the processes of one training, one a card, as `--processes`, `accelerate launch` or torchrun start them.

Process 0 writes and speaks; all of them read and compute. Promises that what the others look for is there once they
have waited, and that of a launcher's wishes none but the processes is heeded: all else is the configuration's.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

from engine import progress
from engine.errors import UsageError

PATIENCE = timedelta(hours=1)
"""How long the others wait for process 0, which cuts the start model and writes the student."""

SETTLED = ("ACCELERATE_MIXED_PRECISION", "ACCELERATE_DYNAMO_BACKEND")
"""What `accelerate launch` says of number format and compilation. Left there, it would go before train.dtype."""
SPLITTERS = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism configuration",
}
"""What `accelerate launch` sets for ways to split one model over several GPUs."""


def launched() -> bool:
    """Say whether a launcher started this process as one of several."""
    return "WORLD_SIZE" in os.environ


def heed_launcher() -> None:
    """Take of what a launcher wishes the processes alone.

    Raises: UsageError where it would split the model, or was asked for several processes and started one.
    """
    for name, way in SPLITTERS.items():
        if os.environ.get(name, "").lower() in ("1", "true"):
            raise UsageError(
                f"accelerate launch with {way}: each process trains the whole model here, so use --multi_gpu, or "
                "potstill train --processes N"
            )
    # Both are set and the number is not: by `accelerate launch --cpu`, and on a machine with one GPU.
    if not launched() and {"ACCELERATE_USE_CPU", "MASTER_PORT"} <= os.environ.keys():
        raise UsageError(
            "accelerate launch was asked for several processes and started this one alone; use potstill train "
            "--processes N, torchrun, or accelerate launch --multi_gpu, which also works on CPUs"
        )
    for name in SETTLED:
        os.environ.pop(name, None)


def processes() -> int:
    """Return how many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Say whether this is the process that writes and speaks."""
    return int(os.environ.get("RANK", "0")) == 0


def local() -> int:
    """Return the number of this process on its machine, which is that of its card."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def note(line: str) -> None:
    """Say something on stderr, once."""
    if is_main():
        progress.note(line)


def join(device: str) -> None:
    """Meet the other processes; each has done by then what comes before this call."""
    if processes() > 1:
        _state(device)


def wait() -> None:
    """Wait until every process has come here."""
    if processes() > 1:
        _state().wait_for_everyone()


def leave() -> None:
    """Part from the other processes, when all is done."""
    if processes() > 1:
        _state().destroy_process_group()


def _state(device: str = "") -> Any:
    from accelerate import PartialState

    return PartialState(cpu=device == "cpu", timeout=PATIENCE) if device else PartialState()
