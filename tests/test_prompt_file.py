"""A user's own prompts: what a line may say, what becomes of it, and what is refused."""

import json
import tracemalloc
from itertools import islice
from pathlib import Path

import orjson
import pytest
from echo_runs import lines

from engine.config import Prompts, Sampling, Teacher, load
from engine.errors import ConfigError, DataError
from engine.generate import generate
from engine.openai_wire import Request
from engine.prompts import open_source
from engine.replay import replay
from engine.shards import read_manifest, write_manifest
from engine.vllm_settings import answer_tokens


def prompt_file(folder: Path, *records: object) -> Prompts:
    path = folder / "p.jsonl"
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records))
    return Prompts(file=str(path))


def test_own_prompts(tmp_path: Path) -> None:
    settings = prompt_file(
        tmp_path,
        {"instruction": "Translate.", "input": "chat", "template": "fr"},
        {"prompt": "Say hi"},
        {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]},
        {"prompt": "Say hi"},
    )
    prompts = list(open_source(settings, run_seed=1, greedy=True).prompts())
    assert [p.question for p in prompts] == ["Translate.\n\nchat", "Say hi", "Why?", "Say hi"]
    assert prompts[2].prefix[0].content == "Be brief."
    assert prompts[0].template == "fr"
    assert len({p.id for p in prompts}) == 4


FILE = (
    b'\xef\xbb\xbf{"instruction": "Translate.", "input": "chat", "template": "fr"}\r\n'
    b"\n"
    b'{"prompt": "Say hi"}\n'
    b"  \t\r\n"
    b'{"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]}\n'
    b'{"prompt": "Sagt \xc3\xa4h", "choice": ["yes", "no"]}'
)


def test_ids_and_seeds_of_a_file_are_what_they_always_were(tmp_path: Path) -> None:
    """Those of an older run must come out, or it could not go on."""
    path = tmp_path / "p.jsonl"
    path.write_bytes(FILE)
    once = open_source(Prompts(file=str(path)), run_seed=7, greedy=False)
    assert once.fingerprint == "4fae043cba65611d9b38f37e6d635c07"
    assert (once.count, once.plain, once.names, once.disjoint) == (4, False, {"fr", "default"}, True)
    assert [(p.index, p.id, p.seed, p.question) for p in once.prompts()] == [
        (0, "67106d49dd699f1f247d2ce90e8e1400", 3227628724633769258, "Translate.\n\nchat"),
        (1, "2d26de6c1f8867b072b4b90cea8ad2d4", 1815705628874158612, "Say hi"),
        (2, "47a6e701608c083d308a6279978bb659", 3986325775661154661, "Why?"),
        (3, "ee798bf6c76b46c115226a9a4c3b190b", 2395644454754470628, "Sagt äh"),
    ]
    twice = open_source(Prompts(file=str(path)), run_seed=7, greedy=False, samples=2)
    assert [(p.index, p.id, p.seed) for p in islice(twice.prompts(3), 2)] == [
        (3, "e281141dcf01a18d2249c6c6a2796aac", 2882707251924834252),
        (4, "0743d146b6071476f1808c59169f8708", 3986325775661154661),
    ]


def test_a_line_bounds_its_own_answer(tmp_path: Path) -> None:
    settings = prompt_file(
        tmp_path, {"prompt": "a", "max_tokens": 3}, {"prompt": "b"}, {"prompt": "c", "max_tokens": 9}
    )
    source = open_source(settings, run_seed=1, greedy=False, samples=2)
    prompts = list(source.prompts())
    assert [p.max_tokens for p in prompts] == [3, 3, None, None, 9, 9]
    sampling = Sampling(max_tokens=5)
    assert [answer_tokens(sampling, p) for p in prompts[::2]] == [3, 5, 9]
    bodies = [orjson.loads(Request(Teacher(model="m"), sampling, stream=False).body(p)) for p in prompts[::2]]
    assert [body["max_tokens"] for body in bodies] == [3, 5, 9]


def test_a_run_keeps_to_the_bounds_of_its_lines_and_refuses_others_afterwards(tmp_path: Path) -> None:
    overrides = ["teacher.backend=echo", "teacher.replicas=2", "sampling.max_tokens=6", "filter.min_chars=1"]
    overrides += ["teacher.echo.empty=0", f"prompts.file={tmp_path / 'p.jsonl'}", "filter.cap_per_template=0"]
    records = [{"prompt": f"Say {number} at length."} for number in range(30)]
    for number, record in enumerate(records[:20]):
        record["max_tokens"] = 1 + number % 2 * 3
    prompt_file(tmp_path, *records)
    generate(load(None, overrides), tmp_path / "run")
    rows = sorted(map(orjson.loads, lines(tmp_path / "run")), key=lambda row: row["index"])
    assert len(rows) > 20
    assert {(row["index"], row["output_tokens"], len(row["output"])) for row in rows} <= {
        (number, bound, 4 * bound) for number, bound in enumerate([record.get("max_tokens", 6) for record in records])
    }
    records[0]["max_tokens"] = 2
    prompt_file(tmp_path, *records)
    with pytest.raises(ConfigError, match=r"prompts\.content"):
        generate(load(None, overrides), tmp_path / "run")


def test_a_file_says_whether_a_question_is_under_two_templates(tmp_path: Path) -> None:
    def told(*records: tuple[str, str]) -> bool:
        lines = [{"prompt": text, "template": template} for text, template in records]
        return open_source(prompt_file(tmp_path, *lines), run_seed=1, greedy=True).disjoint

    assert told(("a", "x"), ("a", "x"), ("b", "x"))
    assert told(("a", "x"), ("b", "y"), ("a", "x"), *((str(number), str(number % 3)) for number in range(200)))
    assert not told(("a", "x"), ("b", "y"), *((str(number), "x") for number in range(200)), (" a ", "y"))


def test_memory_does_not_grow_with_a_file(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text("".join(f'{{"prompt": "{number} {"x" * 280}"}}\n' for number in range(30_000)))
    tracemalloc.start()
    prompts = open_source(Prompts(file=str(path)), run_seed=1, greedy=True).prompts(20_000)
    assert next(prompts).instruction.startswith("20000 ")
    held, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 0.5e6, "9 MB of lines"
    assert most < 3e6, "a buffer, and 12 bytes a line while they are checked"


def test_a_schema_file_is_read_once(tmp_path: Path) -> None:
    schema = tmp_path / "s.json"
    schema.write_text('{"type": "object"}')
    settings = prompt_file(tmp_path, *({"prompt": str(number), "json_schema": "s.json"} for number in range(3)))
    source = open_source(settings, run_seed=1, greedy=True)
    schema.unlink()
    assert [p.constraint.json_schema for p in source.prompts() if p.constraint] == ['{"type":"object"}'] * 3


BAD_LINES = {
    '{"instruction": 3}': "instruction must be a text",
    "{": "not a JSON object",
    "[1]": "not a JSON object",
    '{"messages": [{"role": "user"}]}': "messages must be one user turn of text",
    '{"messages": "hi"}': "messages must be one user turn of text",
    '{"prompt": null}': "nothing is asked; give a text under instruction or prompt, or messages",
    '{"input": "3"}': "nothing is asked; give a text",
    '{"prompt": "a", "input": 3}': "input must be a text",
    '{"prompt": "a", "template": ["t"]}': "template must be a text",
    '{"prompt": "a", "max_tokens": 0}': "max_tokens must be a whole number above 0",
    '{"prompt": "a", "max_tokens": 2.0}': "max_tokens must be a whole number above 0",
    '{"prompt": "a", "max_tokens": true}': "max_tokens must be a whole number above 0",
    '{"prompt": "a", "max_tokens": "12"}': "max_tokens must be a whole number above 0",
    '{"prompt": "a", "messages": [{"role": "user", "content": "b"}]}': "prompt and messages each say what is",
    '{"prompt": "a", "instruction": "a"}': "instruction and prompt each say what is asked; keep one of them",
}


def test_a_schema_file_that_changed_is_refused_by_name(tmp_path: Path) -> None:
    schema = tmp_path / "form" / "s.json"
    schema.parent.mkdir()
    schema.write_text('{"type": "object"}')
    prompt_file(tmp_path, *({"prompt": str(number), "json_schema": "form/s.json"} for number in range(3)))
    samples = ("sampling.samples=2", "filter.min_chars=0")
    settings = load(None, ["teacher.backend=echo", f"prompts.file={tmp_path / 'p.jsonl'}", *samples])
    generate(settings, tmp_path / "run")
    schema.write_text('{ "type": "object" }\n')
    assert generate(settings, tmp_path / "run")["asked"] == 6, "it says the same"
    schema.write_text('{"type": "array"}')
    for go_on in (lambda: generate(settings, tmp_path / "run"), lambda: replay(tmp_path / "run", "0")):
        with pytest.raises(
            ConfigError, match=r"begun with prompts\.json_schema\[form/s\.json\] = '\w{32}', not '\w{32}'"
        ):
            go_on()
    manifest = read_manifest(tmp_path / "run")
    del manifest.fingerprint["prompts.json_schema[form/s.json]"]
    write_manifest(tmp_path / "run", manifest)
    assert generate(settings, tmp_path / "run")["asked"] == 6, "a run of a version that did not look goes on"


@pytest.mark.parametrize("bad", BAD_LINES)
def test_a_bad_prompt_is_named_before_anything_is_asked(tmp_path: Path, bad: str) -> None:
    with pytest.raises(DataError, match=rf"p\.jsonl:2: {BAD_LINES[bad]}"):
        open_source(prompt_file(tmp_path, {"prompt": "fine"}, bad), run_seed=1, greedy=True)


def test_keys_that_are_not_read_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    open_source(prompt_file(tmp_path, {"prompt": "a", "messages": None, "input": None}), run_seed=1, greedy=True)
    assert capsys.readouterr().err == ""
    lines = [{"prompt": "a", "promt": 1}, {"prompt": "b", "promt": 2, "id": 3}]
    prompts = list(open_source(prompt_file(tmp_path, *lines), run_seed=1, greedy=True).prompts())
    assert "p.jsonl: keys that are not read: 'promt', 'id' (" in capsys.readouterr().err
    assert [p.question for p in prompts] == ["a", "b"]
    open_source(prompt_file(tmp_path, {"prompt": "a", **{f"k{n}": n for n in range(99)}}), run_seed=1, greedy=True)
    assert capsys.readouterr().err.count("'k") == 8
