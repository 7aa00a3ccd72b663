"""Preflight: what must hold for every rendered row, checked without a GPU and before any is paid for.

Each rule guards against a fault that trains without complaint and only shows in the student's answers. Promises that
a fault is one sentence with a count, a row and a way out. Knows nothing of models.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence

import msgspec

from engine.errors import TrainError
from trainer.render import BATCH_ROWS, Chat, Rendered


class Rule(msgspec.Struct, frozen=True):
    """One thing that must hold. `broken` returns the rows in which it does not."""

    says: str
    advice: str
    broken: Callable[[Chat, Sequence[Rendered]], list[Rendered]]


def check(chat: Chat, rows: Sequence[Rendered]) -> None:
    """Check every rule on every row.

    Raises: TrainError for the first rule that is broken: how often, in which row first, and what to do.
    """
    for rule in RULES:
        broken = rule.broken(chat, rows)
        if broken:
            raise TrainError(
                f"preflight: {rule.says} in {len(broken)} of {len(rows)} rows "
                f"(first: row {broken[0].example.id}); {rule.advice}"
            )


def _prompt_differs(chat: Chat, rows: Sequence[Rendered]) -> list[Rendered]:
    return [row for row in rows if not row.prompt_fits]


def _nothing_trained(chat: Chat, rows: Sequence[Rendered]) -> list[Rendered]:
    return [row for row in rows if row.trained_tokens < 1 or not row.example.answer.strip()]


def _no_stop(chat: Chat, rows: Sequence[Rendered]) -> list[Rendered]:
    return [row for row in rows if row.input_ids[-1] not in chat.stop_ids]


def _stops_inside(chat: Chat, rows: Sequence[Rendered]) -> list[Rendered]:
    return [row for row in rows if not chat.stop_ids.isdisjoint(row.input_ids[row.prompt_tokens : -1])]


def _starts_twice(chat: Chat, rows: Sequence[Rendered]) -> list[Rendered]:
    """Templates may use the start token to open every turn, so only one right behind another is a fault."""
    start = chat.tokenizer.bos_token_id
    return [row for row in rows if start is not None and list(row.input_ids[:2]) == [start, start]]


def _answer_differs(chat: Chat, rows: Sequence[Rendered]) -> list[Rendered]:
    broken = []
    for first in range(0, len(rows), BATCH_ROWS):
        batch = rows[first : first + BATCH_ROWS]
        ids = [list(row.input_ids[row.prompt_tokens : -1]) for row in batch]
        texts = chat.tokenizer.batch_decode(ids, clean_up_tokenization_spaces=False)
        broken += [row for row, text in zip(batch, texts, strict=True) if _plain(text) != _plain(row.example.answer)]
    return broken


def _plain(text: str) -> str:
    """Return a text as tokenizers may see it: they normalise Unicode, and templates strip the ends."""
    return unicodedata.normalize("NFKC", text).strip()


RULES: tuple[Rule, ...] = (
    Rule(
        "the prompt alone is not the beginning of prompt and answer",
        "the student would be trained on another context than it is served; "
        "set teacher.chat_template_kwargs (Qwen3: enable_thinking = false) or take another student",
        _prompt_differs,
    ),
    Rule("there is no token to train on", "filter out empty answers: filter.min_chars = 1 or more", _nothing_trained),
    Rule(
        "the answer does not end with a token at which a server stops",
        "the student would never learn to stop; its template and its eos_token must agree",
        _no_stop,
    ),
    Rule(
        "the answer holds a stop token before its end",
        "filter these rows out: add that token's text to filter.phrases",
        _stops_inside,
    ),
    Rule(
        "the sequence starts with two start tokens",
        "the chat template writes one and the tokenizer adds another; mend the student's chat template",
        _starts_twice,
    ),
    Rule(
        "the trained tokens do not read as the teacher's answer",
        "the chat template adds to it or takes from it; "
        "set teacher.chat_template_kwargs (Qwen3: enable_thinking = false) or take another student",
        _answer_differs,
    ),
)
"""In the order of checking: a later rule may rely on an earlier one."""
