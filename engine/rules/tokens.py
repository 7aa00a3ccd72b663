"""Length in the student's tokens.

It cannot decide early: a longer text may have fewer tokens. Imports `tokenizers` when it is built.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine import rule_settings as settings
from engine.errors import ConfigError, MissingError
from engine.lines import digest_of
from engine.rules import Draft


class TokensRule:
    """Rejects an output that has too few or too many tokens."""

    def __init__(self, chosen: settings.Tokens) -> None:
        if chosen.min_tokens > chosen.max_tokens:
            raise ConfigError("filter.rules: tokens.min_tokens is above max_tokens, so no row can be kept")
        try:
            from tokenizers import Tokenizer
        except ImportError:
            raise MissingError("filter.rules: tokens needs tokenizers; pip install tokenizers") from None
        self._tokenizer: Any = Tokenizer.from_file(str(_path(chosen.tokenizer)))
        self._tokenizer.no_truncation()
        self._least, self._most = chosen.min_tokens, chosen.max_tokens

    def feed(self, partial: str) -> str | None:
        return None

    def finish(self, draft: Draft) -> str | None:
        text = draft.output.encode("utf-8", "replace").decode()  # A lone surrogate is no text to a tokenizer.
        count = len(self._tokenizer.encode(text, add_special_tokens=False).ids)
        if self._least <= count <= self._most:
            return None
        return f"{count} tokens, not {self._least} to {self._most}"


def digest(tokenizer: str) -> str:
    """Return the xxh3-128 of a tokenizer."""
    return digest_of(_path(tokenizer))


def _path(tokenizer: str) -> Path:
    path = Path(tokenizer).expanduser()
    path = path / "tokenizer.json" if path.is_dir() else path
    if not path.is_file():
        raise MissingError(f"filter.rules: tokens.tokenizer: {path} is not there; give the student's folder")
    return path
