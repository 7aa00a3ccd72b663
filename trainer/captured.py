"""Captured: the teacher's probabilities that generation wrote beside the rows, put to the tokens that are trained.

Promises that a probability stands at the token it was given for, or nowhere: a row whose trained tokens are not the
sampled ones (a tokenizer that reads the text back differently) learns from its text alone, and is counted.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import msgspec

from engine.config import Config
from engine.errors import ConfigError, TrainError
from engine.models import resolve_model
from trainer.libraries import load_failure
from trainer.render import Chat, Rendered

MOST_UNMATCHED = 0.5
"""Share of rows without probabilities above which the training would be `sft` under another name."""


NUMBER = "number"
"""Column of a row's place among the rows."""
TOPK_IDS, TOPK_LOGPROBS = "topk_ids", "topk_logprobs"
"""What a batch holds of the teacher, shifted like the targets: (rows, tokens - 1, K)."""


class Record(Protocol):
    """What generation captured of one row (engine/logprobs.py)."""

    @property
    def id(self) -> str: ...
    @property
    def token_ids(self) -> Any: ...
    @property
    def topk_ids(self) -> Any: ...
    @property
    def topk_logprobs(self) -> Any: ...


class Candidates(NamedTuple):
    """The teacher's at the first places of one answer: ids and log-probabilities, (places, K)."""

    ids: Any
    logprobs: Any


class Captured(msgspec.Struct, frozen=True):
    """Candidates by row, in the order of the rows; None where a row has none that fit."""

    rows: list[Candidates | None]
    width: int
    """K, of the widest record."""

    @property
    def unmatched(self) -> int:
        return sum(candidates is None for candidates in self.rows)


class WithTeacher:
    """A collator that adds the teacher's candidates to a batch of numbered rows."""

    def __init__(self, collate: Callable[[list[dict[str, Any]]], dict[str, Any]], captured: Captured) -> None:
        self._collate = collate
        self._captured = captured

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        import torch

        batch = self._collate(rows)
        if NUMBER not in rows[0]:
            return batch
        labels = batch["labels"]
        shape = (len(rows), labels.shape[1] - 1, self._captured.width)
        ids, logprobs = torch.zeros(shape, dtype=torch.int32), torch.full(shape, -torch.inf)
        for place, row in enumerate(rows):
            candidates = self._captured.rows[row[NUMBER]]
            if candidates is None:
                continue
            # The token at a place is predicted at the place before.
            start = int((labels[place] != -100).int().argmax()) - 1
            count, width = candidates.ids.shape
            ids[place, start : start + count, :width] = torch.tensor(candidates.ids)
            logprobs[place, start : start + count, :width] = torch.tensor(candidates.logprobs).float()
        return {**batch, TOPK_IDS: ids, TOPK_LOGPROBS: logprobs}


def read_captured(run: Path, config: Config, chat: Chat, rows: Sequence[Rendered]) -> Captured:
    """Read a run's captured probabilities and put them to the rows.

    Raises: MissingError where there are none, ConfigError where the teacher's vocabulary is not the student's,
    TrainError where too few rows fit.
    """
    from engine.logprobs import read_logprobs

    check_vocabulary(config, chat)
    captured = match(rows, read_logprobs(run), chat.stop_ids)
    if captured.unmatched > MOST_UNMATCHED * len(rows):
        raise TrainError(
            f"{run}: in {captured.unmatched} of {len(rows)} rows the trained tokens are not those that the teacher "
            "sampled, so its probabilities fit none of them; set train.method = sft, or generate again"
        )
    return captured


def match(rows: Sequence[Rendered], records: Iterable[Record], stop_ids: frozenset[int]) -> Captured:
    """Put each record to the row of its id, if they are the same tokens.

    A server may end an answer with another stop token than the template does, or with none (a stop string); then the
    row's last token, its own stop token, is trained without the teacher.
    """
    places = {row.example.id: place for place, row in enumerate(rows)}
    found: list[Candidates | None] = [None] * len(rows)
    width = 0
    for record in records:
        place = places.get(record.id)
        if place is None:
            continue
        row = rows[place]
        fitting = _fitting(row.input_ids[row.prompt_tokens :], array("i", record.token_ids.tolist()), stop_ids)
        if fitting:
            found[place] = Candidates(record.topk_ids[:fitting], record.topk_logprobs[:fitting])
            width = max(width, record.topk_ids.shape[1])
    return Captured(found, width)


def _fitting(trained: array[int], sampled: array[int], stop_ids: frozenset[int]) -> int:
    """Return at how many places, from the first, the teacher's candidates are those of the trained tokens."""
    if trained == sampled:
        return len(sampled)
    if sampled and sampled[-1] in stop_ids:
        sampled = sampled[:-1]
    return len(sampled) if trained[:-1] == sampled else 0


def check_vocabulary(config: Config, chat: Chat) -> None:
    """Check that a token means the same to teacher and student.

    Raises: ConfigError where it does not, or where the teacher's tokens cannot be seen.
    """
    from transformers import AutoTokenizer

    method = f"train.method = {config.train.method}"
    if config.teacher.backend != "vllm":
        raise ConfigError(
            f"{method} needs a teacher whose tokens can be compared with the student's, and teacher.backend is "
            f"{config.teacher.backend}; set train.method = sft"
        )
    model = resolve_model(config.teacher.model, key="teacher.model")
    with load_failure("teacher.model", model):
        teacher = AutoTokenizer.from_pretrained(model).get_vocab()
    student = chat.tokenizer.get_vocab()
    if teacher != student:
        differing = len(teacher.items() ^ student.items())
        raise ConfigError(
            f"{method} needs a student with the teacher's own vocabulary, and {differing:,} tokens differ; "
            "take a student of the teacher's family, or set train.method = sft"
        )
