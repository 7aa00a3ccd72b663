"""The cards of this machine, as their driver describes them: no library is imported for it, and no card touched."""

from __future__ import annotations

import os
import subprocess

import msgspec

SMI = [
    "nvidia-smi",
    "--query-gpu=name,driver_version,memory.total,memory.free,compute_cap",
    "--format=csv,noheader,nounits",
]
BFLOAT16_CHIP = 8.0
"""Compute capability from which a chip computes in bfloat16 itself."""


class Gpu(msgspec.Struct, frozen=True):
    """A GPU, as its driver describes it."""

    name: str
    driver: str
    total_bytes: int
    free_bytes: int
    capability: float

    @property
    def bfloat16(self) -> bool:
        return self.capability >= BFLOAT16_CHIP


def cards() -> list[str]:
    """Return the GPUs that this process may use, by what CUDA_VISIBLE_DEVICES or the driver's folder says."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [card for card in visible.split(",") if card]
    try:
        return [str(number) for number in range(len(os.listdir("/proc/driver/nvidia/gpus")))]
    except OSError:
        return []


def look_at_gpus() -> list[Gpu]:
    """Ask nvidia-smi; no card where there is none to ask."""
    try:
        said = subprocess.run(SMI, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return parse_gpus(said)


def parse_gpus(said: str) -> list[Gpu]:
    """Read what nvidia-smi prints: a line a card, memory in MiB."""
    found = []
    for line in said.splitlines():
        parts = [part.strip() for part in line.split(",")]
        if len(parts) == 5 and parts[2].isdigit() and parts[3].isdigit():
            found.append(Gpu(parts[0], parts[1], int(parts[2]) << 20, int(parts[3]) << 20, float(parts[4])))
    return found
