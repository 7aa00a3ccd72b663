"""An evaluation from end to end on the echo backend: asked once, resumed, checked for overlap."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.backend import Backend, make_backend
from engine.config import Config, Sampling, Teacher, from_mapping
from engine.errors import ConfigError, DataError, MissingError
from engine.shards import Manifest, ShardWriter
from evals import answers
from evals.answers import Answer, read_answers
from evals.contestants import contestants, parameters, read_trained
from evals.evaluate import evaluate, read_summary
from evals.items import load_items

TEMPLATES = """
[[template]]
id = "json"
text = "Format as JSON.\\n\\nname={name} size={size}"
system = "You write JSON."
examples = [{ user = "Format as JSON.\\n\\nname=p0 size=0", assistant = '{"name":"p0","size":0}' }]
[template.slots]
name = { choices = ["a"] }
size = { range = [0, 9] }
"""


def question(number: int) -> str:
    return f"Format as JSON.\n\nname=p{number} size={number}"


def write_items(path: Path, numbers: range, **fields: Any) -> None:
    """Items of which the echo backend, which answers `Answer: <question>`, gets every second one right."""
    lines = [
        {
            "instruction": question(number),
            "reference": f"Answer: {question(number)}" if number % 2 else "no answer",
            "template": "json",
            **fields,
        }
        for number in numbers
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_run(folder: Path, questions: list[str]) -> None:
    writer = ShardWriter(folder, Manifest(), shard_bytes=1 << 20)
    rows = [
        {
            "instruction": text,
            "input": "",
            "output": "x",
            "template": "json",
            "id": str(i),
            "index": i,
            "finish_reason": "stop",
        }
        for i, text in enumerate(questions)
    ]
    writer.append("kept", [json.dumps(row).encode() + b"\n" for row in rows])
    writer.publish()
    (folder / "train").mkdir()
    (folder / "train/done.json").write_text(json.dumps({"untrained": "start", "student": "end", "adapter": ""}))


def settings(folder: Path, **changes: Any) -> Config:
    echo = {"tokens_per_s": 1e6, "refusals": 0.0, "overlong": 0.0, "empty": 0.0, "repeats": 1.0}
    return from_mapping(
        {
            "teacher": {"backend": "echo", "echo": echo},
            "prompts": {"templates": str(folder / "templates.toml")},
            "eval": {"items": str(folder / "items.jsonl"), "bootstrap": 500, **changes},
        },
        where="test",
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "templates.toml").write_text(TEMPLATES)
    write_items(tmp_path / "items.jsonl", range(60))
    write_run(tmp_path / "run", [question(number) for number in range(100, 200)])
    return tmp_path


def test_an_evaluation_gives_the_contract_and_the_files(folder: Path) -> None:
    result = evaluate(settings(folder), folder / "run")
    assert result["eval"] == {
        "teacher": 0.5,
        "student": 0.5,
        "untrained": 0.5,
        "retained": 1.0,
        "retained_low": 1.0,
        "retained_high": 1.0,
        "items": 60,
    }
    for name in ("teacher", "student", "untrained"):
        answers = read_answers(folder / f"run/eval/answers-{name}.jsonl")
        assert [answer.instruction for answer in answers] == [question(number) for number in range(60)]
        assert sum(answer.score for answer in answers) == 30
        assert all({"exact", "normalised"} <= answer.scores.keys() for answer in answers)
    summary = read_summary(folder / "run")
    assert summary is not None
    assert summary.figures.overall.outcomes is not None
    assert summary.figures.templates[0].template == "json"
    assert summary.verdict == "good"
    assert {"few-items", "untrained"} <= set(result["findings"])


@pytest.mark.parametrize(("few", "engine_args"), [(60, {"enforce_eager": True}), (59, {})])
def test_few_items_are_asked_of_an_engine_that_starts_soon(
    folder: Path, monkeypatch: pytest.MonkeyPatch, few: int, engine_args: dict[str, bool]
) -> None:
    asked = []

    def noted(teacher: Teacher, sampling: Sampling) -> Backend:
        asked.append(teacher.engine_args)
        return make_backend(teacher, sampling)

    monkeypatch.setattr(answers, "FEW", few)
    monkeypatch.setattr(answers, "make_backend", noted)
    evaluate(settings(folder), folder / "run")
    assert asked == [engine_args] * 3


def test_only_the_teacher_sees_the_examples(folder: Path) -> None:
    evaluate(settings(folder), folder / "run")
    teacher, student, untrained = (
        read_answers(folder / f"run/eval/answers-{name}.jsonl")[0].key for name in ("teacher", "student", "untrained")
    )
    assert len({teacher, student, untrained}) == 3
    (folder / "templates.toml").write_text(TEMPLATES.replace("You write JSON.", "You are a printer."))
    evaluate(settings(folder), folder / "run")
    assert read_answers(folder / "run/eval/answers-teacher.jsonl")[0].key != teacher
    assert read_answers(folder / "run/eval/answers-student.jsonl")[0].key == student


def test_a_repeated_evaluation_does_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = evaluate(settings(folder), folder / "run")
    before = {path: path.stat().st_mtime_ns for path in (folder / "run/eval").iterdir()}
    capsys.readouterr()
    assert evaluate(settings(folder), folder / "run") == first
    assert {path: path.stat().st_mtime_ns for path in (folder / "run/eval").iterdir()} == before
    assert "nothing to do" in capsys.readouterr().err


def test_a_killed_evaluation_asks_only_what_is_missing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate(settings(folder), folder / "run")
    run = folder / "run"
    (run / "eval/summary.json").unlink()
    (run / "eval/answers-untrained.jsonl").unlink()
    student = run / "eval/answers-student.jsonl"
    answers = read_answers(student)
    failed = msgspec.structs.replace(answers[7], output="", error="timed out")
    student.write_bytes(b"".join(msgspec.json.encode(one) + b"\n" for one in [*answers[:7], failed, *answers[8:]]))
    capsys.readouterr()
    evaluate(settings(folder), run)
    said = capsys.readouterr().err
    assert "asking the teacher" not in said
    assert "asking the student 1 of 60" in said, "an answer that failed is asked for again"
    assert "asking the untrained 60 of 60" in said
    assert read_answers(student) == answers


def test_another_metric_needs_no_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate(settings(folder), folder / "run")
    capsys.readouterr()
    result = evaluate(settings(folder, metrics={"json": "rouge_l"}), folder / "run")
    assert "asking" not in capsys.readouterr().err
    assert 0.5 < result["eval"]["teacher"] < 1


def test_a_student_trained_anew_is_asked_anew(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate(settings(folder), folder / "run")
    (folder / "run/train/done.json").write_text('{"untrained": "start", "student": "better", "adapter": ""}')
    capsys.readouterr()
    evaluate(settings(folder), folder / "run")
    said = capsys.readouterr().err
    assert "asking the student" in said
    assert "asking the untrained" not in said


def test_items_among_the_training_rows_are_counted_and_left_out(folder: Path) -> None:
    reworded = "Format as JSON.\n\nname: p3, size: 3"
    run = folder / "overlapping"
    write_run(run, [question(1).upper() + " ", reworded, question(500)])
    result = evaluate(settings(folder), run)
    summary = read_summary(run)
    assert summary is not None
    overlap = summary.overlap
    assert overlap is not None
    ids = {answer.instruction: answer.id for answer in read_answers(run / "eval/answers-teacher.jsonl")}
    assert overlap.same == [ids[question(1)]]
    assert overlap.slots == [ids[question(3)]]
    assert overlap.shown == [ids[question(0)]], "item 0 is the teacher's own example"
    assert result["overlap"] == 3
    assert summary.figures.clean is not None
    assert summary.figures.clean.items == 57
    assert "overlap" in result["findings"]


def test_a_repeated_item_counts_once(folder: Path) -> None:
    items = folder / "items.jsonl"
    items.write_text(items.read_text() * 2)
    held_out = load_items(settings(folder).eval)
    assert (len(held_out.items), held_out.repeated) == (60, 60)
    assert len(load_items(settings(folder, limit=7).eval).items) == 7


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("nonsense", "items.jsonl:61: not a held-out item"),
        ('{"instruction": "a"}', "items.jsonl:61: not a held-out item"),
        ('{"instruction": "a", "reference": "b", "metric": "vibes"}', "no metric 'vibes'"),
        ('{"instruction": "a", "reference": "b", "metric": "json"}', "items.jsonl:61: the reference is not JSON"),
    ],
)
def test_a_wrong_item_is_named(folder: Path, line: str, words: str) -> None:
    with (folder / "items.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(DataError, match=words):
        evaluate(settings(folder), folder / "run")


def test_a_reference_may_be_json_itself(folder: Path) -> None:
    (folder / "items.jsonl").write_text('{"instruction": "a", "reference": {"name": "a"}, "metric": "json"}\n')
    assert load_items(settings(folder).eval).items[0].reference == '{"name":"a"}'


def test_an_item_of_an_unknown_template_is_refused(folder: Path) -> None:
    write_items(folder / "items.jsonl", range(3), template="jsno")
    with pytest.raises(ConfigError, match="'jsno'"):
        evaluate(settings(folder), folder / "run")


def test_what_is_missing_is_named(folder: Path) -> None:
    with pytest.raises(MissingError, match=r"eval\.items is empty"):
        evaluate(settings(folder, items=""), folder / "run")
    with pytest.raises(MissingError, match="potstill train"):
        evaluate(settings(folder), folder / "elsewhere")
    (folder / "run/train/done.json").write_text('{"untrained": "a", "student": "a", "adapter": "student"}')
    with pytest.raises(MissingError, match="run/student is not there"):
        evaluate(settings(folder), folder / "run")
    (folder / "run/train/done.json").write_text("{")
    with pytest.raises(DataError, match=r"done\.json: cannot be read"):
        read_trained(folder / "run")


def model_folder(path: Path, weight: bytes = b"\0" * 24) -> Path:
    header = json.dumps({"__metadata__": {}, "w": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}).encode()
    path.mkdir(parents=True)
    (path / "config.json").write_text("{}")
    (path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + weight)
    return path


def test_students_take_the_teachers_engine_and_their_own_weights(folder: Path) -> None:
    run = folder / "run"
    teacher = model_folder(folder / "teacher")
    start, adapter = model_folder(run / "train/start"), run / "train/adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    (run / "train/done.json").write_text(
        json.dumps({"untrained": "train/start", "student": "train/start", "adapter": "train/adapter"})
    )
    chosen = msgspec.structs.replace(
        settings(folder).teacher, backend="vllm", model=str(teacher), quantization="fp8", dtype="bfloat16"
    )
    big, student, untrained = contestants(chosen, run)
    assert big.teacher == chosen
    assert student.teacher.model == untrained.teacher.model == str(start)
    assert (student.teacher.adapter, untrained.teacher.adapter) == (str(adapter), "")
    assert (student.teacher.dtype, student.teacher.quantization) == ("bfloat16", None)
    assert parameters(start) == student.parameters == 6
    assert student.identity != untrained.identity
    (start / "model.safetensors").write_bytes((start / "model.safetensors").read_bytes()[:-1] + b"\1")
    assert contestants(chosen, run)[2].identity != untrained.identity, "the identity follows the weights"
    remote = msgspec.structs.replace(chosen, backend="openai", model="big")
    assert [who.teacher.backend for who in contestants(remote, run)] == ["openai", "vllm", "vllm"]
    (adapter / "adapter_config.json").unlink()
    with pytest.raises(MissingError, match="not a LoRA adapter"):
        contestants(chosen, run)


def test_an_answer_that_is_no_utf8_can_be_written(folder: Path) -> None:
    """Answers are read back exactly as they were written."""
    answer = Answer(
        id="1", metric="exact", instruction="a\u2028b", reference="", output="\x85\r\n", scores={"exact": 0.0}
    )
    path = folder / "answers.jsonl"
    path.write_bytes(msgspec.json.encode(answer) + b"\n")
    assert read_answers(path) == [answer]
