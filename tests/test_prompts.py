import codecs
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import slots
from engine.config import Prompts
from engine.errors import ConfigError, DataError, MissingError, TemplateError
from engine.prompts import Permutation, open_source
from engine.templates import disjoint, load_templates

TWO = """
[[template]]
id = "a"
text = "Add.\\n\\n{x} and {y}"
weight = 3
system = "You add."
examples = [{ user = "Add.\\n\\n1 and 1", assistant = "2" }]
[template.slots.x]
range = [1, 40]
[template.slots.y]
range = [0, 1]
step = 0.25

[[template]]
id = "b"
text = "Say {word} {{twice}}"
[template.slots.word]
choices = ["yes", "no"]
"""


def templates(folder: Path, text: str = TWO) -> str:
    path = folder / "t.toml"
    path.write_text(text)
    return str(path)


def source(path: str, *, count: int | None = None, seed: int = 1, greedy: bool = False, endless: bool = False):
    return open_source(Prompts(templates=path, count=count, seed=seed), run_seed=7, greedy=greedy, endless=endless)


@given(st.integers(1, 5000), st.integers(0, 2**64 - 1))
def test_permutation_visits_everything_once(size: int, seed: int) -> None:
    order = Permutation(size, seed)
    assert sorted(order[i] for i in range(size)) == list(range(size))


def test_permutation_of_a_huge_space_takes_no_memory() -> None:
    order = Permutation(10**15, 3)
    seen = {order[i] for i in range(2000)}
    assert len(seen) == 2000
    assert max(seen) > 10**14


def test_same_prompts_and_ids_every_time(tmp_path: Path) -> None:
    path = templates(tmp_path)
    first = list(source(path, count=200).prompts())
    assert first == list(source(path, count=200).prompts())
    assert [p.instruction for p in first] != [p.instruction for p in source(path, count=200, seed=2).prompts()]
    assert len({p.id for p in first}) == 200


def test_start_goes_on_where_it_would_have_been(tmp_path: Path) -> None:
    path = templates(tmp_path)
    everything = list(source(path, count=300).prompts())
    for start in (0, 1, 157, 299, 300):
        assert list(source(path, count=300).prompts(start)) == everything[start:]


def test_no_combination_repeats_while_some_are_left(tmp_path: Path) -> None:
    prompts = list(islice(source(templates(tmp_path), count=200).prompts(), 200))
    a = [p.instruction for p in prompts if p.template == "a"]
    assert 130 < len(a) < 170, "weights 3 to 1"
    assert len(set(a)) == len(a)
    b = Counter(p.instruction for p in prompts if p.template == "b")
    assert set(b) == {"Say yes {twice}", "Say no {twice}"}
    assert abs(b["Say yes {twice}"] - b["Say no {twice}"]) <= 1, "rounds are whole"


def test_a_greedy_teacher_ends_with_the_combinations(tmp_path: Path) -> None:
    prompts = list(source(templates(tmp_path), greedy=True, count=10_000).prompts())
    assert Counter(p.template for p in prompts) == {"a": 200, "b": 2}


def test_teacher_sees_the_prefix_and_the_student_does_not(tmp_path: Path) -> None:
    prompt = next(p for p in source(templates(tmp_path)).prompts() if p.template == "a")
    assert [turn["role"] for turn in prompt.messages()] == ["system", "user", "assistant", "user"]
    assert prompt.messages()[-1]["content"] == prompt.question == prompt.instruction
    assert "You add" not in prompt.instruction


@pytest.mark.parametrize(
    "text",
    ["{value.__class__}", "{value[0]}", "{value!r}", "{value:>10}", "{0}", "{}", "{value", "{val ue}"],
)
def test_slots_are_bare_names(tmp_path: Path, text: str) -> None:
    path = templates(
        tmp_path, f'[[template]]\nid = "evil"\ntext = "Say {text}"\n[template.slots.value]\nrange = [1, 2]\n'
    )
    with pytest.raises(TemplateError, match="template evil"):
        load_templates(Path(path))


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("", "slot {v} has no source"),
        ("[template.slots.v]\n", "needs one of range, choices, lines, jsonl"),
        ("[template.slots.v]\nrange = [3, 1]\n", "range = [low, high]"),
        ("[template.slots.v]\nrange = [0, inf]\n", "range = [low, high]"),
        ("[template.slots.v]\nrange = [nan, 1]\n", "range = [low, high]"),
        ("[template.slots.v]\nrange = [0, 1]\nstep = nan\n", "range = [low, high]"),
        ("weight = inf\n", "template[0].weight"),
        ("[template.slots.v]\nchoices = []\n", "has no values"),
        ("[template.slots.v]\nrange = [1, 2]\n[template.slots.w]\nrange = [1, 2]\n", "slot w is described but not in"),
        ("[template.slots.v]\nrnage = [1, 2]\n", "rnage"),
    ],
)
def test_template_mistakes_are_named(tmp_path: Path, body: str, says: str) -> None:
    path = templates(tmp_path, f'[[template]]\nid = "t"\ntext = "Say {{v}}"\n{body}')
    with pytest.raises(TemplateError) as caught:
        load_templates(Path(path))
    assert says in str(caught.value)


def test_a_template_file_is_a_file_with_templates(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"prompts.templates: .* cannot be read \(Is a directory\)"):
        load_templates(tmp_path)
    with pytest.raises(TemplateError, match="length >= 1"):
        load_templates(Path(templates(tmp_path, "template = []")))


def test_slots_of_one_jsonl_come_from_one_row(tmp_path: Path) -> None:
    (tmp_path / "people.jsonl").write_text('{"name": "Ada", "age": 36}\n\n{"name": "Alan", "age": 41}\n')
    (tmp_path / "words.txt").write_text("\ufeffalpha\r\nbeta\n")
    text = (
        '[[template]]\nid = "p"\ntext = "{word} {who} {age}"\n[template.slots.who]\njsonl = "people.jsonl"\n'
        'column = "name"\n[template.slots.age]\njsonl = "people.jsonl"\n[template.slots.word]\nlines = "words.txt"\n'
    )
    prompts = list(source(templates(tmp_path, text), greedy=True).prompts())
    expected = {"alpha Ada 36", "alpha Alan 41", "beta Ada 36", "beta Alan 41"}
    assert {p.instruction for p in prompts} == expected


def test_unreadable_lines_are_named_with_their_number(tmp_path: Path) -> None:
    (tmp_path / "people.jsonl").write_text('{"name": "Ada"}\n{"name": \n')
    text = '[[template]]\nid = "p"\ntext = "{name}"\n[template.slots.name]\njsonl = "people.jsonl"\n'
    with pytest.raises(DataError, match=r"people\.jsonl:2: not a JSON object"):
        load_templates(Path(templates(tmp_path, text)))


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"none\.toml is not there"):
        load_templates(tmp_path / "none.toml")
    text = '[[template]]\nid = "p"\ntext = "{name}"\n[template.slots.name]\nlines = "none.txt"\n'
    with pytest.raises(MissingError, match=r"none\.txt is not there"):
        load_templates(Path(templates(tmp_path, text)))


def test_disjoint_looks_at_literal_beginnings(tmp_path: Path) -> None:
    assert disjoint(load_templates(Path(templates(tmp_path))))
    slots = "[template.slots.v]\nrange = [1, 2]\n"
    same = f'[[template]]\nid = "a"\ntext = "Say {{v}}"\n{slots}[[template]]\nid = "b"\ntext = "Say it {{v}}"\n{slots}'
    assert not disjoint(load_templates(Path(templates(tmp_path, same))))


def test_values_of_a_large_file_are_those_of_a_held_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "t.jsonl").write_text("".join(f'{{"a": "ä{n}", "b": {n / 2}, "c": []}}\n\n' for n in range(300)))
    (tmp_path / "l.txt").write_bytes(codecs.BOM_UTF8 + "".join(f"Zeile {n} \r\n\n" for n in range(250)).encode())
    path = templates(
        tmp_path,
        """
[[template]]
id = "a"
text = "Say {a} and {b} and {line}"
slots.a.jsonl = "t.jsonl"
slots.b.jsonl = "t.jsonl"
slots.line.lines = "l.txt"
""",
    )
    held = list(source(path, count=500).prompts())
    assert len({prompt.instruction for prompt in held}) == 500
    monkeypatch.setattr(slots, "HELD_BYTES", 1000)
    assert list(source(path, count=500).prompts()) == held
    (tmp_path / "t.jsonl").write_text('{"a": "x", "b": "y"}\n' * 200 + '{"a": "x"}\n')
    with pytest.raises(DataError, match=r"t\.jsonl:201: no text or number under 'b'"):
        source(path)


def test_one_source_is_needed() -> None:
    for settings in (Prompts(), Prompts(file="a", templates="b")):
        with pytest.raises(ConfigError, match=r"prompts\.templates"):
            open_source(settings, run_seed=1, greedy=True)
