"""Held-out items: JSONL with a question nobody trained on and the answer it should get.

Promises that a wrong line is refused with `path:line` before any model is loaded, that a question counts once
however often the file holds it, and that an item's id depends on its question alone. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from engine.config import Eval
from engine.decode import UNREADABLE
from engine.errors import DataError, MissingError
from engine.lines import numbered_lines
from engine.rows import hash_id, user_turn
from evals.metrics import METRICS, reference_fault


class Item(msgspec.Struct, frozen=True):
    """One question with its reference answer and the metric that decides it."""

    id: str
    instruction: str
    input: str
    reference: str
    template: str
    metric: str

    @property
    def question(self) -> str:
        """The user turn, as every room builds it."""
        return user_turn(self.instruction, self.input)


class Items(msgspec.Struct, frozen=True):
    """What a file holds."""

    items: list[Item]
    repeated: int
    """Lines left out because an earlier line asks the same question."""


class _Line(msgspec.Struct, frozen=True):
    instruction: str
    reference: Any
    input: str = ""
    template: str = ""
    metric: str = ""


def load_items(settings: Eval) -> Items:
    """Read the held-out items that `[eval]` names.

    The metric of an item is the one that `eval.metrics` gives its template, else the line's own, else the default.

    Raises: MissingError where there is no file, DataError with `path:line` where a line cannot be used.
    """
    if not settings.items:
        raise MissingError("eval.items is empty; give a JSONL file of held-out items with instruction and reference")
    path = Path(settings.items)
    found: dict[str, Item] = {}
    repeated = 0
    for number, line in numbered_lines(path):
        item = _item(path, number, line, settings.metrics, settings.default_metric)
        repeated += item.id in found
        found.setdefault(item.id, item)
    if not found:
        raise DataError(f"{path}: holds no items; give one JSON object a line with instruction and reference")
    return Items(list(found.values())[: settings.limit], repeated)


def _item(path: Path, number: int, line: bytes, metrics: Mapping[str, str], default: str) -> Item:
    try:
        data = msgspec.json.decode(line, type=_Line)
    except UNREADABLE as error:
        raise DataError(f"{path}:{number}: not a held-out item ({error}); mend or remove the line") from None
    metric = metrics.get(data.template) or data.metric or default
    reference = data.reference if isinstance(data.reference, str) else msgspec.json.encode(data.reference).decode()
    fault = (
        reference_fault(metric, reference) if metric in METRICS else f"no metric {metric!r}, only {', '.join(METRICS)}"
    )
    if fault:
        raise DataError(f"{path}:{number}: {fault}; mend the line or set eval.metrics")
    return Item(
        id=hash_id(data.instruction, data.input),
        instruction=data.instruction,
        input=data.input,
        reference=reference,
        template=data.template,
        metric=metric,
    )
