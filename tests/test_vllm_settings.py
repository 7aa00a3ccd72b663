"""What vLLM is told: the user's word wins, a row has its own seed, and an adapter's rank is one that vLLM has."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engine.config import Sampling, Teacher
from engine.errors import ConfigError, DataError
from engine.rows import Prompt
from engine.vllm_settings import (
    CAPTURE_SIZES,
    INVARIANT_ATTENTION,
    cache_bytes,
    eager,
    engine_arguments,
    prepare_cpu,
    prepare_environment,
    sampling_params,
)
from engine.vllm_start import _check_invariance


def cpu(**settings: Any) -> dict[str, Any]:
    return engine_arguments(Teacher(**settings), "m", watched=False, cpu=True)


def prompt(**settings: Any) -> Prompt:
    return Prompt(index=0, id="a", template="t", instruction="i", **{"seed": 7, **settings})


def test_on_a_cpu_a_start_is_quick_and_no_prompt_is_split() -> None:
    arguments = cpu()
    assert arguments["enforce_eager"]
    assert arguments["enable_chunked_prefill"] is False
    assert arguments["dtype"] == "float32"
    assert 0 < arguments["kv_cache_memory_bytes"] <= 2 * 2**30


def test_what_the_user_set_wins() -> None:
    assert cpu(dtype="bfloat16")["dtype"] == "bfloat16"
    assert cpu(max_num_seqs=3)["max_num_seqs"] == 3
    assert cpu(max_model_len=99)["max_model_len"] == 99
    assert cpu(engine_args={"enforce_eager": False, "seed": 4}).items() >= {"enforce_eager": False, "seed": 4}.items()


def test_a_watched_engine_streams_and_another_does_not() -> None:
    assert engine_arguments(Teacher(), "m", watched=True, cpu=True)["stream_interval"] == 8
    assert cpu()["stream_interval"] == 1


@pytest.mark.model
@pytest.mark.parametrize(("layers", "seqs"), [(2, 1024), (40, None)])
def test_on_a_gpu_a_small_model_takes_what_its_graphs_cover(tmp_path: Path, layers: int, seqs: int | None) -> None:
    from transformers import LlamaConfig

    LlamaConfig(num_hidden_layers=layers, hidden_size=2048, intermediate_size=8192).save_pretrained(tmp_path)
    arguments = engine_arguments(Teacher(), str(tmp_path), watched=False, cpu=False)
    assert arguments.get("max_num_seqs") == seqs
    assert arguments["compilation_config"] == {"cudagraph_capture_sizes": sorted(CAPTURE_SIZES)}
    named = engine_arguments(Teacher(max_num_seqs=9), str(tmp_path), watched=False, cpu=False)
    assert named["max_num_seqs"] == 9
    plain = engine_arguments(Teacher(engine_args={"enforce_eager": True}), str(tmp_path), watched=False, cpu=False)
    assert "compilation_config" not in plain


def test_few_answers_need_no_compilation_unless_they_are_to_be_batch_invariant() -> None:
    assert eager(Teacher()).engine_args == {"enforce_eager": True}
    assert eager(Teacher(engine_args={"enforce_eager": False})).engine_args == {"enforce_eager": False}
    assert eager(Teacher(batch_invariant=True)).engine_args == {}


@pytest.mark.model
def test_batch_invariance_takes_the_attention_that_is(tmp_path: Path) -> None:
    from transformers import DeepseekV3Config, LlamaConfig

    LlamaConfig(num_hidden_layers=2).save_pretrained(tmp_path / "plain")
    DeepseekV3Config(num_hidden_layers=2).save_pretrained(tmp_path / "latent")

    def attention(model: str, **settings: Any) -> Any:
        arguments = engine_arguments(Teacher(**settings), str(tmp_path / model), watched=False, cpu=False)
        return arguments.get("attention_backend")

    assert attention("plain") is None
    assert attention("plain", batch_invariant=True) == INVARIANT_ATTENTION
    assert attention("latent", batch_invariant=True) is None, "it has backends of its own"
    own = {"attention_config": {"backend": "FLASH_ATTN"}}
    assert attention("plain", batch_invariant=True, engine_args=own) is None, "vLLM takes one of the two"
    own = {"attention_backend": "FLEX_ATTENTION"}
    assert attention("plain", batch_invariant=True, engine_args=own) == "FLEX_ATTENTION"


@pytest.mark.parametrize(("settings", "rank"), [({"r": 12}, 16), ({"r": 8, "rank_pattern": {"q": 40}}, 64)])
def test_the_rank_is_the_next_that_vllm_has(tmp_path: Path, settings: dict[str, Any], rank: int) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    arguments = cpu(adapter=str(tmp_path))
    assert (arguments["enable_lora"], arguments["max_lora_rank"]) == (True, rank)


@pytest.mark.parametrize("text", ["{}", "[]", "not json", '{"r": 9999}', '{"r": "many"}'])
def test_an_adapter_without_a_usable_rank_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(DataError, match=r"adapter_config\.json: no usable LoRA rank"):
        cpu(adapter=str(tmp_path))


def test_the_environment_is_set_where_the_user_has_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"OMP_WAIT_POLICY": "ACTIVE", "VLLM_ENABLE_V1_MULTIPROCESSING": "1"})
    prepare_environment()
    prepare_cpu()
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"
    assert os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "1"
    assert os.environ["VLLM_LOGGING_STREAM"] == "ext://sys.stderr"
    cores = {int(core) for core in os.environ["VLLM_CPU_OMP_THREADS_BIND"].split(",")}
    assert cores == os.sched_getaffinity(0)


@pytest.mark.model
def test_a_row_is_sampled_with_its_own_seed_and_limit() -> None:
    sampling = Sampling(temperature=0.5, top_p=0.9, top_k=7, max_tokens=20, stop=("###",))
    params = sampling_params(sampling, prompt(max_tokens=5), watched=False)
    assert (params.n, params.temperature, params.top_p, params.top_k) == (1, 0.5, 0.9, 7)
    assert (params.max_tokens, params.seed, params.stop) == (5, 7, ["###"])
    assert params.skip_special_tokens
    assert not sampling_params(sampling, prompt(), watched=False, special=True).skip_special_tokens
    greedy = sampling_params(Sampling(temperature=0, max_tokens=20), prompt(), watched=True)
    assert (greedy.max_tokens, greedy.seed) == (20, None)
    assert params.output_kind.name == "FINAL_ONLY"
    assert greedy.output_kind.name == "DELTA"


def test_replicas_that_share_a_card_are_given_their_memory_and_too_many_are_refused() -> None:
    card = 80 * 2**30
    quarter = Teacher(replicas=4, gpu_memory_utilization=0.9 / 4)
    assert cache_bytes(quarter, 270_000_000, card) == pytest.approx(14.75 * 2**30, rel=0.01)
    with pytest.raises(ConfigError, match=r"does not hold 4 of this model.*weights take 14.9"):
        cache_bytes(quarter, 16_000_000_000, card)


class Platform:
    """What vLLM says of a machine, as far as batch invariance asks."""

    def __init__(self, capability: tuple[int, int] | None) -> None:
        self._capability = capability

    def is_cpu(self) -> bool:
        return self._capability is None

    def is_cuda(self) -> bool:
        return self._capability is not None

    def get_device_capability(self) -> Any:
        return None if self._capability is None else SimpleNamespace(major=self._capability[0], minor=0)

    def get_device_name(self) -> str:
        return "a card"


def test_batch_invariance_is_refused_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    _check_invariance(Platform((9, 0)))
    _check_invariance(Platform((8, 0)))
    with pytest.raises(ConfigError, match=r"compute capability 8\.0 or above, not a card"):
        _check_invariance(Platform((7, 5)))
    with pytest.raises(ConfigError, match="on a CPU in float32 answers do not depend"):
        _check_invariance(Platform(None))
    monkeypatch.setattr(os, "environ", {"VLLM_BATCH_INVARIANT": "0"})
    prepare_environment()
    assert os.environ["VLLM_BATCH_INVARIANT"] == "0"
    prepare_environment(batch_invariant=True)
    assert os.environ["VLLM_BATCH_INVARIANT"] == "1"
