"""The command of `potstill serve`, for each kind of student; and a real server, asked once."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.config import Config, Sampling, Student, Teacher, dump
from engine.errors import ExportError, MissingError, UsageError
from engine.rows import Completion, Prompt
from trainer import smoke
from trainer.done import Done, write_done
from trainer.serve import Wish, serve_command
from trainer.student import read_student

ROOT = Path(__file__).resolve().parent.parent
FIGURES: dict[str, Any] = {
    "backend": "trl",
    "tuning": "lora",
    "dtype": "float32",
    "parameters": 1,
    "trained_parameters": 1,
    "rows": 1,
    "validation_rows": 0,
    "dropped": {},
    "steps": 1,
    "trained_tokens": 1,
    "real_tokens": 1,
    "padded_tokens": 1,
    "train_loss": None,
    "eval_loss": None,
    "seconds": 1.0,
    "fingerprint": "abc",
    "versions": {},
}
GPU = ["--gpu-memory-utilization", "0.4", "--port", "8002"]


def make_run(folder: Path, *, adapter: bool, teacher: Teacher | None = None) -> Path:
    """Write what training leaves, without weights."""
    (folder / "student").mkdir(parents=True)
    (folder / "student" / "chat_template.jinja").write_text("{{ messages }}")
    if adapter:
        (folder / "student" / "adapter_config.json").write_text('{"r": 12}')
    else:
        (folder / "student" / "config.json").write_text("{}")
    student = "Owner/Base" if adapter else "student"
    (folder / "train").mkdir()
    config = Config(teacher=teacher or Teacher(), student=Student(model="Owner/Base"))
    (folder / "train" / "config.toml").write_bytes(dump(config))
    made = "student" if adapter else ""
    write_done(folder, Done(untrained="Owner/Base", student=student, adapter=made, **FIGURES))
    return folder


def exported(run: Path, form: str, **report: Any) -> Path:
    folder = run / "models" / form
    folder.mkdir(parents=True)
    (folder / "export.json").write_bytes(msgspec.json.encode({"verified": True, "student": "abc", **report}))
    return folder


def test_an_adapter_is_served_on_its_model(tmp_path: Path) -> None:
    run = make_run(tmp_path, adapter=True)
    assert serve_command(read_student(run), Wish()) == [
        *("vllm", "serve", "Owner/Base", "--enable-lora", "--lora-modules", f"distilled={run / 'student'}"),
        *("--max-lora-rank", "16", "--max-loras", "1", "--chat-template", str(run / "student/chat_template.jinja")),
        *GPU,
    ]


def test_a_whole_student_is_served_by_name_and_as_it_was_trained(tmp_path: Path) -> None:
    teacher = Teacher(chat_template_kwargs={"enable_thinking": False}, max_model_len=512)
    run = make_run(tmp_path, adapter=False, teacher=teacher)
    assert serve_command(read_student(run), Wish(extra=["--api-key", "x"])) == [
        *("vllm", "serve", str(run / "student"), "--served-model-name", "distilled"),
        *("--chat-template", str(run / "student/chat_template.jinja")),
        *("--default-chat-template-kwargs", '{"enable_thinking": false}', "--max-model-len", "512"),
        *(*GPU, "--api-key", "x"),
    ]


@pytest.mark.parametrize("form", ["merged", "fp8", "w4a16"])
def test_a_form_is_served_from_its_folder(tmp_path: Path, form: str) -> None:
    run = make_run(tmp_path, adapter=True)
    folder = exported(run, form)
    wish = Wish(form=form, port=9000, gpu_share=0.5)
    assert serve_command(read_student(run), wish) == [
        *("vllm", "serve", str(folder), "--served-model-name", "distilled"),
        *("--gpu-memory-utilization", "0.5", "--port", "9000"),
    ]


def test_on_a_cpu_it_has_the_flags_of_the_offline_engine(tmp_path: Path) -> None:
    run = make_run(tmp_path, adapter=True)
    exported(run, "w4a16")
    command = serve_command(read_student(run), Wish(cpu=True))
    assert "--gpu-memory-utilization" not in command
    assert {"--enforce-eager", "--no-enable-chunked-prefill", "--kv-cache-memory-bytes"} <= set(command)
    assert command[command.index("--dtype") + 1] == "float32"
    without_program = serve_command(read_student(run), Wish(cpu=True, program=False))
    assert without_program[1:5] == ["-m", "vllm.entrypoints.openai.api_server", "--model", "Owner/Base"]
    assert without_program[5:] == command[3:]
    command = serve_command(read_student(run), Wish(cpu=True, form="w4a16"))
    assert command[command.index("--dtype") + 1] == "bfloat16", "vLLM's 4-bit kernel for CPUs has no float32"


def test_what_cannot_be_served_says_why(tmp_path: Path) -> None:
    run = make_run(tmp_path, adapter=True)
    student = read_student(run)
    with pytest.raises(UsageError, match="--form onnx: no such form"):
        serve_command(student, Wish(form="onnx"))
    with pytest.raises(MissingError, match=r"it is not there; potstill export-model .* --to merged"):
        serve_command(student, Wish(form="merged"))
    (run / "models" / "fp8.failed").mkdir(parents=True)
    with pytest.raises(MissingError, match=r"it did not answer as the student does, see .*fp8.failed/export.json"):
        serve_command(student, Wish(form="fp8"))
    exported(run, "w4a16", student="other")
    with pytest.raises(UsageError, match="of an earlier student"):
        serve_command(student, Wish(form="w4a16"))
    exported(run, "gguf")
    with pytest.raises(UsageError, match=r"for llama.cpp, not for vLLM; llama-server -m .*student.gguf"):
        serve_command(student, Wish(form="gguf"))
    with pytest.raises(MissingError, match="has no trained student"):
        read_student(tmp_path / "none")


def test_print_says_the_command_and_starts_nothing(tmp_path: Path) -> None:
    run = make_run(tmp_path, adapter=True)
    command = [sys.executable, "-m", "potstill", "serve", str(run), "--print", "--vllm-args=--api-key 'a b'"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True, timeout=60)
    line, result = done.stdout.splitlines()
    assert "Owner/Base --enable-lora --lora-modules distilled=/" in line
    assert line.endswith("--api-key 'a b'")
    assert json.loads(result)["command"][-1] == "a b"


LISTENER = """
import signal, socket, subprocess, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
port = int(sys.argv[1])
if len(sys.argv) > 2:
    engine = subprocess.Popen([sys.executable, __file__, sys.argv[2]])
    while socket.socket().connect_ex(("127.0.0.1", int(sys.argv[2]))): time.sleep(0.05)
listening = socket.create_server(("127.0.0.1", port))
time.sleep(60)
"""


def test_a_server_that_does_not_end_is_ended_with_its_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = tmp_path / "server.py"
    server.write_text(LISTENER)
    monkeypatch.setattr(smoke, "STOP_S", 0.5)
    ports = []
    for _ in range(2):
        with socket.create_server(("127.0.0.1", 0)) as free:
            ports.append(free.getsockname()[1])
    with smoke._running([sys.executable, str(server), *map(str, ports)], ports[0]):
        assert [smoke._answers(port) for port in ports] == [True, True]
    deadline = time.monotonic() + 5
    while smoke._answers(ports[1]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert [smoke._answers(port) for port in ports] == [False, False]


@pytest.mark.parametrize("same", [5, 3])
def test_most_answers_of_the_server_must_be_the_offline_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, same: int
) -> None:
    run = make_run(tmp_path, adapter=True)
    prompts = [Prompt(index=i, id=str(i), template="", instruction=f"q{i}") for i in range(8)]
    asked: list[Teacher] = []

    def offline(teacher: Teacher, sampling: Sampling, prompts: list[Prompt]) -> list[Completion]:
        asked.append(teacher)
        return [Completion(id=one.id, text="a", finish_reason="stop") for one in prompts]

    async def online(student: Any, port: int, prompts: list[Prompt]) -> list[Completion]:
        texts = ["a"] * same + ["b"] * (len(prompts) - same)
        return [
            Completion(id=one.id, text=text, finish_reason="stop") for one, text in zip(prompts, texts, strict=True)
        ]

    monkeypatch.setattr(smoke, "held_out_prompts", lambda student, most: prompts[:most])
    monkeypatch.setattr(smoke, "from_vllm", offline)
    monkeypatch.setattr(smoke, "_ask", online)
    monkeypatch.setattr(smoke, "_running", lambda command, port: nullcontext(1.0))
    if same < 4:
        with pytest.raises(
            ExportError, match=r"5 of 8 answers of the server .* it answers 'b' to 'q3', and offline .* 'a'"
        ):
            smoke.smoke(read_student(run), Wish())
    else:
        result = smoke.smoke(read_student(run), Wish())
        assert (result["same"], result["asked"], result["answer"]) == (same, 8, "a")
    assert asked[0].engine_args["enforce_eager"] is True, "eight answers are not worth a compilation"


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.parametrize("form", ["", "w4a16"])
def test_a_real_server_answers_as_the_student_does_offline(tmp_path: Path, form: str) -> None:
    from students import make_config, make_rows, tiny_student, write_run

    from trainer.train import train

    shape = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 32, "initializer_range": 0.2}
    student = tiny_student(tmp_path / "base", **shape)
    run = write_run(tmp_path / "run", make_rows(24))
    keys = {"tuning": "lora", "max_steps": 3, "val_fraction": 0.2, "learning_rate": 1e-2}
    train(make_config(student, **keys), run, run)
    if form:
        potstill("export-model", str(run), "--to", form, "--no-verify")
    chosen = ["--form", form] if form else []
    short = ["--set", "eval.max_tokens=8", "--set", "teacher.max_model_len=256"]
    result = potstill("serve", str(run), "--smoke", "--port", "8127", *chosen, *short)
    assert result["answer"]
    assert ("--enable-lora" in result["command"]) is not bool(form)


def potstill(*arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "potstill", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, timeout=280)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
