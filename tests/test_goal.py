"""When a run ends, and what it never asks: quotas, the budget of candidates, leaks; on the echo backend."""

import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import orjson
import pytest
from echo_runs import command, lines, settings, size

from engine import config
from engine import generate as generation
from engine.backend import EchoBackend
from engine.errors import ConfigError
from engine.generate import generate
from engine.goal import Goal
from engine.rows import Prompt
from engine.shards import read_manifest
from engine.verify import verify

QUOTAS = ["output.quotas.json=300", "output.quotas.temperature=100", "output.quotas.colour=5"]


def test_quotas_end_the_run_when_all_are_filled(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    summary = generate(settings(*QUOTAS), folder)
    kept = Counter(orjson.loads(line)["template"] for line in lines(folder))
    assert kept == {"json": 300, "temperature": 100, "colour": 5}
    assert summary["ending"] == "quotas"
    assert summary["skipped_by"]["quota"] > 0
    assert {orjson.loads(line)["rule"] for line in lines(folder, "skipped")} == {"quota"}
    verify(folder)
    other = tmp_path / "other"
    for bytes_ in (20_000, 60_000):
        process = subprocess.Popen(command(other, *QUOTAS, "teacher.echo.tokens_per_s=6000"), stderr=subprocess.DEVNULL)
        while process.poll() is None and size(other) < bytes_:
            time.sleep(0.01)
        process.kill()
        process.wait()
    again = generate(settings(*QUOTAS, "filter.early=false", "teacher.echo.max_num_seqs=7"), other)
    assert lines(other) == lines(folder)
    assert again["asked"] == summary["asked"]
    verify(other)


def test_the_budget_of_candidates_ends_a_run_and_a_larger_one_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = ["output.accepted=200", "prompts.count=100000"]
    generate(settings(*wanted), tmp_path / "whole")
    summary = generate(settings(*wanted, "output.candidates=150"), tmp_path / "run")
    assert (summary["asked"], summary["ending"]) == (150, "candidates")
    assert summary["kept"] < 150
    said = capsys.readouterr().err
    assert f"only {summary['kept']} of 200 rows: the budget of 150 candidates ran out" in said
    generate(settings(*wanted, "output.candidates=150"), tmp_path / "run")
    again = capsys.readouterr().err
    assert "is finished" in again
    assert again.endswith(said[said.index("only ") :]), "what is missing is said again"
    with pytest.raises(
        ConfigError, match=r"has 150 candidates already, and output\.candidates is 100; a run can be given"
    ):
        generate(settings(*wanted, "output.candidates=100"), tmp_path / "run")
    generate(
        settings("output.accepted=20", "output.candidates=5000", "filter.max_chars=6"), tmp_path / "dry", gate=False
    )
    with pytest.raises(ConfigError, match=r"has 3,000 candidates already, and output\.candidates is 1,400"):
        generate(settings("output.accepted=20", "filter.max_chars=6"), tmp_path / "dry", gate=False)
    generate(settings(*wanted, "output.candidates=5000"), tmp_path / "run")
    assert lines(tmp_path / "run") == lines(tmp_path / "whole")
    assert verify(tmp_path / "run")["finished"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["output.quotas.jason=3"], "no template 'jason'; there are colour, json, temperature"),
        (["output.quotas.json=701"], "701 rows of 'json' are wanted, and filter.cap_per_template keeps 700"),
        ([*QUOTAS, "output.accepted=406"], r"output.accepted = 406 is more than the quotas .*\(405\)"),
        (["sampling.end_loops.max_pattern_size=3"], "sampling.end_loops: min_pattern_size is above max_pattern_size"),
        (["sampling.end_loops={}"], "sampling.end_loops is for teacher.backend = 'vllm'"),
        (["sampling.end_loops={}", "teacher.backend=vllm"], 'add .*filter.rules.* with use = "repetition"'),
    ],
)
def test_what_can_never_come_true_is_refused(tmp_path: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        generate(settings(*overrides), tmp_path / "run")


@pytest.mark.parametrize(
    ("fewer", "more", "message"),
    [
        ("output.accepted=150", "output.accepted=400", "400 rows of .* are kept already, and output.accepted is 150"),
        ("prompts.count=300", "prompts.count=900", "900 prompts of .* are asked already, and prompts.count allows 300"),
    ],
)
def test_a_finished_run_that_is_given_more_becomes_the_larger_run(
    tmp_path: Path, fewer: str, more: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = generate(settings("prompts.count=5000", more), tmp_path / "whole")
    before = generate(settings("prompts.count=5000", fewer), tmp_path / "run")
    assert before["kept"] < whole["kept"]
    summary = generate(settings("prompts.count=5000", more), tmp_path / "run")
    for kind in ("kept", "rejected", "skipped"):
        assert lines(tmp_path / "run", kind) == lines(tmp_path / "whole", kind)
    assert (summary["asked"], summary["ending"]) == (whole["asked"], whole["ending"])
    key, _, value = more.partition("=")
    manifest = read_manifest(tmp_path / "run")
    assert manifest.fingerprint == read_manifest(tmp_path / "whole").fingerprint
    assert manifest.fingerprint[key] == int(value)
    assert config.load(tmp_path / "run" / "config.toml", []) == settings("prompts.count=5000", more)
    assert verify(tmp_path / "run")["finished"]
    capsys.readouterr()
    assert generate(settings("prompts.count=5000", more), tmp_path / "run") == summary
    assert "is finished" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=message):
        generate(settings("prompts.count=5000", fewer), tmp_path / "run")
    assert config.load(tmp_path / "run" / "config.toml", []) == settings("prompts.count=5000", more)


def test_a_run_with_enough_rows_notes_that_it_may_ask_more(tmp_path: Path) -> None:
    generate(settings("prompts.count=1000", "output.accepted=50"), tmp_path)
    kept = lines(tmp_path)
    generate(settings("prompts.count=2000", "output.accepted=50"), tmp_path)
    assert lines(tmp_path) == kept
    assert read_manifest(tmp_path).fingerprint["prompts.count"] == 2000
    assert config.load(tmp_path / "config.toml", []).prompts.count == 2000


def test_inputs_that_leak_are_not_asked_and_the_kept_rows_are_the_same(tmp_path: Path) -> None:
    held_out = tmp_path / "held-out.jsonl"
    held_out.write_text('{"instruction": "Format as JSON. name=Alan age=801"}\n')
    rule = f"filter.rules=[{{use='leak', files=['{held_out}'], slots=true}}]"
    summary = generate(settings(rule, "prompts.count=500"), tmp_path / "early")
    late = generate(settings(rule, "prompts.count=500", "filter.early=false"), tmp_path / "late")
    assert lines(tmp_path / "early") == lines(tmp_path / "late")
    assert summary["skipped_by"]["leak"] >= late["rejected"]["leak"] > 15
    assert summary["output_tokens"] < late["output_tokens"]
    assert "held out" in orjson.loads(lines(tmp_path / "early", "skipped")[0])["reason"]


def test_a_question_that_failed_before_a_kill_is_asked_again_by_its_twin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engine import generate as module
    from engine.backend import EchoBackend
    from engine.rows import Completion

    class Unlucky(EchoBackend):
        async def completions(self) -> list[Completion]:
            done = await super().completions()
            return [Completion(one.id, "", "error", error="lost") if one.id in first else one for one in done]

        async def add(self, prompts: Sequence[Prompt]) -> None:
            first.update(prompt.id for prompt in prompts if prompt.index == 0)
            await super().add(prompts)

    first: set[str] = set()
    monkeypatch.setattr(
        module, "make_backend", lambda teacher, sampling, *, watch=None: Unlucky(teacher.echo, sampling, watch=watch)
    )
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "Say it"}\n' * 3)
    wanted = ["prompts.count=3", "output.accepted=1", "sampling.temperature=0", "teacher.echo.refusals=0"]
    wanted += ["teacher.echo.overlong=0", "teacher.echo.empty=0"]

    def ask(*overrides: str) -> dict[str, Any]:
        data = msgspec.to_builtins(settings(*wanted, *overrides))
        data["prompts"] |= {"templates": "", "file": str(file)}
        return generate(config.from_mapping(data, where="test"), tmp_path / "run", gate=False)

    assert ask("output.candidates=1")["failed"] == 1
    summary = ask("output.candidates=3")
    assert (summary["asked"], summary["failed"], summary["kept"]) == (2, 1, 1)


@pytest.mark.parametrize("wanted", [["output.accepted=500"], ["output.quotas.json=300", "output.quotas.colour=40"]])
def test_no_more_is_asked_than_the_missing_rows_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: list[str]
) -> None:
    """A slow answer at the head of the order would else let thousands be asked that nobody waits for."""
    asked: list[str] = []

    class Counting(EchoBackend):
        async def add(self, prompts: Sequence[Prompt]) -> None:
            asked.extend(prompt.id for prompt in prompts)
            await super().add(prompts)

    monkeypatch.setattr(generation, "make_backend", lambda teacher, sampling, watch: Counting(teacher.echo, sampling))
    more = ["prompts.count=100000", "filter.cap_per_template=0", "teacher.echo.overlong=0.1"]
    summary = generate(settings(*wanted, *more), tmp_path / "run", gate=False)
    assert summary["ending"] in ("accepted", "quotas")
    answered = summary["asked"] - summary["skipped"]
    assert answered <= len(asked) < 1.1 * answered


def test_how_many_prompts_will_do() -> None:
    goal = Goal(config.Output(accepted=1000))
    assert goal.enough(1000, answered=2000, passed=1000) == 0
    assert goal.enough(0, answered=0, passed=0) == 1134, "1,111 of which nine in ten are kept, and 23 to spare"
    assert goal.enough(500, answered=10**6, passed=10**6) == 501
    half = goal.enough(500, answered=10**6, passed=5 * 10**5)
    assert half == 1064, "1,000, and two standard deviations of 32"
    assert Goal(config.Output()).enough(0, answered=0, passed=0) is None


FEW = """
[[template]]
id = "big"
text = "Say {n}"
[template.slots.n]
range = [0, 999999999]
[[template]]
id = "small"
text = "Tell {n}"
[template.slots.n]
range = [1, 4]
"""


def test_a_run_ends_where_only_prompts_are_left_that_nobody_wants(tmp_path: Path) -> None:
    """They use up no budget, and there are a thousand million of them."""
    (tmp_path / "few.toml").write_text(FEW)
    shared = ["teacher.backend=echo", "teacher.echo.tokens_per_s=1e9", f"prompts.templates={tmp_path / 'few.toml'}"]
    shared += ["sampling.temperature=0", "output.quotas.big=10", "output.quotas.small=50"]
    found = []
    for name, more in enumerate(([], ["filter.early=false"], ["teacher.echo.max_num_seqs=3"], ["output.accepted=60"])):
        folder = tmp_path / str(name)
        summary = generate(config.load(None, [*shared, *more]), folder)
        assert (summary["ending"], sum(summary["templates"]["small"].values())) == ("prompts", 4)
        found.append((summary["asked"], lines(folder)))
        assert generate(config.load(None, [*shared, *more]), folder) == summary, "it is finished"
    assert found == [found[0]] * 4


def greedy(folder: Path, *more: str) -> config.Config:
    (folder / "few.toml").write_text('[[template]]\nid = "a"\ntext = "Say {n}"\nslots.n.range = [1, 100]\n')
    return echo(f"prompts.templates={folder / 'few.toml'}", "sampling.temperature=0", *more)


def from_file(folder: Path, *more: str) -> config.Config:
    (folder / "own.jsonl").write_text("".join(f'{{"prompt": "Say {n}"}}\n' for n in range(100)))
    return echo(f"prompts.file={folder / 'own.jsonl'}", *more)


def echo(*more: str) -> config.Config:
    return config.load(None, ["teacher.backend=echo", "teacher.echo.tokens_per_s=1e9", "output.accepted=150", *more])


MORE_LINES = "every line of prompts.file is asked; start another run with more lines, with its own --out"


@pytest.mark.parametrize(
    ("make", "more", "advice"),
    [
        (greedy, [], "another run with wider slots"),
        (greedy, ["prompts.count=5000"], "another run with wider slots"),
        (greedy, ["prompts.count=50"], "run the same command again to go on, as far as"),
        (from_file, [], MORE_LINES),
        (from_file, ["prompts.count=5000"], MORE_LINES),
        (from_file, ["prompts.count=60", "sampling.samples=2"], "run the same command again if"),
        (from_file, ["sampling.consensus=majority", "sampling.samples=3", "prompts.count=101"], MORE_LINES),
    ],
)
def test_what_to_do_about_prompts_that_ran_out_can_be_done(
    tmp_path: Path, make: Any, more: list[str], advice: str, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = make(tmp_path, *more)
    assert generate(wanted, tmp_path / "run", gate=False)["ending"] == "prompts"
    said = capsys.readouterr().err
    assert advice in said[said.index("of 150 rows: the prompts ran out; ") :]
    assert ("raise prompts.count" in said) == ("same command" in advice)
    assert ("slots" in said) == (make is greedy)
    generate(wanted, tmp_path / "run", gate=False)
    again = capsys.readouterr().err
    assert again.endswith(said[said.index("only ") :])


def test_a_count_that_ended_a_run_can_be_raised(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generate(settings("output.accepted=290", "prompts.count=300"), tmp_path / "run")
    assert capsys.readouterr().err.endswith("raise prompts.count and run the same command again to go on\n")
    assert generate(settings("output.accepted=290", "prompts.count=3000"), tmp_path / "run")["ending"] == "accepted"
