"""What is read off the wire: streams cut anywhere, whole replies, lists of models."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.config import Sampling, Teacher
from engine.openai_refusal import RefusedError, TransientError
from engine.openai_wire import NEW_LIMIT, Request, Stream, read_models, read_reply
from engine.rows import Prompt, Verdict

PROMPT = Prompt(index=0, id="p", template="t", instruction="Hello.")


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


def test_what_a_content_filter_cut_off_is_no_answer() -> None:
    cut = b'{"choices": [{"message": {"content": "Half of"}, "finish_reason": "content_filter"}]}'
    with pytest.raises(RefusedError, match="content filter"):
        read_reply(PROMPT, cut)
    stream = Stream()
    stream.feed(b"data: " + cut.replace(b"message", b"delta") + b"\n\n")
    with pytest.raises(RefusedError, match="content filter"):
        stream.finish(PROMPT)


def test_the_limit_of_an_answer_has_the_name_that_is_set() -> None:
    request = Request(Teacher(model="m"), Sampling(max_tokens=40), stream=False)
    request.limit = NEW_LIMIT
    body = json.loads(request.body(PROMPT))
    assert body["max_completion_tokens"] == 40
    assert "max_tokens" not in body


def test_a_prompts_own_limit_goes_before_the_settings() -> None:
    request = Request(Teacher(model="m"), Sampling(max_tokens=40), stream=False)
    own = Prompt(index=0, id="p", template="t", instruction="Hello.", max_tokens=4)
    assert json.loads(request.body(PROMPT))["max_tokens"] == 40
    assert json.loads(request.body(own))["max_tokens"] == 4


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
