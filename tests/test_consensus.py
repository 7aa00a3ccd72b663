"""Several samples of a prompt: each a row, or one row that most of them agree on, whatever came first."""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import config
from engine.backend import Backend, EchoBackend, answer_all, make_backend
from engine.config import Echo, Sampling, Teacher
from engine.consensus import ConsensusBackend, Vote
from engine.errors import ConfigError
from engine.generate import generate
from engine.prompts import open_source
from engine.rows import Completion, Prompt, Row, row_seed
from engine.shards import read_lines, read_manifest
from engine.verify import verify

ROOT = Path(__file__).resolve().parent.parent
ECHO = ROOT / "data" / "echo.toml"
FAST = ["teacher.echo.tokens_per_s=1e9", "prompts.count=300", "filter.cap_per_template=0"]
MAJORITY = ["sampling.samples=5", "sampling.consensus=majority"]


def settings(*overrides: str) -> config.Config:
    return config.load(ECHO, [*FAST, *overrides])


def rows(folder: Path) -> list[Row]:
    manifest = read_manifest(folder)
    found = [msgspec.json.decode(line, type=Row) for shard in manifest.shards for line in read_lines(folder, shard)]
    return sorted(found, key=lambda row: row.index)


def completion(text: str, number: int = 0, **changes: object) -> Completion:
    return msgspec.structs.replace(
        Completion(id=f"p#{number}", text=text, finish_reason="stop", output_tokens=2), **changes
    )


def decide(texts: Sequence[str], **settings: object) -> Completion:
    sampling = Sampling(samples=len(texts), consensus="majority", **settings)  # type: ignore[arg-type]
    return Vote(sampling).decide("p", [completion(text, number) for number, text in enumerate(texts)])


def test_the_answer_of_most_wins_and_its_first_text_stands_for_it() -> None:
    found = decide(["no", "  Yes,  it IS", "yes, it is", "no way", "yes, it is"])
    assert (found.id, found.text, found.votes, found.samples) == ("p", "  Yes,  it IS", 3, 5)
    assert (found.output_tokens, found.sampled_tokens, found.error) == (2, 10, "")
    assert decide(["b", "a", "a", "b"]).text == "b", "of equal groups, that of the first sample"


def test_a_pattern_says_what_is_voted_for() -> None:
    texts = ["2 + 2 = 4, so #### 4", "#### 5", "three, no: #### 3, or rather #### 4", "no idea"]
    found = decide(texts, consensus_pattern=r"#### *(\d+)")
    assert (found.text, found.votes) == (texts[0], 2)
    found = decide(["a", "b"], consensus_pattern="x")
    assert found.error == "none of 2 samples matches sampling.consensus_pattern"


def test_too_few_votes_are_a_failed_row() -> None:
    assert decide(["a", "b", "a", "c"], consensus_share=0.5).error == ""
    assert decide([*("a" * 14), *"bcdefghijkl"], consensus_share=0.56).error == "", "14 of 25 are 0.56"
    found = decide(["a", "b", "a", "c"], consensus_share=0.6)
    assert found.error == "2 of 4 samples agree, fewer than sampling.consensus_share = 0.6"
    assert (found.text, found.votes) == ("a", 2)


def test_a_sample_that_failed_has_no_vote() -> None:
    vote = Vote(Sampling(samples=3, consensus="majority"))
    samples = [completion("", 0, error="refused"), completion("", 1, error="refused"), completion("b", 2)]
    assert vote.decide("p", samples).text == "b"
    assert vote.decide("p", samples[:2]).error == "refused"


class Shuffled(EchoBackend):
    """Echo whose answers come one by one, in an order of the test's."""

    order: Sequence[int] = ()

    async def completions(self) -> list[Completion]:
        if not self._done:
            self._admit()
            while self._running:
                self._step()
            self._done = [self._done[place % len(self._done)] for place in dict.fromkeys(self.order)]
        return [self._done.pop()] if self._done else []


@given(st.permutations(range(12)))
async def test_the_order_of_the_samples_does_not_matter(order: list[int]) -> None:
    sampling = Sampling(samples=4, consensus="majority")
    inner = Shuffled(Echo(tokens_per_s=1e9), sampling)
    inner.order = order
    asked = [Prompt(index=i, id=f"p{i}", template="t", instruction=f"Say {i}", seed=i) for i in range(3)]
    async with ConsensusBackend(inner, sampling) as backend:
        found = await answer_all(backend, asked)
    async with make_backend(Teacher(backend="echo"), sampling) as backend:
        assert isinstance(backend, ConsensusBackend)
        assert found == await answer_all(backend, asked)


class Scripted:
    """A backend whose answers a test gives, by the number of the sample, in whatever order it likes."""

    capacity = 64

    def __init__(self, texts: Sequence[str], order: Sequence[float]) -> None:
        self._texts = texts
        self._order = order
        self.asked: list[int] = []
        self.open: set[int] = set()

    async def add(self, prompts: Sequence[Prompt]) -> None:
        numbers = [int(prompt.id.partition("#")[2]) for prompt in prompts]
        self.asked += numbers
        self.open |= set(numbers)

    async def abort(self, ids: Sequence[str]) -> None:
        self.open -= {int(name.partition("#")[2]) for name in ids}

    async def completions(self) -> list[Completion]:
        number = min(self.open, key=lambda one: self._order[one])
        self.open.remove(number)
        error = "refused" if self._texts[number] == "error" else ""
        return [completion(self._texts[number], number, error=error)]


@given(
    st.lists(st.sampled_from(["a", "b", "c", "error", "none"]), min_size=2, max_size=9),
    st.lists(st.floats(0, 1), min_size=9, max_size=9),
    st.sampled_from([0.0, 0.3, 0.5, 0.75, 1.0]),
)
async def test_no_more_samples_are_asked_than_the_vote_takes(
    texts: list[str], order: list[float], share: float
) -> None:
    sampling = Sampling(
        samples=len(texts),
        consensus="majority",
        consensus_pattern="^[abc]$",
        consensus_share=share,
        consensus_early=True,
    )
    inner = Scripted(texts, order)
    backend = ConsensusBackend(inner, sampling)  # type: ignore[arg-type]
    await backend.add([Prompt(index=0, id="p", template="t", instruction="Say it")])
    found: list[Completion] = []
    while not found:
        found = await backend.completions()
    assert inner.open == set(), "nobody writes for a vote that is over"
    whole = decide_all(texts, sampling)
    assert bool(found[0].error) == bool(whole.error)
    if not whole.error:
        assert found[0].text == whole.text
    counted = found[0].samples
    assert inner.asked == list(range(len(inner.asked)))
    assert counted <= len(inner.asked) <= len(texts)
    # Whatever the others would have said, it comes out the same; and with one fewer, it might not have.
    endings = itertools.product(["a", "b", "c", "d"], repeat=min(3, len(texts) - counted))
    for ending in endings:
        told = [*texts[:counted], *ending, *[ending[-1]] * (len(texts) - counted - len(ending))] if ending else texts
        other = decide_all(told, sampling)
        assert (bool(other.error), other.error or other.text) == (bool(whole.error), other.error or whole.text)
    if counted > 1:
        ends = {
            key_of(decide_all([*texts[: counted - 1], *[ending] * (len(texts) - counted + 1)], sampling))
            for ending in "abcd"
        }
        assert len(ends) > 1 or counted == len(texts)


def decide_all(texts: Sequence[str], sampling: Sampling) -> Completion:
    """Return what the vote of all samples is; `d` is an answer that nobody has given."""
    every = msgspec.structs.replace(sampling, consensus_early=False, consensus_pattern="^[abcd]$")
    answers = [completion(text, number, error="refused" * (text == "error")) for number, text in enumerate(texts)]
    return Vote(every).decide("p", answers)


def key_of(decided: Completion) -> str:
    return "" if decided.error else decided.text


async def test_an_abort_ends_all_samples() -> None:
    sampling = Sampling(samples=4, consensus="majority")
    backend: Backend
    async with make_backend(Teacher(backend="echo", echo=Echo(tokens_per_s=1e9)), sampling) as backend:
        asked = [Prompt(index=i, id=f"p{i}", template="t", instruction=f"Say {i}") for i in range(3)]
        await backend.add(asked)
        await backend.abort(["p0", "p2", "nobody"])
        found: list[Completion] = []
        while not found:
            found = await backend.completions()
        assert [one.id for one in found] == ["p1"]
        assert await backend.completions() == []


def test_each_sample_is_a_row_with_an_id_and_a_seed_of_its_own(tmp_path: Path) -> None:
    generate(settings("sampling.samples=4"), tmp_path / "run")
    generate(settings(), tmp_path / "once")
    found, once = rows(tmp_path / "run"), rows(tmp_path / "once")
    assert len(found) == 4 * len(once) == 1200
    assert len({row.id for row in found}) == 1200
    for row in once:
        samples = found[4 * row.index : 4 * row.index + 4]
        assert {one.instruction for one in samples} == {row.instruction}
        assert [one.seed for one in samples] == [row_seed(42, row.id, number) for number in range(4)]
        assert samples[0].seed == row.seed
    assert verify(tmp_path / "run")["asked"] == 1200


def test_the_samples_can_be_taken_up_anywhere() -> None:
    prompts = settings().prompts
    source = open_source(prompts, run_seed=1, greedy=False, samples=3)
    whole = list(itertools.islice(source.prompts(), 30))
    assert [prompt.index for prompt in whole] == list(range(30))
    for start in range(10):
        assert list(itertools.islice(source.prompts(start), 30 - start)) == whole[start:]
    assert source.count == 900


def test_with_consensus_a_prompt_is_one_row_with_its_votes(tmp_path: Path) -> None:
    summary = generate(settings(*MAJORITY, "teacher.echo.repeats=0.6"), tmp_path / "run")
    found = rows(tmp_path / "run")
    assert len(found) == summary["asked"] == 300
    assert {row.samples for row in found} == {5}
    assert len(Counter(row.votes for row in found)) > 1
    assert (
        summary["output_tokens"] == sum(row.sampled_tokens for row in found) > sum(row.output_tokens for row in found)
    )
    late = settings(*MAJORITY, "teacher.echo.repeats=0.6", "filter.early=false", "teacher.echo.max_num_seqs=7")
    generate(late, tmp_path / "late")
    assert rows(tmp_path / "late") == found
    verify(tmp_path / "run")


def test_a_decided_vote_costs_fewer_tokens_and_changes_no_text(tmp_path: Path) -> None:
    every = ["sampling.samples=8", "sampling.consensus=majority", "teacher.echo.repeats=0.6"]
    whole = generate(settings(*every), tmp_path / "whole")
    early = generate(settings(*every, "sampling.consensus_early=true"), tmp_path / "early")
    assert [(row.id, row.output, row.rule) for row in rows(tmp_path / "early")] == [
        (row.id, row.output, row.rule) for row in rows(tmp_path / "whole")
    ]
    assert early["output_tokens"] < 0.9 * whole["output_tokens"]
    assert min(row.samples for row in rows(tmp_path / "early")) == 4, "four equal ones of eight, and the first of them"
    late = settings(*every, "sampling.consensus_early=true", "filter.early=false", "teacher.echo.max_num_seqs=7")
    generate(late, tmp_path / "late")
    assert rows(tmp_path / "late") == rows(tmp_path / "early")
    verify(tmp_path / "early")


def test_rows_without_agreement_fail_and_say_so(tmp_path: Path) -> None:
    summary = generate(settings(*MAJORITY, "sampling.consensus_share=0.9"), tmp_path / "run", gate=False)
    assert summary["failed"] > 0
    failed = [row for row in rows(tmp_path / "run") if row.rule == "error"]
    assert all("samples agree, fewer than sampling.consensus_share = 0.9" in row.reason for row in failed)
    verify(tmp_path / "run")


@pytest.mark.parametrize(
    "extra",
    [["sampling.samples=4"], MAJORITY, [*MAJORITY, "sampling.consensus_early=true"]],
    ids=["rows", "votes", "votes until decided"],
)
def test_killed_in_the_middle_of_a_prompts_samples_it_resumes_to_the_same_rows(
    tmp_path: Path, extra: list[str]
) -> None:
    folder = tmp_path / "run"
    overrides = [*FAST, *extra, "teacher.echo.tokens_per_s=8000", "teacher.echo.max_num_seqs=16"]
    sets = [part for override in overrides for part in ("--set", override)]
    command = [sys.executable, "-m", "potstill", "generate", str(ECHO), "--out", str(folder), *sets]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not any(path.stat().st_size for path in folder.glob("kept-*")):
        time.sleep(0.01)
    time.sleep(0.2)
    assert process.poll() is None, "it is killed while it runs"
    process.kill()
    process.wait()
    generate(settings(*extra), folder)
    generate(settings(*extra), tmp_path / "whole")
    assert rows(folder) == rows(tmp_path / "whole")
    verify(folder)


def test_every_sample_has_another_seed() -> None:
    seeds = {row_seed(run, prompt, sample) for run, prompt, sample in itertools.product((1, 2), "ab", range(50))}
    assert len(seeds) == 200
    assert all(0 <= seed < 2**62 for seed in seeds)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["sampling.samples=3", "sampling.temperature=0"], "at temperature 0 all samples are the same"),
        (["sampling.consensus=majority"], "set sampling.samples = 8"),
        (
            ["sampling.samples=8", "sampling.consensus_early=true"],
            "there is no vote; set sampling.consensus = majority",
        ),
        (["sampling.consensus_pattern=("], "consensus_pattern is no regular expression"),
    ],
)
def test_what_makes_no_sense_is_refused_before_any_work(tmp_path: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        generate(settings(*overrides), tmp_path / "run")
    assert not (tmp_path / "run").exists()
