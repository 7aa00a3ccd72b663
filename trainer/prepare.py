"""Prepare: the kept rows of a run, rendered, checked and split; all of it without a GPU.

Promises that every kept row is trained on, held out, or counted under the reason that dropped it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from engine.config import Config
from engine.errors import TrainError
from engine.models import resolve_model
from engine.rows import hash_id
from engine.shards import Manifest
from trainer import preflight
from trainer.arguments import Load, plan_steps
from trainer.examples import read_examples, split
from trainer.libraries import load_failure
from trainer.ranks import note
from trainer.render import Chat, Rendered, load_chat, render

PARTS = 16
"""Most templates whose evaluation loss is told apart: each part costs a batch of its own."""


class Prepared(msgspec.Struct, frozen=True):
    """Rows that passed preflight."""

    chat: Chat
    train: list[Rendered]
    validation: list[Rendered]
    dropped: dict[str, int]

    @property
    def load(self) -> Load:
        """The rows as far as training arguments depend on them."""
        tokens = [row.tokens for row in self.train]
        return Load(len(tokens), max(tokens), sum(tokens), len(self.validation))

    def parts(self) -> dict[str, list[Rendered]]:
        """Return the held-out rows by template, or all as one part where there are many templates."""
        parts: dict[str, list[Rendered]] = {}
        for row in self.validation:
            parts.setdefault(row.example.template, []).append(row)
        return parts if len(parts) <= PARTS else {"all": self.validation}


def prepare(config: Config, run: Path, manifest: Manifest) -> Prepared:
    """Read, render, check and split the rows.

    Raises: DataError where a shard changed, TrainError where preflight fails or no row is left.
    """
    model = resolve_model(config.student.model, key="student.model")
    chat = load_chat(model, config.teacher.chat_template_kwargs)
    examples, dropped = read_examples(run, manifest)
    rendered = list(render(chat, examples))
    rows = [row for row in rendered if row.tokens <= config.train.max_length]
    dropped["over_length"] = len(rendered) - len(rows)
    if not rows:
        kept = sum(shard.rows for shard in manifest.of("kept"))
        reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.items())
        raise TrainError(f"{run}: no row to train on ({kept} kept, {reasons}); generate more or loosen the filter")
    _say_dropped(dropped, len(rows), config.train.max_length)
    preflight.check(chat, rows)
    train, validation = split(rows, val_fraction=config.train.val_fraction, seed=config.train.seed)
    if not train:
        raise TrainError(f"{run}: all {len(rows)} rows are held out; lower train.val_fraction or generate more")
    return Prepared(chat, train, validation, dropped)


def _say_dropped(dropped: dict[str, int], left: int, max_length: int) -> None:
    reasons = {
        "unfinished": "cut off by the token limit",
        "over_length": f"longer than train.max_length = {max_length}",
    }
    found = ", ".join(f"{count} {reasons[reason]}" for reason, count in dropped.items() if count)
    if found:
        count = sum(dropped.values())
        note(f"train  {count} of {left + count} rows are left out ({count / (left + count):.0%}): {found}")


def say_pair(alike: dict[str, bool] | None) -> None:
    """Say where a student differs from its teacher in what its text is made of (see `summarise`)."""
    if alike is not None and not alike["vocabulary"]:
        note("train  the student's vocabulary is not the teacher's: text can be learnt, probabilities of tokens cannot")
    if alike is not None and not alike["template"]:
        note("train  the student's chat template is not the teacher's: each is asked in its own")


def summarise(config: Config, prepared: Prepared) -> dict[str, Any]:
    """Return what preflight saw: counts, tokens, the template's hash, and one row as the student will learn it."""
    steps = plan_steps(config.train, prepared.load)
    first, over = prepared.train[0], prepared.dropped["over_length"]
    rendered = len(prepared.train) + len(prepared.validation) + over
    decode = prepared.chat.tokenizer.decode
    return {
        "rows": len(prepared.train),
        "validation_rows": len(prepared.validation),
        "dropped": prepared.dropped,
        "over_length_share": round(over / rendered, 4),
        "steps": steps.total,
        "tokens": {
            "longest": prepared.load.longest,
            "mean": round(prepared.load.mean, 1),
            "trained": sum(row.trained_tokens for row in prepared.train),
        },
        "chat_template": hash_id(prepared.chat.tokenizer.chat_template),
        "stop_ids": sorted(prepared.chat.stop_ids),
        "like_teacher": _like_teacher(config, prepared.chat),
        "first": {
            "prompt": decode(list(first.input_ids[: first.prompt_tokens])),
            "trained": decode(list(first.input_ids[first.prompt_tokens :])),
        },
    }


def _like_teacher(config: Config, chat: Chat) -> dict[str, bool] | None:
    """Say whether student and teacher share vocabulary and template; None where the teacher is not at hand.

    Text suits any student; a teacher's token probabilities would suit only one of the same vocabulary.
    """
    if config.teacher.backend != "vllm" or not config.teacher.model:
        return None
    from transformers import AutoTokenizer

    model = resolve_model(config.teacher.model, key="teacher.model")
    with load_failure("teacher.model", model):
        teacher = AutoTokenizer.from_pretrained(model)
    return {
        "vocabulary": teacher.get_vocab() == chat.tokenizer.get_vocab(),
        "template": teacher.chat_template == chat.tokenizer.chat_template,
    }
