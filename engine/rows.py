"""The nouns: Prompt, Completion, Verdict, Row, and how each gets its id.

Promises that an id is a function of what made the thing, the same on every machine and in every run.
Knows nothing of files, models or rules.
"""

from __future__ import annotations

from typing import Literal

import msgspec
import xxhash

SCHEMA_VERSION = 1
"""Version of the on-disk row; raised when a field changes its meaning."""

Role = Literal["system", "user", "assistant"]
Outcome = Literal["kept", "rejected", "skipped", "failed"]
OUTCOMES: tuple[Outcome, ...] = ("kept", "rejected", "skipped", "failed")


class Message(msgspec.Struct, frozen=True, gc=False):
    """One chat turn."""

    role: Role
    content: str


class Constraint(msgspec.Struct, frozen=True, omit_defaults=True):
    """What form an answer must have: one of the three."""

    json_schema: str = ""
    """A JSON schema, as text."""
    regex: str = ""
    choice: tuple[str, ...] = ()


class Prompt(msgspec.Struct, frozen=True):
    """What the teacher is asked once.

    `prefix` (system prompt and few-shot turns) is seen by the teacher and not by the student.
    """

    index: int
    """Place in the order of commitment, from 0."""
    id: str
    template: str
    instruction: str
    input: str = ""
    prefix: tuple[Message, ...] = ()
    max_tokens: int | None = None
    """Limit of this prompt's own; None takes `sampling.max_tokens`."""
    seed: int = 0
    constraint: Constraint | None = None
    """Form that the teacher is held to."""

    @property
    def question(self) -> str:
        """The user turn: what teacher and student are both asked."""
        return user_turn(self.instruction, self.input)

    def messages(self) -> list[dict[str, str]]:
        """The whole conversation as the teacher sees it, in OpenAI's message form."""
        turns = [{"role": turn.role, "content": turn.content} for turn in self.prefix]
        return [*turns, {"role": "user", "content": self.question}]


class Completion(msgspec.Struct, frozen=True):
    """What came back for one prompt."""

    id: str
    text: str
    finish_reason: str
    """`stop`, `length`, `repetition`, `abort` or `error`, in vLLM's words."""
    prompt_tokens: int = 0
    output_tokens: int = 0
    error: str = ""
    """Why there is no text; the row then counts as failed."""
    verdict: Verdict | None = None
    """Set where generation was ended early because the finished row would have been rejected."""
    samples: int = 0
    """Times that the prompt was asked for one row, and how many of the answers said the same."""
    votes: int = 0
    sampled_tokens: int = 0
    """Output tokens of all the samples, and of tries whose answer was lost, where they are known."""
    logprobs: bytes = b""
    """The tokens' log-probabilities, packed by engine/logprobs.py; empty where they were not asked for."""

    @property
    def cost(self) -> int:
        """Output tokens that the teacher wrote for it, those of all samples."""
        return self.sampled_tokens or self.output_tokens


class Verdict(msgspec.Struct, frozen=True):
    """A rule's answer on one row: the rule that rejected it and why, or KEPT."""

    rule: str
    reason: str = ""

    @property
    def kept(self) -> bool:
        return self.rule == "kept"


KEPT = Verdict("kept")


class Row(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line of a shard. `instruction`, `input`, `output` come first: any Alpaca reader loads it."""

    instruction: str
    input: str
    output: str
    template: str
    id: str
    index: int
    finish_reason: str
    prompt_tokens: int = 0
    output_tokens: int = 0
    seed: int = 0
    rule: str = ""
    """The rule that rejected, skipped or failed it; absent in kept rows."""
    reason: str = ""
    aborted: bool = False
    """True where generation was ended early, so `output` is what had been written by then."""
    samples: int = 0
    """With `sampling.consensus`: how many samples were counted, and how many of them gave this answer."""
    votes: int = 0
    sampled_tokens: int = 0
    """Output tokens of all the samples, and of lost tries; `output_tokens` are those of the text that stands here."""
    held: bool = False
    """True for a skipped prompt that had waited for a place under a cap or a quota."""

    @property
    def cost(self) -> int:
        """Output tokens that the teacher wrote for it, those of all samples."""
        return self.sampled_tokens or self.output_tokens


def user_turn(instruction: str, input_text: str) -> str:
    """Join instruction and input the way every room does: a blank line between, nothing if input is empty."""
    return f"{instruction}\n\n{input_text}" if input_text else instruction


def hash_id(*parts: str) -> str:
    """Return the xxh3-128 hex digest of the parts; order and boundaries count."""
    return xxhash.xxh3_128_hexdigest("\x1f".join(parts).encode("utf-8", "surrogatepass"))


def row_seed(run_seed: int, prompt_id: str, sample: int = 0) -> int:
    """Return the seed of a prompt's sample, in [0, 2**62): the same in every run of one seed."""
    number = f"\x1f{sample}" if sample else ""
    return xxhash.xxh3_64_intdigest(f"{run_seed}\x1f{prompt_id}{number}".encode()) >> 2


def row_of(prompt: Prompt, completion: Completion, verdict: Verdict, *, held: bool = False) -> Row:
    """Build the line that is written for a prompt, its completion and the verdict."""
    return Row(
        instruction=prompt.instruction,
        input=prompt.input,
        output=completion.text,
        template=prompt.template,
        id=prompt.id,
        index=prompt.index,
        finish_reason=completion.finish_reason,
        prompt_tokens=completion.prompt_tokens,
        output_tokens=completion.output_tokens,
        seed=prompt.seed,
        rule="" if verdict.kept else verdict.rule,
        reason=verdict.reason,
        aborted=completion.verdict is not None,
        samples=completion.samples,
        votes=completion.votes,
        sampled_tokens=completion.sampled_tokens,
        held=held,
    )


def cleaned(completion: Completion) -> Completion:
    """Replace lone surrogates, which no UTF-8 file can hold, before anything judges the text."""
    try:
        completion.text.encode()
    except UnicodeEncodeError:
        text = completion.text.encode("utf-8", "replace").decode()
        return msgspec.structs.replace(completion, text=text)
    return completion
