"""Render: examples to token ids with the student's own chat template, and which of them the loss counts.

Both backends are handed these ids and no text, so what preflight checked is what is trained, whatever a library would
have made of the template. Promises one rendering for all rows: the prompt as the student will be served it, then the
answer up to and including the token at which a server stops. Knows nothing of models.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from engine.errors import TrainError
from trainer.examples import Example
from trainer.libraries import first_line, load_failure

BATCH_ROWS = 1024
"""Rows tokenised in one call: the tokenizer works in parallel inside a call."""


class Rendered(msgspec.Struct, frozen=True, gc=False):
    """One example as ids. The loss counts `input_ids[prompt_tokens:]`."""

    example: Example
    input_ids: array[int]
    prompt_tokens: int
    prompt_fits: bool
    """False where the prompt alone renders to other ids than the same prompt with an answer behind it."""

    @property
    def group(self) -> str:
        return self.example.group

    @property
    def tokens(self) -> int:
        return len(self.input_ids)

    @property
    def trained_tokens(self) -> int:
        return len(self.input_ids) - self.prompt_tokens


class Chat(msgspec.Struct, frozen=True):
    """A student's tokenizer and template, and the ids at which a server of this student stops."""

    tokenizer: Any
    template_kwargs: dict[str, Any]
    stop_ids: frozenset[int]


def load_chat(model: str, template_kwargs: dict[str, Any]) -> Chat:
    """Load the tokenizer of a model folder or Hugging Face id.

    Raises: MissingError where it is not there, TrainError where it has no chat template or no stop token.
    """
    from transformers import AutoTokenizer

    with load_failure("student.model", model):
        tokenizer = AutoTokenizer.from_pretrained(model)
    if not tokenizer.chat_template:
        raise TrainError(f"student.model: {model} has no chat template; take the instruct model of its family")
    stop_ids = _stop_ids(model, tokenizer)
    if not stop_ids:
        raise TrainError(f"student.model: {model} names no stop token; set eos_token in its tokenizer_config.json")
    return Chat(tokenizer, template_kwargs, stop_ids)


def render(chat: Chat, examples: Sequence[Example]) -> Iterator[Rendered]:
    """Render examples in order.

    Raises: TrainError where the chat template refuses a conversation.
    """
    for start in range(0, len(examples), BATCH_ROWS):
        batch = examples[start : start + BATCH_ROWS]
        prompts, wholes = _ids(chat, batch)
        for example, prompt, whole in zip(batch, prompts, wholes, strict=True):
            yield _rendered(example, prompt, _cut(whole, len(prompt), chat.stop_ids))


def _ids(chat: Chat, batch: Sequence[Example]) -> tuple[list[list[int]], list[list[int]]]:
    """Return the ids of each prompt as it is served, and of each prompt with its answer."""
    rows = [example.conversation(chat.template_kwargs) for example in batch]
    prompt_texts = _texts(chat, [row["prompt"] for row in rows], add_generation_prompt=True)
    whole_texts = _texts(chat, [row["prompt"] + row["completion"] for row in rows], add_generation_prompt=False)
    prompts, wholes = _tokens(chat, prompt_texts), _tokens(chat, whole_texts)
    for place, (prompt, whole) in enumerate(zip(prompts, wholes, strict=True)):
        answer = whole_texts[place].removeprefix(prompt_texts[place])
        # An answer that starts with a space may melt into the prompt's last token; a server's model cannot do that.
        if whole[: len(prompt)] != prompt and answer != whole_texts[place]:
            wholes[place] = prompt + _tokens(chat, [answer])[0]
    return prompts, wholes


def _texts(chat: Chat, conversations: list[list[dict[str, str]]], *, add_generation_prompt: bool) -> list[str]:
    from jinja2 import TemplateError

    try:
        texts: list[str] = chat.tokenizer.apply_chat_template(
            conversations, tokenize=False, add_generation_prompt=add_generation_prompt, **chat.template_kwargs
        )
    except TemplateError as error:
        raise TrainError(
            f"the student's chat template refuses a conversation ({first_line(error)}); "
            "check teacher.chat_template_kwargs, or take another student"
        ) from error
    return texts


def _tokens(chat: Chat, texts: list[str]) -> list[list[int]]:
    """Tokenise rendered texts; they hold their special tokens already, so none is added."""
    ids: list[list[int]] = chat.tokenizer(texts, add_special_tokens=False)["input_ids"]
    return ids


def _cut(whole: list[int], start: int, stop_ids: frozenset[int]) -> list[int]:
    """Drop what the template writes after the last stop token: a server never gets there."""
    for place in range(len(whole) - 1, start - 1, -1):
        if whole[place] in stop_ids:
            return whole[: place + 1]
    return whole


def _rendered(example: Example, prompt: list[int], whole: list[int]) -> Rendered:
    return Rendered(example, array("i", whole), len(prompt), whole[: len(prompt)] == prompt)


def _stop_ids(model: str, tokenizer: Any) -> frozenset[int]:
    """Return the ids at which vLLM stops: the tokenizer's end token and those of the generation config."""
    from transformers import GenerationConfig

    try:
        named = GenerationConfig.from_pretrained(model).eos_token_id
    except OSError:
        named = None  # Not every model ships one; the tokenizer's own end token remains.
    ids = [tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])]
    return frozenset(token for token in ids if token is not None)
