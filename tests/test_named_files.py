"""Files that the filter's settings name: a changed one is refused as a changed setting is, whatever its path."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from echo_runs import lines, settings

from engine import phrases
from engine.config import Config, load
from engine.errors import ConfigError, MissingError
from engine.filter_run import filter_rows
from engine.generate import generate
from engine.named_files import digests, files_of
from engine.replay import replay
from engine.rules import make_rule
from engine.shards import read_manifest, write_manifest
from engine.verify import verify

ITEM = '{"instruction": "Which file of these is held out, and which is not?"}\n'
TOKENIZER = '{"version": "1.0", "model": {"type": "WordLevel", "vocab": {"a": %d, "?": 2}, "unk_token": "?"}}'
TOKENS = "{use='tokens', tokenizer='FILE'}"
NEEDS = {"schema": "jsonschema", "tokenizer": "tokenizers"}
KINDS = {
    "phrases": ("filter.phrase_files", 'filter.phrase_files=["FILE"]', "i refuse\n", "# why\n\ni refuse\n", "i must\n"),
    "leak": ("filter.rules.leak.files", "{use='leak', files=['FILE']}", ITEM, None, ITEM.replace("not", "why")),
    "schema": ("filter.rules.format.schema", "{use='format', schema='FILE'}", '{"a":1}', '{ "a": 1 }\n', '{"a":2}'),
    "tokenizer": ("filter.rules.tokens.tokenizer", TOKENS, TOKENIZER % 0, None, TOKENIZER % 1),
}


def chosen(setting: str, file: Path) -> str:
    setting = setting.replace("FILE", str(file))
    return setting if setting.startswith("filter.") else f"filter.rules=[{setting}]"


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_file_says_counts(kind: str, tmp_path: Path) -> None:
    pytest.importorskip(NEEDS.get(kind, "engine"))
    key, setting, text, same, other = KINDS[kind]
    file = tmp_path / "tokenizer.json"
    rules = load(None, [chosen(setting, file)]).filter

    def digest(text: str) -> str:
        file.write_text(text)
        (found,) = digests(rules, "filter").items()
        assert found[0] == f"{key}[{file}]"
        return found[1]

    assert re.fullmatch(r"[0-9a-f]{32}", digest(text))
    assert digest(same or text) == digest(text) != digest(other)
    file.unlink()
    sentences = set()
    for read in (lambda: digests(rules, "filter"), lambda: [*map(make_rule, rules.rules), phrases.PhraseGuard(rules)]):
        with pytest.raises(MissingError) as error:
            read()
        sentences.add(str(error.value))
    assert len(sentences) == 1, "it is told as the rule tells it"


def test_the_folders_of_models_and_settings_without_a_file(tmp_path: Path) -> None:
    pytest.importorskip("numpy")
    for name, text in {"config.json": "{}", "tokenizer.json": "{}", "a.safetensors": "1", "README.md": "x"}.items():
        (tmp_path / name).write_text(text)
    rules = load(None, [chosen("{use='semantic', model='FILE'}", tmp_path)]).filter
    before = digests(rules, "filter")
    (tmp_path / "README.md").write_text("y")
    assert digests(rules, "filter") == before
    (tmp_path / "a.safetensors").write_text("2")
    assert digests(rules, "filter") != before
    (tmp_path / "a.safetensors").write_text("1")
    assert digests(rules, "filter") == before
    assert digests(load(None, ["filter.rules=[{use='format', json=true}, {use='blank'}]"]).filter, "filter") == {}


def forget(folder: Path) -> None:
    """Make a run one of a version that recorded no hashes."""
    manifest = read_manifest(folder)
    assert files_of(manifest.fingerprint)
    for key in files_of(manifest.fingerprint):
        del manifest.fingerprint[key]
    write_manifest(folder, manifest)


def refused(key: str, folder: Path) -> Any:
    said = rf"{re.escape(str(folder))} was begun with {re.escape(key)} = '\w{{32}}', not '\w{{32}}'; put it back, or "
    return pytest.raises(ConfigError, match=said)


def no_longer(key: str) -> Any:
    return pytest.raises(ConfigError, match=rf"{re.escape(key)} is no longer the file that .* cannot be judged again")


@pytest.mark.parametrize("kind", ["phrases", "leak"])
def test_a_run_goes_on_with_the_same_file_only(kind: str, tmp_path: Path) -> None:
    file, run = tmp_path / "file", tmp_path / "run"
    text = "no such phrase\n" if kind == "phrases" else ITEM
    rejects_all = "answer\n" if kind == "phrases" else '{"instruction": "Format as JSON.\\n\\nname="}\n'
    setting = chosen("{use='leak', words=2, files=['FILE']}" if kind == "leak" else KINDS[kind][1], file)
    file.write_text(text)

    def go_on(count: int, folder: Path = run) -> dict[str, Any]:
        return generate(settings(f"prompts.count={count}", setting), folder, gate=False)

    go_on(100)
    file.write_text(rejects_all)
    key = f"{KINDS[kind][0]}[{file}]"
    for again in (lambda: go_on(200), lambda: replay(run, "0")):
        with refused(key, run):
            again()
    with no_longer(key):
        verify(run)
    file.write_text(text)
    go_on(200)
    go_on(200, tmp_path / "whole")
    assert lines(run) == lines(tmp_path / "whole") != []
    assert verify(run)["asked"] == 200
    forget(run)
    assert go_on(300)["asked"] == 300
    assert verify(run)["asked"] == 300


def test_a_filtering_goes_on_with_the_same_file_only(tmp_path: Path) -> None:
    source, file, out = tmp_path / "rows.jsonl", tmp_path / "list.txt", tmp_path / "out"
    source.write_text("".join(json.dumps({"instruction": f"say {n}", "output": f"word {n}"}) + "\n" for n in range(50)))
    file.write_text("no such phrase\n")
    rules = load(None, [f'filter.phrase_files=["{file}"]'])

    def go_on() -> dict[str, Any]:
        return filter_rows([str(source)], out, rules)

    assert go_on()["kept"] == 50
    file.write_text("word\n")
    key = f"filter.phrase_files[{file}]"
    with refused(key, out):
        go_on()
    with no_longer(key):
        verify(out)
    file.write_text("no such phrase\n")
    assert go_on()["kept"] == verify(out)["kept"] == 50
    forget(out)
    assert go_on()["kept"] == verify(out)["kept"] == 50


def test_a_shipped_list_that_another_version_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = tmp_path / "lists"
    shipped.mkdir()
    monkeypatch.setattr(phrases, "SHIPPED", shipped)
    (shipped / "some.txt").write_text("i refuse\n")
    rules = settings("prompts.count=50", 'filter.phrase_files=["phrases:some"]')
    generate(rules, tmp_path / "run", gate=False)
    (shipped / "some.txt").write_text("# Reviewed.\ni refuse\n")
    generate(rules, tmp_path / "run", gate=False)
    (shipped / "some.txt").write_text("i refuse\nanswer\n")
    with refused("filter.phrase_files[phrases:some]", tmp_path / "run"):
        generate(rules, tmp_path / "run", gate=False)


def test_a_list_that_is_not_there_begins_no_run(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="no list"):
        generate(settings(f'filter.phrase_files=["{tmp_path / "none.txt"}"]'), tmp_path / "run")
    assert not (tmp_path / "run" / "manifest.json").exists()
    assert digests(Config().filter, "filter") == {}
