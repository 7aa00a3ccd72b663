"""What is read off the wire: streams cut anywhere, refusals in every form, Retry-After."""

from __future__ import annotations

import itertools
import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.config import Sampling, Teacher
from engine.openai_wire import (
    Refusal,
    Request,
    Stream,
    TransientError,
    Trouble,
    read_models,
    read_refusal,
    read_reply,
    retry_after_s,
    trouble,
)
from engine.rows import Prompt, Verdict

PROMPT = Prompt(index=0, id="p", template="t", instruction="Hello.")
NOON = datetime(2026, 5, 4, 12, 0, 0, tzinfo=UTC)


def events(pieces: list[str], *, newline: str = "\n", usage: bool = True) -> bytes:
    """Return a whole stream, with the comments and empty lines that servers put between events."""
    data = [{"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]}]
    data += [{"choices": [{"delta": {"content": piece}}]} for piece in pieces]
    data += [{"choices": [{"delta": {}, "finish_reason": "stop"}]}]
    lines = [f"data: {json.dumps(event, ensure_ascii=False)}" for event in data]
    if usage:
        lines.append('data:{"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 9, "extra": null}}')
    text = (2 * newline).join([": ping", "event: message", *lines, "data: [DONE]", ""])
    return text.encode()


@given(
    pieces=st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6), max_size=20),
    cuts=st.lists(st.integers(0, 4000), max_size=40),
    newline=st.sampled_from(["\n", "\r\n"]),
)
def test_a_stream_reads_the_same_wherever_it_is_cut(pieces: list[str], cuts: list[int], newline: str) -> None:
    data = events(pieces, newline=newline)
    stream = Stream()
    edges = [0, *sorted(cuts), len(data)]
    for start, end in itertools.pairwise(edges):
        stream.feed(data[start:end])
    answer = stream.finish(PROMPT)
    assert (answer.text, answer.finish_reason) == ("".join(pieces), "stop")
    assert (answer.prompt_tokens, answer.output_tokens) == (3, 9)
    assert stream.deltas == len(pieces)


def test_a_stream_is_judged_every_8_deltas_or_32_characters_until_it_ends() -> None:
    def due(pieces: list[str]) -> list[bool]:
        stream = Stream()
        asked = []
        for piece in pieces:
            stream.feed(b'data: {"choices": [{"delta": {"content": "' + piece.encode() + b'"}}]}\n\n')
            asked.append(stream.due())
        stream.feed(b'data: {"choices": [{"delta": {"content": "and so on until the very end of it"}}]}\n\n')
        stream.feed(b'data: {"choices": [{"delta": {}, "finish_reason": "stop"}]}\n\n')
        assert not stream.due()
        return asked

    assert due(["ab"] * 17) == [*[False] * 7, True, *[False] * 7, True, False]
    assert due(["x" * 33, "y", "z" * 31]) == [True, False, True]


def test_an_aborted_stream_counts_deltas_or_four_characters_a_token() -> None:
    verdict = Verdict("phrase", "holds 'x'")
    short, long = Stream(), Stream()
    for _ in range(3):
        short.feed(b'data: {"choices": [{"delta": {"content": "x"}}]}\n')
        long.feed(b'data: {"choices": [{"delta": {"content": "xxxx xxxx xxxx"}}]}\n')
    assert short.abort(PROMPT, verdict).output_tokens == 3
    answer = long.abort(PROMPT, verdict)
    assert (answer.output_tokens, answer.finish_reason, answer.verdict) == (11, "abort", verdict)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"data: [DONE]\n\n",
        b'data: {"choices": [{"delta": {"content": "Half"}}]}\n\n',
        b'data: {"choices": [{"delta": {"content": "Half"}, "finish_reason": "abort"}]}\n\n',
        b'data: {"choices": [{"delta": {"content": "Whole"}, "finish_reason": "stop"}',
        b"data: <html>\n",
        b'data: {"choices": [{"delta": {"content": "\xff"}}]}\n',
        b'data: {"choices": [{"delta": {"content": ["part"]}}]}\n',
    ],
)
def test_half_a_stream_is_not_an_answer(data: bytes) -> None:
    stream = Stream()
    with pytest.raises(TransientError):
        read_stream(stream, data)


def read_stream(stream: Stream, data: bytes) -> None:
    stream.feed(data)
    stream.finish(PROMPT)


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b"<html>", b'{"choices": [{"message": {"content": 1}}]}', b"\xff"])
def test_a_reply_without_an_answer_is_a_fault(body: bytes) -> None:
    with pytest.raises(TransientError):
        read_reply(PROMPT, body)


def test_a_reply_without_text_is_an_empty_answer() -> None:
    answer = read_reply(PROMPT, b'{"choices": [{"message": {"content": null}, "finish_reason": null}], "usage": null}')
    assert (answer.text, answer.finish_reason, answer.error) == ("", "stop", "")
    assert (answer.prompt_tokens, answer.output_tokens) == (2, 0)


def test_a_prompts_own_limit_goes_before_the_settings() -> None:
    request = Request(Teacher(model="m"), Sampling(max_tokens=40), stream=False)
    own = Prompt(index=0, id="p", template="t", instruction="Hello.", max_tokens=4)
    assert json.loads(request.body(PROMPT))["max_tokens"] == 40
    assert json.loads(request.body(own))["max_tokens"] == 4


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"error": {"message": "no", "code": "c", "param": "p"}}', Refusal("no", "c", "p")),
        (b'{"error": {"message": "no", "code": 404, "param": null}}', Refusal("no", "404", "")),
        (b'{"error": "no"}', Refusal("no")),
        (b'{"message": "no"}', Refusal("no")),
        (b'{"detail": "no"}', Refusal("no")),
        (b'["no"]', Refusal("['no']")),
        (b'{"other": 1}', Refusal()),
        (b"<html>no</html>", Refusal()),
        (b"", Refusal()),
    ],
)
def test_a_refusal_is_read_in_every_form(body: bytes, expected: Refusal) -> None:
    assert read_refusal(body) == expected


@pytest.mark.parametrize(
    ("status", "refusal", "expected"),
    [
        (400, Refusal("too long"), "prompt"),
        (404, Refusal("no such tool"), "prompt"),
        (404, Refusal("The model `m-7b` does not exist."), "model"),
        (400, Refusal("The model `m-7b` is too small for this prompt"), "prompt"),
        (404, Refusal("Not Found"), "path"),
        (404, Refusal("Invalid URL (POST /chat/completions)"), "path"),
        (404, Refusal("Unknown request URL: POST /x. m-7b", "unknown_url"), "path"),
        (405, Refusal("Method Not Allowed"), "path"),
        (301, Refusal(), "path"),
        (401, Refusal(), "key"),
        (403, Refusal(), "key"),
        (402, Refusal(), "quota"),
        (429, Refusal("empty", "insufficient_quota"), "quota"),
        (429, Refusal(), "transient"),
        (429, Refusal("Request too large for m-7b on tokens per min (TPM): Limit 10, Requested 12"), "prompt"),
        (408, Refusal(), "transient"),
        (500, Refusal(), "transient"),
        (599, Refusal(), "transient"),
    ],
)
def test_a_refusal_is_somebodys_fault(status: int, refusal: Refusal, expected: Trouble) -> None:
    assert trouble(status, refusal, model="m-7b") == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("3", 3.0),
        ("0.25", 0.25),
        ("-1", 0.0),
        ("Mon, 04 May 2026 12:00:05 GMT", 5.0),
        ("Mon, 04 May 2026 14:00:05 +0200", 5.0),
        ("Mon, 04 May 2026 12:00:05 -0000", 5.0),
        ("Mon, 04 May 2026 11:00:00 GMT", 0.0),
        ("soon", None),
        ("inf", None),
        ("nan", None),
        ("", None),
        (None, None),
    ],
)
def test_retry_after_is_seconds_or_a_date(value: str | None, expected: float | None) -> None:
    assert retry_after_s(value, now=NOON) == expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"data": [{"id": "a"}, {"id": "b"}]}', ["a", "b"]),
        (b'[{"id": "a"}]', ["a"]),
        (b'{"data": null}', []),
        (b'{"data": ["a"]}', []),
        (b'{"data": 3}', []),
        (b'"x"', []),
        (b"<html>", None),
    ],
)
def test_models_are_read_in_every_form(body: bytes, expected: list[str] | None) -> None:
    assert read_models(body) == expected
