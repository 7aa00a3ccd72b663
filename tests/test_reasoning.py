"""A teacher that thinks before it answers: rows, verdicts and votes are the answer's, and thoughts are counted."""

from __future__ import annotations

import asyncio
import pickle
from pathlib import Path
from typing import Any

import endpoint as endpoint_module
import msgspec
import pytest
from asking import prompts
from endpoint import Endpoint

from engine import config
from engine.backend import EchoBackend, answer_all, check_teacher, make_backend
from engine.config import Filter as FilterSettings
from engine.config import Sampling, Teacher
from engine.errors import ConfigError
from engine.filter import Filter
from engine.generate import generate
from engine.reasoning import AnswerWatch, answer_of
from engine.rows import Completion, Prompt, Row, Verdict
from engine.shards import read_lines, read_manifest
from engine.verify import verify

ROOT = Path(__file__).resolve().parent.parent
END = "</think>"
THOUGHTS = "<think>\nSorry, I cannot say that yet. As an AI language model I wonder. " + "Hm, let me think. " * 60
"""With banned phrases, and longer than any output may be."""
FAST = ["teacher.echo.tokens_per_s=1e9", "prompts.count=300", "filter.cap_per_template=40", "sampling.max_tokens=2000"]


def thinking(plain: Any) -> Any:
    return lambda self, prompt: f"{THOUGHTS}{prompt.id}\n{END}\n\n{plain(self, prompt)}"


def outcomes(folder: Path, *overrides: str) -> tuple[dict[str, tuple[str, str]], int]:
    """Return the rule and text of each row, no text of those that were ended early, and the tokens of all."""
    settings = config.load(ROOT / "data" / "echo.toml", [*FAST, *overrides])
    generate(settings, folder)
    verify(folder)
    manifest = read_manifest(folder)
    lines = [line for shard in manifest.shards for line in read_lines(folder, shard)]
    rows = [msgspec.json.decode(line, type=Row) for line in lines]
    return {row.id: (row.rule, "" if row.aborted else row.output) for row in rows}, sum(
        row.output_tokens for row in rows
    )


def test_what_is_kept_is_what_the_answers_alone_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = outcomes(tmp_path / "plain", "filter.early=false")
    monkeypatch.setattr(EchoBackend, "answer", thinking(EchoBackend.answer))
    drop = f"teacher.reasoning_end={END}"
    late = outcomes(tmp_path / "late", drop, "filter.early=false")
    early = outcomes(tmp_path / "early", drop)
    assert late[0] == plain[0]
    assert kept(early[0]) == kept(plain[0])
    assert {"", "length", "phrase"} <= {rule for rule, _ in early[0].values()}
    assert plain[1] < early[1] < late[1], "early decisions save tokens, and thoughts are counted"


def kept(rows: dict[str, tuple[str, str]]) -> dict[str, str]:
    return {row_id: output for row_id, (rule, output) in rows.items() if not rule}


@pytest.mark.parametrize(
    ("text", "reason", "output", "error"),
    [
        ("<think>a</think>\n\n b \n", "stop", "b \n", ""),
        ("a</think>b</think>c", "stop", "b</think>c", ""),
        ("no thought", "stop", "no thought", ""),
        ("</think>", "length", "", ""),
        (
            "<think>a",
            "length",
            "",
            "7 tokens, and the reasoning had not come to its end (teacher.reasoning_end);",
        ),
        ("<think>a a a", "repetition", "", "7 tokens, and the reasoning had not come to its end"),
        ("<think>a</think>b", "length", "b", ""),
    ],
)
def test_the_answer_of_a_completion(text: str, reason: str, output: str, error: str) -> None:
    found = answer_of(Completion("p", text, reason, output_tokens=7), END)
    assert (found.text, found.finish_reason, found.output_tokens) == (output, reason, 7)
    assert found.error.startswith(error) if error else not found.error


def test_an_error_stays_what_it_is() -> None:
    failed = Completion("p", "", "error", error="the teacher is gone")
    assert answer_of(failed, END) == failed


def test_only_the_answer_is_watched() -> None:
    watch = AnswerWatch(Filter(FilterSettings(max_chars=20)).content.watch, END)
    watch = pickle.loads(pickle.dumps(watch))
    assert watch(THOUGHTS) is None
    assert watch(THOUGHTS + END + "\n\n" + "x" * 20) is None
    assert watch(THOUGHTS + END + "\n\n" + "x" * 21) == Verdict("length", "more than 20 characters")


def test_an_endpoint_that_writes_its_thoughts_into_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = endpoint_module.answer

    def thinking_answer(body: dict[str, Any]) -> tuple[str, str]:
        text, reason = plain(body)
        return f"{THOUGHTS}{END}\n\n{text}", reason

    monkeypatch.setattr(endpoint_module, "answer", thinking_answer)

    async def ask() -> list[Completion]:
        async with Endpoint() as endpoint:
            teacher = Teacher(backend="openai", base_url=endpoint.url, model="teacher", reasoning_end=END)
            async with make_backend(teacher, Sampling(), watch=never) as backend:
                assert backend.capacity == teacher.max_in_flight
                return await answer_all(backend, prompts(5))

    assert [answer.text.startswith("Answer ") for answer in asyncio.run(ask())] == [True] * 5


def never(text: str) -> Verdict | None:
    assert not text.startswith("<think>"), "a thought is watched"
    return None


def test_samples_vote_with_their_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EchoBackend, "answer", lambda self, prompt: f"{prompt.id}{END}yes")
    sampling = Sampling(samples=3, consensus="majority", max_tokens=100)

    async def ask() -> list[Completion]:
        async with make_backend(Teacher(backend="echo", reasoning_end=END), sampling) as backend:
            return await answer_all(backend, [Prompt(index=0, id="p", template="t", instruction="Is it?")])

    (found,) = asyncio.run(ask())
    assert (found.text, found.votes) == ("yes", 3)


def test_log_probabilities_are_refused_with_it() -> None:
    with pytest.raises(ConfigError, match=r"sampling\.logprobs are of all tokens, and teacher\.reasoning_end leaves"):
        check_teacher(Teacher(reasoning_end=END), Sampling(logprobs=5))
