"""How vLLM is set up: the environment, the arguments of `LLM(...)`, and the sampling of one prompt.

Promises that what the user set (environment, `teacher.engine_args`) always wins over a default here, and that a row's
answer is sampled with its own seed. Each default has its reason beside it. Source: measured, see docs/engine.md.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import msgspec

from engine.backend import WATCH_TOKENS
from engine.config import Loop, Sampling, Teacher
from engine.errors import ConfigError, DataError
from engine.model_hash import hub_folder
from engine.rows import Constraint, Prompt

CPU_MAX_NUM_SEQS = 64
"""Two cores are busy with as many; more only makes each answer later."""
CPU_BLOCK_TOKENS = 32
"""KV block: the least that the CPU kernels like. A shared prefix is reused in whole blocks only, so with four examples
in the prompt SmolLM2-135M answers 2.3 times as fast as with vLLM's default of 128."""
CPU_CACHE_BYTES = 2 * 2**30
"""KV cache at most; vLLM zeroes all of it at the start, half a second a gigabyte."""
SMALL_PARAMETERS = 1_000_000_000
SMALL_MAX_NUM_SEQS = 1024
"""Prompts at once for a small model: on an H100, SmolLM2-135M answers 1.16 times as many rows a second as with 512."""
CAPTURE_SIZES = (
    *(1, 2, 4, 8, 16, 32, 64, 128, 192, 256, 320, 384, 448, 512, 640, 768, 1024),
    *(1280, 1536, 2048, 2560, 3072, 4096),
)
"""Batch sizes, in tokens, with a CUDA graph. vLLM's own list ends at 512, so with short rows, where nearly every step
also admits prompts, nearly no step would be one: on an H100, SmolLM2-135M with 512 prompts at once answers 1.42 times
as many rows a second with these as without."""
RESERVED_BYTES = 3 * 2**30
"""Of a shared card, for each replica: its CUDA context, activations and CUDA graphs."""
LEAST_CACHE_BYTES = 2**30
"""KV cache below which a replica on a shared card is refused."""
INVARIANT_ATTENTION = "TRITON_ATTN"
"""FlashAttention 3 chooses its tiles by the longest prompt of a step, so with `VLLM_BATCH_INVARIANT` too an answer
depends on what is read beside it (vLLM 0.26 on an H100; vllm-project/vllm#51902). Triton's has one tile for all."""
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The ranks that vLLM has kernels for."""


def prepare_environment(*, batch_invariant: bool = False) -> None:
    """Set what must be set before vLLM is imported, where the user has not."""
    if batch_invariant:
        os.environ["VLLM_BATCH_INVARIANT"] = "1"
        # Its log-probabilities move with the number of rows (vllm-project/vllm#51187).
        os.environ.setdefault("VLLM_USE_FLASHINFER_SAMPLER", "0")
    cores = ",".join(str(core) for core in sorted(os.sched_getaffinity(0)))
    defaults = {
        # Waiting threads sleep. By default they spin, which on a shared machine costs up to ten times the time.
        "OMP_WAIT_POLICY": "PASSIVE",
        # All cores; vLLM would keep one back, which of two is half.
        "VLLM_CPU_OMP_THREADS_BIND": cores,
        # Stdout is for results.
        "VLLM_LOGGING_STREAM": "ext://sys.stderr",
        # Torch's C++ warnings come out at the end of the process, wherever stderr points by then.
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        # vLLM remembers how much memory it needed, and the next start on the same card does not measure it again.
        "VLLM_ENABLE_STARTUP_PLAN": "1",
        "DO_NOT_TRACK": "1",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


def prepare_cpu() -> None:
    """Set what is right on a CPU only, before the engine starts.

    The engine runs in this process. With processes of its own it takes 2.5 times the CPU time to start (vLLM is
    imported three times) and three times to generate: its parts wait for each other by spinning on the same cores.
    """
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")


def eager(teacher: Teacher) -> Teacher:
    """Return settings without compilation and CUDA graphs, for few answers: those cost more than they save then.

    Not where answers must be batch-invariant: vLLM's own kernel for norms, which is used instead, is not.
    """
    if teacher.batch_invariant:
        return teacher
    return msgspec.structs.replace(teacher, engine_args={"enforce_eager": True, **teacher.engine_args})


def engine_arguments(teacher: Teacher, model: str, *, watched: bool, cpu: bool, logprobs: int = 0) -> dict[str, Any]:
    """Return the arguments of `LLM(...)`; `teacher.engine_args` goes on top."""
    arguments: dict[str, Any] = {
        "model": model,
        "dtype": teacher.dtype,
        "quantization": teacher.quantization,
        # -1: the model's own length, or what fits into memory where that is less.
        "max_model_len": teacher.max_model_len or -1,
        "tensor_parallel_size": teacher.tensor_parallel_size,
        "gpu_memory_utilization": teacher.gpu_memory_utilization,
        "enable_prefix_caching": True,
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
        "stream_interval": WATCH_TOKENS if watched else 1,
    }
    if logprobs:
        # Raw: before temperature, so that a trainer may choose its own.
        arguments |= {"max_logprobs": logprobs, "logprobs_mode": "raw_logprobs"}
    if teacher.adapter:
        arguments |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": _lora_rank(Path(teacher.adapter))}
    arguments |= _cpu(teacher) if cpu else _cuda(teacher, model)
    return arguments | teacher.engine_args


def _cpu(teacher: Teacher) -> dict[str, Any]:
    """Return what suits a CPU: no compilation, and a start without a warm-up run."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "dtype": "float32" if teacher.dtype == "auto" else teacher.dtype,
        "max_num_seqs": teacher.max_num_seqs or CPU_MAX_NUM_SEQS,
        "enforce_eager": True,
        # A given size, with enforce_eager, is also what lets vLLM leave the warm-up out.
        "kv_cache_memory_bytes": min(CPU_CACHE_BYTES, memory // 8),
        "block_size": CPU_BLOCK_TOKENS,
        # A prompt that is split over two steps, in a row with a seed, kills the CPU engine of vLLM 0.32 ("CPU
        # Generator does not use offset"). Whole prompts only; the budget of a step is then at least max_model_len.
        "enable_chunked_prefill": False,
    }


def _cuda(teacher: Teacher, model: str) -> dict[str, Any]:
    """Return what suits a GPU. Left out is what vLLM sets by the size of the card."""
    arguments: dict[str, Any] = {}
    if not teacher.engine_args.get("enforce_eager"):
        arguments["compilation_config"] = {"cudagraph_capture_sizes": list(CAPTURE_SIZES)}
    if teacher.max_num_seqs:
        arguments["max_num_seqs"] = teacher.max_num_seqs
    elif _parameters(model, teacher) < SMALL_PARAMETERS:
        arguments["max_num_seqs"] = SMALL_MAX_NUM_SEQS
    if teacher.replica_count > 1 and "kv_cache_memory_bytes" not in teacher.engine_args:
        from vllm.platforms import current_platform

        card_bytes = int(current_platform.get_device_total_memory())
        arguments["kv_cache_memory_bytes"] = cache_bytes(teacher, _weight_bytes(model, teacher), card_bytes)
    if teacher.batch_invariant and "attention_config" not in teacher.engine_args:
        arguments |= _invariant(_decoder(model, teacher))
    return arguments


def _invariant(decoder: Any) -> dict[str, Any]:
    """Return the attention that is batch-invariant; a model with latent attention has others, of vLLM's choice."""
    return {} if hasattr(decoder, "kv_lora_rank") else {"attention_backend": INVARIANT_ATTENTION}


def cache_bytes(teacher: Teacher, weight_bytes: int, card_bytes: int) -> int:
    """Return the KV cache of one of the replicas that share a card.

    With a size given, vLLM does not measure what is free: replicas that start at once would measure each other.

    Raises: ConfigError where so many replicas do not fit.
    """
    share = teacher.gpu_memory_utilization * card_bytes
    weights = weight_bytes / teacher.tensor_parallel_size
    left = int(share - weights - RESERVED_BYTES)
    if left < LEAST_CACHE_BYTES:
        raise ConfigError(
            f"teacher.replicas: a card of {card_bytes / 2**30:.0f} GiB does not hold {teacher.replicas} of this model; "
            f"each would have {share / 2**30:.1f} GiB, of which weights take {weights / 2**30:.1f} and the rest of "
            f"vLLM {RESERVED_BYTES / 2**30:.0f}; take fewer"
        )
    return left


def _weight_bytes(model: str, teacher: Teacher) -> int:
    """Return the size of the weights' files, or estimate it where they are not here yet."""
    folder = hub_folder(model, None)
    on_disk = sum(path.stat().st_size for path in folder.glob("*.safetensors")) if folder else 0
    return on_disk or _parameters(model, teacher) * (4 if teacher.dtype == "float32" else 2)


def _parameters(model: str, teacher: Teacher) -> int:
    """Estimate the size of a decoder from its configuration."""
    config = _decoder(model, teacher)
    width, inner = config.hidden_size, getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    layer = 4 * width * width + 3 * width * inner
    return int(config.num_hidden_layers * layer + config.vocab_size * width)


def _decoder(model: str, teacher: Teacher) -> Any:
    """Return the configuration of the part that writes."""
    from transformers import AutoConfig

    trust = bool(teacher.engine_args.get("trust_remote_code", False))
    return AutoConfig.from_pretrained(model, trust_remote_code=trust).get_text_config()


def _lora_rank(adapter: Path) -> int:
    """Return the smallest rank with a kernel that holds the adapter.

    Raises: DataError where the adapter does not say its rank.
    """
    path = adapter / "adapter_config.json"
    try:
        settings = json.loads(path.read_bytes())
        rank = max([settings["r"], *(settings.get("rank_pattern") or {}).values()])
        return next(size for size in LORA_RANKS if size >= rank)
    except (ValueError, TypeError, KeyError, StopIteration) as error:
        raise DataError(f"{path}: no usable LoRA rank ({error}); give an adapter as PEFT saves it") from None


def sampling_params(sampling: Sampling, prompt: Prompt, *, watched: bool, special: bool = False) -> Any:
    """Return the sampling of one prompt, everything explicit: a model's generation_config.json changes nothing.

    With `special`, the text has its special tokens, but for the one that ends it.
    """
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        n=1,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        max_tokens=answer_tokens(sampling, prompt),
        stop=list(sampling.stop),
        skip_special_tokens=not special,
        seed=prompt.seed if sampling.temperature > 0 else None,
        output_kind=RequestOutputKind.DELTA if watched else RequestOutputKind.FINAL_ONLY,
        skip_clone=True,  # nobody else holds it, and the deep copy is half of what adding a request costs
        **(_ending(sampling.end_loops) if sampling.end_loops else {}),
        **(_scoring(sampling) if sampling.logprobs else {}),
        **(_structured(prompt.constraint) if prompt.constraint else {}),
    )


def _ending(loop: Loop) -> dict[str, Any]:
    """End an answer on the engine once it goes round in circles."""
    from vllm.sampling_params import RepetitionDetectionParams

    return {"repetition_detection": RepetitionDetectionParams(**msgspec.structs.asdict(loop))}


def _structured(constraint: Constraint) -> dict[str, Any]:
    """Hold an answer to a form. A new object each time: vLLM writes into it."""
    from vllm.sampling_params import StructuredOutputsParams

    if constraint.json_schema:
        form = StructuredOutputsParams(json=constraint.json_schema)
    elif constraint.regex:
        form = StructuredOutputsParams(regex=constraint.regex)
    else:
        form = StructuredOutputsParams(choice=list(constraint.choice))
    return {"structured_outputs": form}


def _scoring(sampling: Sampling) -> dict[str, Any]:
    """Ask for log-probabilities in the cheapest form: numbers in flat lists, and no text of any candidate."""
    return {"logprobs": sampling.logprobs, "flat_logprobs": True, "detokenize": bool(sampling.stop)}


def answer_tokens(sampling: Sampling, prompt: Prompt) -> int:
    """Return the longest answer to one prompt, in tokens."""
    return prompt.max_tokens or sampling.max_tokens
