"""Renderer: prompts to token ids, with the teacher's own chat template.

Promises that a prompt which the template or the tokenizer refuses costs that prompt and no other, and that nothing is
added to what the template wrote: a second BOS would change the answers. Knows nothing of engines.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from engine.errors import MissingError
from engine.rows import Prompt


class Rendered(msgspec.Struct, frozen=True, gc=False):
    """A prompt as the model sees it, or the reason why there is no such thing."""

    prompt: Prompt
    ids: list[int]
    error: str = ""


class Renderer:
    """One tokenizer and one template. Not for several threads at once: a fast tokenizer is not made for that."""

    def __init__(self, tokenizer: Any, template: str, kwargs: dict[str, Any]) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._kwargs = kwargs

    def render(self, prompts: Sequence[Prompt]) -> list[Rendered]:
        """Return the prompts with their token ids, in the same order; tokenised in one call, which runs in parallel."""
        texts = [self._text(prompt) for prompt in prompts]
        good = [text for text in texts if isinstance(text, str)]
        ids = iter(self._tokenizer(good, add_special_tokens=False)["input_ids"] if good else ())
        return [
            Rendered(prompt, next(ids))
            if isinstance(text, str)
            else Rendered(prompt, [], f"the chat template refuses this prompt: {text}")
            for prompt, text in zip(prompts, texts, strict=True)
        ]

    @property
    def form(self) -> str:
        """What the template makes of a conversation of one user turn, `{question}`; empty where it refuses that."""
        text = self._text(Prompt(index=0, id="", template="", instruction="{question}"))
        return text if isinstance(text, str) else ""

    def _text(self, prompt: Prompt) -> str | Exception:
        """Return the conversation as the template writes it, or what the template said against it."""
        try:
            text: str = self._tokenizer.apply_chat_template(
                prompt.messages(),
                chat_template=self._template,
                tokenize=False,
                add_generation_prompt=True,
                **self._kwargs,
            )
            text.encode()  # the tokenizer takes no lone surrogates, and would refuse the whole batch for one
        except Exception as error:  # templates are programs: they raise what they like
            return error
        return text


def chat_template(tokenizer: Any, model: str, adapter: str) -> str:
    """Return the chat template that is the teacher's: the adapter's where it brings one, else the model's.

    Raises: MissingError where there is none.
    """
    template = _template_of(Path(adapter)) if adapter else None
    template = template or tokenizer.chat_template
    if not isinstance(template, str):
        raise MissingError(
            f"teacher.model: {model} has no chat template, so it cannot be asked; name an instruct model, "
            "or put a chat_template.jinja into its folder"
        )
    return template


def _template_of(folder: Path) -> str | None:
    """Return the chat template that was saved beside an adapter, if one was."""
    beside = folder / "chat_template.jinja"
    if beside.is_file():
        return beside.read_text(encoding="utf-8")
    settings = folder / "tokenizer_config.json"
    if not settings.is_file():
        return None
    template = json.loads(settings.read_bytes()).get("chat_template")
    return template if isinstance(template, str) else None
