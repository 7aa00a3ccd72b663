"""Answers that wait for an earlier prompt: kept through the end of a part of the run, and asked no second time."""

import random
from pathlib import Path

import pytest
from echo_runs import lines, settings

from engine import answered as module
from engine import generate as generation
from engine.answered import Answer, Answered
from engine.backend import EchoBackend
from engine.config import Config
from engine.errors import DataError, LimitError, UsageError
from engine.generate import generate
from engine.rows import Completion, Prompt, Verdict

SOME = ("prompts.count=400", "filter.cap_per_template=60", "teacher.echo.max_num_seqs=16", "output.shard_bytes=20000")


def answer(index: int, text: str = "yes") -> Answer:
    return Answer(index, Completion(id=f"p{index}", text=text, finish_reason="stop"))


def ask(*indexes: int) -> list[Prompt]:
    return [Prompt(index=index, id=f"p{index}", template="t", instruction="?") for index in indexes]


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("answered-*"))


def test_what_waits_is_known_to_the_next_part_of_the_run(tmp_path: Path) -> None:
    first = Answered(tmp_path, 0)
    spoken = Completion(
        id="p4", text="no\n\u00e9", finish_reason="abort", verdict=Verdict("phrase", "no"), logprobs=b"\0\xff"
    )
    first.append([answer(2), answer(3), Answer(4, spoken)])
    first.committed("p3")
    first.close()
    second = Answered(tmp_path, 3)
    assert second.take(ask(2, 3, 4, 5)) == [answer(3).completion, spoken], "2 comes before the position; 3 may wait"
    assert second.take(ask(4)) == []
    second.committed("p3")
    second.append([answer(7)])
    assert files(tmp_path) == ["answered-00000.jsonl.part", "answered-00001.jsonl.part"]
    second.committed("p4")
    second.committed("p7")
    second.close()
    assert files(tmp_path) == []


def test_a_file_goes_when_nothing_in_it_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FILE_BYTES", 1000)
    kept = Answered(tmp_path, 0)
    for index in range(1, 200):
        kept.append([answer(index, "x" * 100)])
        if index > 3:
            kept.committed(f"p{index - 3}")
    kept.append([])
    assert len(files(tmp_path)) <= 2
    kept.discard()
    assert files(tmp_path) == []


def test_a_torn_line_is_left_out_and_a_file_of_another_name_is_left_alone(tmp_path: Path) -> None:
    first = Answered(tmp_path, 0)
    first.append([answer(1), answer(2)])
    first.close()
    path = tmp_path / "answered-00000.jsonl.part"
    path.write_bytes(path.read_bytes()[:-9])
    mine = tmp_path / "answered-by-me.jsonl"
    mine.write_text("{}\n")
    second = Answered(tmp_path, 0)
    second.append([answer(5)])
    assert second.take(ask(1, 2)) == [answer(1).completion]
    second.discard()
    assert files(tmp_path) == [mine.name]


def test_a_file_that_cannot_be_read_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "answered-00000.jsonl.part").mkdir()
    with pytest.raises(DataError, match=r"answered-00000\.jsonl\.part: cannot be read .*delete it"):
        Answered(tmp_path, 0)


class Ending(EchoBackend):
    """Hands answers over in any order, and after some of them says that no more are to be had."""

    handed: list[str]
    rng: random.Random

    async def __aenter__(self):  # type: ignore[no-untyped-def]
        self._left = self.rng.randrange(10, 60)
        self._kept: list[Completion] = []
        return self

    async def completions(self) -> list[Completion]:
        self._kept += await super().completions()
        self.rng.shuffle(self._kept)
        given, self._kept = self._kept[: self._left], self._kept[self._left :]
        if not self._left:
            raise LimitError("the credit is spent")
        self._left -= len(given)
        self.handed += [completion.id for completion in given]
        return given


def in_parts(folder: Path, config: Config, monkeypatch: pytest.MonkeyPatch, seed: int) -> tuple[int, list[str]]:
    """Run to the end with a teacher that ends again and again; return the parts and the ids that were answered."""
    Ending.handed, Ending.rng = [], random.Random(seed)
    monkeypatch.setattr(generation, "make_backend", lambda teacher, sampling, watch: Ending(teacher.echo, sampling))
    for parts in range(1, 100):
        try:
            generate(config, folder, gate=False)
        except LimitError:
            continue
        return parts, Ending.handed
    raise AssertionError("it does not come to an end")


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("more", [(), ("sampling.logprobs=3",), ("output.accepted=130",)], ids=str)
def test_no_answer_is_asked_for_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, more: tuple[str, ...]
) -> None:
    config = settings(*SOME, *more)
    generate(config, tmp_path / "whole", gate=False)
    parts, handed = in_parts(tmp_path / "parts", config, monkeypatch, seed)
    assert parts > 2
    assert len(handed) == len(set(handed)), "each answer was paid for once"
    for kind in ("kept", "failed"):
        assert lines(tmp_path / "parts", kind) == lines(tmp_path / "whole", kind)
    assert records(tmp_path / "parts") == records(tmp_path / "whole")
    assert not list((tmp_path / "parts").glob("*.part"))


def test_a_resumed_run_fills_the_teachers_window_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left to ask of what was asked before is slow and little, and a teacher would wait for it alone."""
    long = ("teacher.echo.overlong=0.01", "filter.max_chars=2000", "sampling.max_tokens=1000")
    config = settings(*long, "teacher.echo.max_num_seqs=64", "filter.cap_per_template=0")
    Waited.with_it, Waited.left = [], 2000
    monkeypatch.setattr(generation, "make_backend", lambda teacher, sampling, watch: Waited(teacher.echo, sampling))
    with pytest.raises(LimitError):
        generate(config, tmp_path, gate=False)
    assert sum(path.read_bytes().count(b"\n") for path in tmp_path.glob("answered-*")) > 300
    Waited.with_it, Waited.left = [], 10**6
    generate(config, tmp_path, gate=False)
    assert min(Waited.with_it[:10]) == 96


class Waited(EchoBackend):
    """Says how many prompts it has when it is waited for."""

    with_it: list[int]
    left: int

    async def completions(self) -> list[Completion]:
        if Waited.left <= 0:
            raise LimitError("the credit is spent")
        self.with_it.append(len(self._running) + len(self._waiting))
        done = await super().completions()
        Waited.left -= len(done)
        return done


def records(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.glob("logprobs-*.bin")))


def test_answers_without_a_manifest_are_no_new_run(tmp_path: Path) -> None:
    left = Answered(tmp_path, 0)
    left.append([answer(1)])
    left.close()
    with pytest.raises(UsageError, match=r"holds answered-00000\.jsonl\.part but no manifest"):
        generate(settings(), tmp_path)
