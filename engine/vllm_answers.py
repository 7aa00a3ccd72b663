"""Answers: vLLM's outputs, one a step and row, put together to completions.

Promises one Completion for a row that finished, or that need not finish, and None for one that goes on. Knows nothing
of engines; it is given what a step returned.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from engine.backend import Watch
from engine.logprobs import pack
from engine.rows import Completion, Verdict

TAIL = 5
"""Tokens of the prompt that an answer is decoded with: enough for a tokenizer that writes a word's space before it."""
TORN = "\N{REPLACEMENT CHARACTER}"
"""What a character decodes to whose last bytes have not come yet."""


class Answers:
    """Text as vLLM decodes it."""

    def __init__(self, watch: Watch | None) -> None:
        self._watch = watch
        self._partial: dict[str, tuple[str, int]] = {}

    def forget(self, ids: Iterable[str]) -> None:
        """Drop what came of rows that were aborted."""
        for prompt_id in ids:
            self._partial.pop(prompt_id, None)

    def take(self, output: Any) -> Completion | None:
        """Return the completion that an output makes, or None where the row goes on."""
        answer = output.outputs[0]
        text, tokens = self._partial.pop(output.request_id, ("", 0))
        text, tokens = text + answer.text, tokens + len(answer.token_ids)
        verdict = self._watch(text) if self._watch is not None and not output.finished else None
        if not output.finished and verdict is None:
            self._partial[output.request_id] = (text, tokens)
            return None
        return _completion(output, text, tokens, verdict)


class _Scored(msgspec.Struct):
    """A row on its way."""

    ids: list[int] = []
    parts: list[Any] = []
    text: str = ""


class ScoredAnswers:
    """Text with the tokens' log-probabilities.

    vLLM would decode each of the K candidates of each token to a text of its own, which at K = 20 takes six times as
    long as all else that it does for an answer, so it decodes nothing and the text is decoded here; but for stop
    strings, which only vLLM can look for.
    """

    def __init__(self, watch: Watch | None, *, width: int, tokenizer: Any, decoded: bool) -> None:
        self._watch = watch
        self._width = width
        self._tokenizer = tokenizer
        self._decoded = decoded
        self._rows: dict[str, _Scored] = {}

    def forget(self, ids: Iterable[str]) -> None:
        """Drop what came of rows that were aborted."""
        for prompt_id in ids:
            self._rows.pop(prompt_id, None)

    def take(self, output: Any) -> Completion | None:
        """Return the completion that an output makes, or None where the row goes on."""
        answer = output.outputs[0]
        row = self._rows.pop(output.request_id, None) or _Scored()
        row.ids.extend(answer.token_ids)
        row.parts.append(answer.logprobs)
        row.text += answer.text
        verdict = None
        if not output.finished:
            verdict = self._watch(self._text(output, row)) if self._watch is not None else None
            if verdict is None:
                self._rows[output.request_id] = row
                return None
        completion = _completion(output, self._text(output, row), len(row.ids), verdict)
        return completion if verdict is not None or completion.error else self._scored(completion, row)

    def _text(self, output: Any, row: _Scored) -> str:
        if self._decoded:
            return row.text
        finished = output.finished
        ends = finished and output.outputs[0].finish_reason == "stop"  # by its last token, which is no part of it
        tail = list(output.prompt_token_ids[-TAIL:])
        before = self._decode(tail)
        whole = self._decode(tail + (row.ids[:-1] if ends else row.ids))
        text = whole[len(before) :] if whole.startswith(before) else self._decode(row.ids[:-1] if ends else row.ids)
        return text if finished else text.rstrip(TORN)

    def _decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def _scored(self, completion: Completion, row: _Scored) -> Completion:
        parts = [_arrays(part, self._width) for part in row.parts if part is not None and len(part)]
        if sum(len(part) for part, _ in parts) != len(row.ids):
            error = "vLLM gave no log-probabilities for some tokens of this answer"
            return msgspec.structs.replace(completion, finish_reason="error", error=error)
        return msgspec.structs.replace(completion, logprobs=_packed(row.ids, parts))


def _packed(ids: list[int], parts: list[tuple[Any, Any]]) -> bytes:
    import numpy as np

    if not parts:
        return pack([], [], [], [])
    tokens, values = (np.concatenate(column) for column in zip(*parts, strict=True))
    return pack(ids, tokens[:, 1:], values[:, 1:], values[:, 0])


def _arrays(part: Any, width: int) -> tuple[Any, Any]:
    """Return ids and log-probabilities of a step's tokens, (n, 1 + width): what was sampled, then the likeliest."""
    import numpy as np

    if hasattr(part, "token_ids"):
        places = len(part)
        return (
            np.asarray(part.token_ids, dtype=np.int32).reshape(places, -1),
            np.asarray(part.logprobs, dtype=np.float32).reshape(places, -1),
        )
    # One mapping a token, from token to its place in the ranking; the sampled one is its first, whatever its rank.
    ids, values = [], []
    for place in part:
        sampled = next(iter(place.items()))
        ranked = sorted(place.items(), key=lambda entry: entry[1].rank)[:width]
        ids.append([token for token, _ in (sampled, *ranked)])
        values.append([entry.logprob for _, entry in (sampled, *ranked)])
    return np.asarray(ids, dtype=np.int32), np.asarray(values, dtype=np.float32)


def _completion(output: Any, text: str, tokens: int, verdict: Verdict | None) -> Completion:
    reason = output.outputs[0].finish_reason if output.finished else "abort"
    return Completion(
        id=output.request_id,
        text=text,
        finish_reason=reason,
        prompt_tokens=len(output.prompt_token_ids),
        output_tokens=tokens,
        error="vLLM failed to answer this prompt" if reason == "error" else "",
        verdict=verdict,
    )
