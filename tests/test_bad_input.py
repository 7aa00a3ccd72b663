"""What a person may get wrong, or find broken: one sentence that says what, where and what to do, and exit 1 or 2.

Everything goes through the front door, in this process, so that a case costs milliseconds.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import xxhash
from echo_runs import ECHO, ROOT

from engine.config import load
from engine.shards import replace_file
from potstill import main

Say = Callable[..., tuple[int, str]]
FEW = ("--set", "prompts.count=120", "--set", "output.shard_bytes=4096", "--set", "teacher.echo.tokens_per_s=1e9")
BOM = b"\xef\xbb\xbf"


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Say:
    """Run the command line; return the exit code and the last line on stderr, which must be the only complaint."""

    def run(*arguments: object) -> tuple[int, str]:
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as end:  # argparse
            code = int(str(end.code))
        lines = capsys.readouterr().err.splitlines()
        complaints = [line for line in lines if line.startswith("potstill")]
        assert len(complaints) == (1 if code else 0), lines
        return code, lines[-1] if lines else ""

    return run


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small finished run, which tests copy."""
    folder = tmp_path_factory.mktemp("few") / "run"
    assert main(["generate", str(ECHO), "--out", str(folder), *FEW]) == 0
    return folder


@pytest.fixture
def run(few: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(few, tmp_path / "run"))


CONFIGURATIONS = {
    "[techer]\n": "unknown key techer; did you mean teacher?",
    "[teacher]\nmodle = 'x'\n": "unknown key teacher.modle; did you mean model?",
    "[teacher.echo]\ntokens = 3\n": "unknown key teacher.echo.tokens; did you mean tokens_per_s?",
    "[[filter.rules]]\nuse = 'semantc'\n": "filter.rules[0].use = 'semantc' is not known; did you mean semantic?",
    "[[filter.rules]]\nuse = 'echo'\nmax_shar = 3\n": "unknown key filter.rules[0].max_shar; did you mean max_share?",
    "[teacher]\nbackend = 'vlm'\n": "teacher.backend = 'vlm' is not known; did you mean vllm?",
    "[teacher]\nreplicas = 'many'\n": "teacher.replicas = 'many' is not known; take one of auto",
    "[filter]\ndedup_on = ['title']\n": "filter.dedup_on[0] = 'title' is not known; take one of instruction, ",
    "[eval]\nmetrics = { json = 'jsn' }\n": "= 'jsn' is not known; did you mean json?",
    "[sampling]\ntemperature = inf\n": "sampling.temperature: Expected `float` <= 100.0",
    "[teacher]\nreplicas = 100_000\n": "teacher.replicas: Expected `int` <= 1024",
    "[filter]\ndedup_on = []\n": "filter.dedup_on is empty, so that every row would be a duplicate",
    "[filter]\nmin_chars = 900\n": "filter.min_chars is above filter.max_chars",
    "[prompts]\ntemplates = 'a\\u0000b'\n".replace("'", '"'): "prompts.templates: 'a\\x00b' is no path",
    "{": "not valid TOML",
}


@pytest.mark.parametrize("text", CONFIGURATIONS)
def test_a_configuration(text: str, say: Say, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(text)
    rows = tmp_path / "rows.jsonl"
    rows.write_text("{}\n")
    code, said = say("filter", rows, "--out", tmp_path / "out", "--config", tmp_path / "config.toml")
    assert code == 2
    assert CONFIGURATIONS[text] in said


TEMPLATE = '[[template]]\nid = "t"\ntext = "Double {n}."\n[template.slots.n]\nrange = [1, 40]\n'
TEMPLATES = {
    "": "Object missing required field `template`",
    TEMPLATE.replace("template]]", "tempalte]]", 1).replace("[template.slots.n]\nrange = [1, 40]\n", ""): (
        "unknown key tempalte; did you mean template?"
    ),
    TEMPLATE.replace("text", "txt"): "unknown key template[0].txt; did you mean text?",
    TEMPLATE.replace("range", "rnge"): "unknown key template[0].slots[...].rnge; did you mean range?",
}


@pytest.mark.parametrize("text", TEMPLATES)
def test_a_template_file(text: str, say: Say, tmp_path: Path) -> None:
    (tmp_path / "t.toml").write_text(text)
    code, said = say("generate", ECHO, "--out", tmp_path / "out", "--set", f"prompts.templates={tmp_path / 't.toml'}")
    assert code == 2
    assert TEMPLATES[text] in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("spoil", [lambda text: BOM + text, lambda text: text.replace(b"\n", b"\r\n")])
def test_what_editors_on_windows_write_is_read(
    spoil: Callable[[bytes], bytes], say: Say, few: Path, tmp_path: Path
) -> None:
    (tmp_path / "templates").mkdir()
    for name in ("echo.toml", "templates/echo.toml"):
        (tmp_path / name).write_bytes(spoil((ROOT / "data" / name).read_bytes()))
    assert say("generate", tmp_path / "echo.toml", "--out", tmp_path / "run", *FEW)[0] == 0
    assert (tmp_path / "run/kept-00000.jsonl").read_bytes() == (few / "kept-00000.jsonl").read_bytes()


COMMAND_LINES = {
    ("generate", ECHO, "--out", ""): "argument --out: it is empty; give a path",
    ("generate", ECHO, "--out", "run", "--metrics-port", "99999"): "'99999' is no whole number from 0 to 65535",
    ("verify", ""): "argument RUN: it is empty; give a path",
    ("verify", "b\udcff"): "'b\\udcff' is not UTF-8",
    ("filter", ECHO, "--out", "x", "--workers", "-1"): "'-1' is no whole number from 0 to 256",
    ("filter", ECHO, "--out", "x", "--output", "instruction"): "--instruction and --output are both 'instruction'",
    ("filter", "loop", "--out", "x"): "loop",
    ("filter", "x" * 300, "--out", "x"): "File name too long",
    ("train", ECHO, "--data", "x", "--processes", "0"): "'0' is no whole number from 1 on",
    ("export-model", "x", "--to", "merged", "--items", "0"): "'0' is no whole number from 1 on",
    ("serve", "x", "--port", "0"): "'0' is no whole number from 1 to 65535",
    ("serve", "x", "--vllm-args", '"'): "no closing quotation",
    ("serve", "x", "--gpu-memory-utilization", "7"): "'7' is no share above 0 and up to 1",
    ("bench", "loop", "--prompts", "many"): "'many' is no whole number from 1 on",
    ("bench", "loop", "--config", "none.toml"): "none.toml: no such configuration file",
    ("bench", "bulk", "--config", ECHO, "--out", "x", "--kills", "2"): "shares between 0 and 1 are needed",
    ("bench", "engine", "--config", "none.toml"): "none.toml: no such configuration file",
    ("bench", "filter", "--rows", "0"): "'0' is no whole number from 1 on",
}


@pytest.mark.parametrize("arguments", COMMAND_LINES)
def test_a_command_line(
    arguments: tuple[object, ...], say: Say, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    code, said = say(*arguments)
    assert code in (1, 2)
    assert COMMAND_LINES[arguments] in said


def forge(run: Path, line: bytes) -> None:
    """Put a line into a shard, and its checksum into the manifest."""
    shard = run / "kept-00000.jsonl"
    lines = shard.read_bytes().splitlines(keepends=True)
    lines[2] = line
    data = b"".join(lines)
    shard.write_bytes(data)
    manifest = json.loads((run / "manifest.json").read_bytes())
    entry = next(one for one in manifest["shards"] if one["file"] == shard.name)
    entry |= {"bytes": len(data), "xxh3": xxhash.xxh3_128_hexdigest(data)}
    replace_file(run / "manifest.json", json.dumps(manifest).encode())


READERS: dict[str, list[str]] = {
    "verify": [],
    "explain": [],
    "replay": ["100000"],
    "export": ["--to", "openai"],
    "report": [],
    "filter": ["--out", "filtered"],
    "generate": ["--out", "run", *FEW],
}


@pytest.mark.parametrize("line", [b"hello\n", b'{"instruction":3}\n', b'{"instruction":"\xfc"}\n'])
@pytest.mark.parametrize("command", READERS)
def test_a_line_that_is_no_row(
    command: str, line: bytes, say: Say, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    forge(run, line)
    code, said = say(command, ECHO if command == "generate" else "run", *READERS[command])
    assert code == 1
    assert "run/kept-00000.jsonl:3: not a row (" in said


def test_a_run_with_a_hole_is_not_gone_on_with(say: Say, run: Path) -> None:
    manifest = json.loads((run / "manifest.json").read_bytes())
    manifest["shards"] = [one for one in manifest["shards"] if one["file"] != "rejected-00000.jsonl"]
    manifest["finished"] = False
    replace_file(run / "manifest.json", json.dumps(manifest).encode())
    before = {path.name for path in run.iterdir()}
    code, said = say("generate", ECHO, "--out", run, *FEW)
    assert code == 1
    assert "was due, so a row is lost or doubled; restore the folder" in said
    assert {path.name for path in run.iterdir()} >= before


@pytest.mark.parametrize("text", [b"col_a,col_b\n1,2\n", b'[\n{"instruction": "a", "output": "b"}\n]\n'])
def test_a_file_without_a_row_is_said_to_be_none(
    text: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rows.json").write_bytes(text.replace(b'{"instruction"', b'{"question"'))
    assert main(["filter", str(tmp_path / "rows.json"), "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr()
    assert " is a row (" in said.err
    assert "give JSON Lines, one object a line" in said.err
    assert json.loads(said.out)["kept"] == 0


def test_a_run_behind_a_link_and_under_an_odd_name(say: Say, few: Path, tmp_path: Path) -> None:
    real = Path(shutil.copytree(few, tmp_path / 'Läufe é "1" $x' / "a run"))
    link = tmp_path / "link"
    link.symlink_to(real)
    more = [*FEW[2:], "--set", "prompts.count=150"]
    assert say("generate", ECHO, "--out", link, *more)[0] == 0
    for command in (["verify"], ["explain"], ["report"], ["replay", "3"], ["export", "--to", "openai"]):
        assert say(command[0], link, *command[1:])[0] == 0
    assert link.is_symlink()
    assert load(real / "config.toml").prompts.count == 150


@pytest.mark.parametrize("way", [">/dev/full", ">&-"])
@pytest.mark.parametrize(
    "arguments",
    [
        ["explain", "RUN", "3"],
        ["filter", "RUN", "--out", "-"],
        ["doctor", str(ECHO), "--set", "student.model=./none"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_standard_output_that_takes_nothing_is_a_sentence(arguments: list[str], way: str, few: Path) -> None:
    import subprocess
    import sys

    given = [str(few) if part == "RUN" else part for part in arguments]
    command = ["bash", "-c", f'exec "$@" {way}', "bash", sys.executable, "-m", "potstill", *given]
    done = subprocess.run(command, stderr=subprocess.PIPE, cwd=ROOT, text=True, check=False)
    assert done.returncode == 1
    assert "standard output: " in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_a_folder_that_cannot_be_written(say: Say, tmp_path: Path) -> None:
    code, said = say("generate", ECHO, "--out", ECHO / "run")
    assert code == 1
    assert "cannot be written (Not a directory); mend that, or write to another place" in said
    assert os.listdir(tmp_path) == []
