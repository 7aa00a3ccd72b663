"""What is said to an OpenAI-compatible endpoint, and how its answers are read.

Promises that an answer is either whole or an error: a reply without text, a stream that stops half-way and garbage
are TransientError. Token counts are the endpoint's; where it sends none they are estimated, four characters a token.
Knows nothing of sockets or retries: bytes go in, and `Stream` is fed by whoever reads the connection.
"""

from __future__ import annotations

from typing import Any

import msgspec
import orjson

from engine.backend import TOKEN_CHARS, WATCH_TOKENS
from engine.config import Sampling, Teacher
from engine.openai_refusal import RefusedError, Spent, TransientError, refusal_of
from engine.rows import Completion, Constraint, Prompt, Verdict

OLD_LIMIT, NEW_LIMIT = "max_tokens", "max_completion_tokens"
"""Names of an answer's limit: nearly every endpoint knows the first, OpenAI's own new models the second alone."""


class Usage(msgspec.Struct, frozen=True):
    """Tokens, as the endpoint counted them."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Text(msgspec.Struct, frozen=True):
    content: str | None = None


class _Choice(msgspec.Struct, frozen=True):
    message: _Text = _Text()
    delta: _Text = _Text()
    finish_reason: str | None = None


class _Reply(msgspec.Struct, frozen=True):
    """A whole reply, or one event of a stream."""

    choices: list[_Choice] = []
    usage: Usage | None = None
    error: Any = None


_decode_reply = msgspec.json.Decoder(_Reply).decode


class Request:
    """Builds the body of a request: the settings once, then messages, seed and limit of each prompt."""

    def __init__(self, teacher: Teacher, sampling: Sampling, *, stream: bool) -> None:
        self.limit = OLD_LIMIT
        self._max_tokens = sampling.max_tokens
        self._settings: dict[str, Any] = {
            "model": teacher.model,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
        }
        if sampling.stop:
            self._settings["stop"] = list(sampling.stop)
        if sampling.top_k:
            self._settings["top_k"] = sampling.top_k
        if teacher.chat_template_kwargs:
            self._settings["chat_template_kwargs"] = teacher.chat_template_kwargs
        if stream:
            self._settings |= {"stream": True, "stream_options": {"include_usage": True}}

    def body(self, prompt: Prompt) -> bytes:
        """Return the JSON body that asks one prompt.

        Raises: RefusedError where its text has no UTF-8 form (half a surrogate pair).
        """
        own: dict[str, Any] = {
            "messages": prompt.messages(),
            "seed": prompt.seed,
            self.limit: prompt.max_tokens or self._max_tokens,
        }
        if prompt.constraint is not None:
            own |= _form(prompt.constraint)
        try:
            return orjson.dumps(self._settings | own)
        except orjson.JSONEncodeError as error:
            raise RefusedError(f"the prompt cannot be sent: {error}") from None


def _form(constraint: Constraint) -> dict[str, Any]:
    """Hold an answer to a form: a schema as OpenAI has it; the rest only vLLM's server knows."""
    if constraint.json_schema:
        schema = {"name": "answer", "schema": orjson.loads(constraint.json_schema), "strict": True}
        return {"response_format": {"type": "json_schema", "json_schema": schema}}
    if constraint.regex:
        return {"structured_outputs": {"regex": constraint.regex}}
    return {"structured_outputs": {"choice": list(constraint.choice)}}


class Stream:
    """An answer that arrives as server-sent events."""

    def __init__(self) -> None:
        self.text = ""
        self.deltas = 0
        self.over = False
        """Whether the endpoint said that nothing more comes."""
        self.finish_reason = ""
        self.usage: Usage | None = None
        self.error: Any = None
        """What the endpoint put in place of the answer, if it failed half-way."""
        self._torn = b""
        self._judged = (0, 0)

    def feed(self, data: bytes) -> None:
        """Take in bytes as they come, cut anywhere.

        Raises: TransientError where an event is not a chat completion's.
        """
        lines = (self._torn + data).split(b"\n")
        self._torn = lines.pop()
        for line in lines:
            if line.startswith(b"data:"):
                self._event(line[5:].strip())

    def _event(self, data: bytes) -> None:
        if data == b"[DONE]":
            self.over = True
            return
        event = _decoded(data)
        self.usage = event.usage or self.usage
        self.error = event.error or self.error
        for choice in event.choices[:1]:
            self.finish_reason = choice.finish_reason or self.finish_reason
            if choice.delta.content:
                self.text += choice.delta.content
                self.deltas += 1

    def due(self) -> bool:
        """Say whether enough has come since the last time to judge the unfinished text again."""
        deltas, chars = self._judged
        enough = self.deltas - deltas >= WATCH_TOKENS or len(self.text) - chars >= WATCH_TOKENS * TOKEN_CHARS
        if self.finish_reason or not enough:
            return False
        self._judged = (self.deltas, len(self.text))
        return True

    def finish(self, prompt: Prompt) -> Completion:
        """Return the whole answer.

        Raises: TransientError where the stream ended before the answer did.
        """
        if not self.finish_reason:
            raise TransientError("the stream ended before the answer did", spent=_spent(self.usage))
        return _answer(prompt, self.text, self.finish_reason, self.usage)

    def abort(self, prompt: Prompt, verdict: Verdict) -> Completion:
        """Return the answer so far, given up because of a verdict.

        The endpoint counts tokens only at the end, so here a token is a delta, or four characters if that makes more.
        """
        tokens = max(self.deltas, _estimate(self.text))
        usage = self.usage or Usage(completion_tokens=tokens)
        return msgspec.structs.replace(
            _answer(prompt, self.text, "stop", usage), finish_reason="abort", verdict=verdict
        )


def read_reply(prompt: Prompt, body: bytes) -> Completion:
    """Read a whole reply.

    Raises: TransientError where it holds no finished answer.
    """
    reply = _decoded(body)
    if not reply.choices:
        reason = refusal_of(reply.error).message if reply.error else "the reply has no choices"
        raise TransientError(reason, spent=_spent(reply.usage))
    choice = reply.choices[0]
    return _answer(prompt, choice.message.content or "", choice.finish_reason or "stop", reply.usage)


def _decoded(data: bytes) -> _Reply:
    try:
        return _decode_reply(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise TransientError(f"the reply is not a chat completion ({error})") from None


def _answer(prompt: Prompt, text: str, finish_reason: str, usage: Usage | None) -> Completion:
    # vLLM answers so when it is shut down or dies under a request: the text is a part, not the answer.
    if finish_reason in ("abort", "error"):
        raise TransientError(f"the endpoint gave the answer up (finish_reason {finish_reason})", spent=_spent(usage))
    if finish_reason == "content_filter":
        reason = "the endpoint's content filter cut the answer off (finish_reason content_filter)"
        raise RefusedError(reason, spent=_spent(usage))
    usage = usage or Usage()
    asked, answered = usage.prompt_tokens, usage.completion_tokens
    return Completion(
        id=prompt.id,
        text=text,
        finish_reason=finish_reason,
        prompt_tokens=_estimate("".join(turn["content"] for turn in prompt.messages())) if asked is None else asked,
        output_tokens=_estimate(text) if answered is None else answered,
    )


def _spent(usage: Usage | None) -> Spent:
    """Return what the endpoint counted; where it counted nothing, nothing is known."""
    return Spent(usage.prompt_tokens or 0, usage.completion_tokens or 0) if usage else Spent()


def _estimate(text: str) -> int:
    return -(-len(text) // TOKEN_CHARS)


def read_models(body: bytes) -> list[str] | None:
    """Return the names in a list of models, or None where the body is not JSON and so no such endpoint's."""
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    entries = data.get("data") if isinstance(data, dict) else data
    listed = entries if isinstance(entries, list) else []
    return [str(entry["id"]) for entry in listed if isinstance(entry, dict) and "id" in entry]
