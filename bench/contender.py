"""One contender of `bench engine`, in a process of its own: starts its engine, then answers round after round.

It says `ready` once it could answer, reads the number of a round from stdin, and answers with one line of JSON; so all
contenders can be up at once, and rounds can alternate between them. Stdout carries nothing else.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import msgspec

from bench.waste import SETTINGS, write_waste
from engine.config import Config, load
from engine.prompts import open_source
from engine.rows import Prompt

RAW = ("chat", "generate")
LOOP = ("potstill", "replicas", "late", "early")
CONTENDERS = (*RAW, *LOOP)
"""`LLM.chat` at vLLM's own settings and `LLM.generate` (ready token ids) at ours; the whole loop with one teacher and
with `--replicas`; and the whole loop on a wasteful mix with early decisions off and on."""
WARM_UP = 8
"""The warm-up round is this part of a timed one."""


def serve(args: argparse.Namespace) -> None:
    """Run one contender until stdin closes."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print
    name, _, changes = args.contender.partition("@")
    overrides = [*args.overrides, *_changes(name, args), *(part for part in changes.split("@") if part)]
    if name in RAW:
        _serve_raw(name, load(args.config, overrides), args.rows, out)
    else:
        asyncio.run(_serve_loop(name, args, overrides, out))


def _changes(name: str, args: argparse.Namespace) -> list[str]:
    return {
        "potstill": ["filter.cap_per_template=0"],
        "replicas": ["filter.cap_per_template=0", f"teacher.replicas={args.replicas}"],
        "late": [*SETTINGS, f"filter.cap_per_template={args.rows // 5}", "filter.early=false"],
        "early": [*SETTINGS, f"filter.cap_per_template={args.rows // 5}"],
    }.get(name, [])


def _say(out: TextIO, message: dict[str, Any]) -> None:
    out.write(msgspec.json.encode(message).decode() + "\n")
    out.flush()


def _rounds(first: int) -> int | None:
    line = sys.stdin.readline()
    return int(line) + first if line.strip() else None


def _serve_raw(name: str, settings: Config, rows: int, out: TextIO) -> None:
    ask = _raw(name, settings)
    ask(prompts_of(settings, rows // WARM_UP, seed=99))
    _say(out, {"ready": name})
    while (number := _rounds(100)) is not None:
        cpu = _Cpu()
        result = ask(prompts_of(settings, rows, seed=number))
        _say(out, result | cpu.spent(result["seconds"]))


def prompts_of(settings: Config, count: int, seed: int) -> list[Prompt]:
    """Return the prompts of one round."""
    changed = msgspec.structs.replace(settings.prompts, seed=seed, count=count)
    source = open_source(changed, run_seed=seed, greedy=settings.sampling.temperature == 0)
    return list(islice(source.prompts(), count))


def _raw(name: str, settings: Config) -> Callable[[list[Prompt]], dict[str, Any]]:
    """Start vLLM and return what times one of its offline calls."""
    from vllm import SamplingParams

    from engine.models import resolve_model

    sampling = settings.sampling
    llm = _stock(settings) if name == "chat" else _ours(settings, resolve_model(settings.teacher.model, key="teacher"))

    def ask(prompts: list[Prompt]) -> dict[str, Any]:
        params = [
            SamplingParams(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                max_tokens=prompt.max_tokens or sampling.max_tokens,
                seed=prompt.seed,
            )
            for prompt in prompts
        ]
        ready = _token_ids(llm, prompts) if name == "generate" else [prompt.messages() for prompt in prompts]
        start = time.perf_counter()
        outputs = llm.generate(ready, params, use_tqdm=False) if name == "generate" else llm.chat(ready, params)
        seconds = time.perf_counter() - start
        tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
        return {"rows": len(prompts), "kept": len(prompts), "tokens": tokens, "seconds": seconds}

    return ask


def _stock(settings: Config) -> Any:
    """Start vLLM as its documentation does, with the context that the rows need."""
    from vllm import LLM

    from engine.models import resolve_model
    from engine.vllm_settings import prepare_environment

    prepare_environment()
    teacher = settings.teacher
    chosen = {key: value for key, value in teacher.engine_args.items() if key != "compilation_config"}
    model = resolve_model(teacher.model, key="teacher.model")
    return LLM(
        model,
        max_model_len=teacher.max_model_len,
        gpu_memory_utilization=teacher.gpu_memory_utilization,
        disable_log_stats=True,
        **chosen,
    )


def _ours(settings: Config, model: str) -> Any:
    from engine.vllm_start import start_engine

    return start_engine(settings.teacher, model, watched=False).llm


def _token_ids(llm: Any, prompts: list[Prompt]) -> list[Any]:
    from vllm.inputs import tokens_input

    tokenizer = llm.get_tokenizer()
    texts = [tokenizer.apply_chat_template(p.messages(), add_generation_prompt=True, tokenize=False) for p in prompts]
    encoded = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return [tokens_input(ids) for ids in encoded]


async def _serve_loop(name: str, args: argparse.Namespace, overrides: list[str], out: TextIO) -> None:
    """Time the whole loop: prompts, teacher, filter, ledger and disk."""
    from engine.backend import make_backend
    from engine.filter import Filter

    settings = load(args.config, overrides)
    watch = Filter(settings.filter).content.watch if settings.filter.early else None
    async with make_backend(settings.teacher, settings.sampling, watch=watch) as backend:
        await _whole(name, args.rows // WARM_UP, 99, (args.config, overrides), backend)
        _say(out, {"ready": name})
        while (number := await asyncio.to_thread(_rounds, 100)) is not None:
            cpu = _Cpu()
            result = await _whole(name, args.rows, number, (args.config, overrides), backend)
            _say(out, result | cpu.spent(result["seconds"]))


async def _whole(name: str, rows: int, seed: int, config: tuple[Path, list[str]], backend: Any) -> dict[str, Any]:
    from engine.generate import generate_with
    from engine.rows import Row
    from engine.shards import read_lines, read_manifest

    with tempfile.TemporaryDirectory(prefix="potstill-bench-") as scratch:
        changes = [*config[1], f"prompts.count={rows}", f"prompts.seed={seed}", f"sampling.seed={seed}"]
        if name in ("late", "early"):
            write_waste(Path(scratch) / "prompts.jsonl", rows, seed)
            changes.append(f"prompts.file={scratch}/prompts.jsonl")
        run = Path(scratch) / "run"
        settings = load(config[0], changes)
        start = time.perf_counter()
        summary = await generate_with(backend, settings, run, gate=False)
        seconds = time.perf_counter() - start
        result = {"rows": summary["asked"], "kept": summary["kept"], "tokens": summary["output_tokens"]}
        result |= {"seconds": seconds, "funnel": {key: summary[key] for key in ("rejected", "skipped", "failed")}}
        if name in ("late", "early"):
            shards = [shard for shard in read_manifest(run).shards if shard.kind == "kept"]
            rows_kept = [msgspec.json.decode(line, type=Row) for shard in shards for line in read_lines(run, shard)]
            result["kept_rows"] = [[row.instruction, row.input, row.output] for row in rows_kept]
    return result


class _Cpu:
    """CPU seconds of this process and of those below it, over a round."""

    def __init__(self) -> None:
        self._before = self._now()

    def spent(self, seconds: float) -> dict[str, Any]:
        """Return cores kept busy: by this process, and by each below it (vLLM's client, its engine)."""
        now = self._now()
        busy = {pid: (used - self._before.get(pid, 0.0)) / seconds for pid, used in now.items()}
        own = busy.pop(os.getpid())
        below = sorted((round(share, 3) for share in busy.values() if share > 0.02), reverse=True)
        return {"front_cores": round(own, 3), "below_cores": below}

    def _now(self) -> dict[int, float]:
        import psutil

        me = psutil.Process()
        found = {}
        for process in (me, *me.children(recursive=True)):
            try:
                times = process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            found[process.pid] = times.user + times.system
        return found
