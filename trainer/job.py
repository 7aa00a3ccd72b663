"""Job: one training, settled before it begins; what its steps share."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from engine.config import Config, Train
from trainer.captured import Captured
from trainer.memory import Need
from trainer.plan import Plan
from trainer.prepare import Prepared
from trainer.roles import Role


class Start(msgspec.Struct, frozen=True):
    """What training starts from."""

    model: str
    """Folder or Hugging Face id."""
    untrained: str
    """The same before any training, as done.json names it."""
    layers: tuple[int, ...] = ()
    """Kept by pruning; none where it was not asked for."""
    adapter: str = ""
    """Folder of the adapter to go on with."""


class Job(msgspec.Struct, frozen=True):
    """One training."""

    config: Config
    settings: Train
    """Those of the configuration, with this process's share of each step."""
    plan: Plan
    prepared: Prepared
    captured: Captured | None
    data: Path
    out: Path
    role: Role
    fingerprint: str
    start: Start
    need: Need

    @property
    def records(self) -> Path:
        """Folder of done.json, metrics.jsonl and the checkpoints."""
        return self.out / self.role.records

    @property
    def data_from_out(self) -> str:
        """Where the rows are, seen from the result folder; empty where that is the run."""
        data, out = self.data.resolve(), self.out.resolve()
        return "" if data == out else os.path.relpath(data, out)
