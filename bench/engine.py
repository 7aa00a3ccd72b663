"""Engine: rows a second from the same teacher on the same prompts, raw vLLM beside the whole generation loop.

Each contender has a process and an engine of its own; its start-up is left out, and a warm-up comes before what is
timed. The whole loop includes filter, ledger and disk. What is printed is a ratio to `chat` and to `generate`.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from engine.config import Config, load
from engine.errors import PotstillError
from engine.progress import note
from engine.prompts import open_source
from engine.rows import Prompt

CONTENDERS = ("chat", "generate", "potstill", "replicas", "late", "early")
"""What can be measured: `LLM.chat` and `LLM.generate` (ready token ids) of vLLM, the whole loop with one teacher and
with `--replicas`, and the whole loop on a wasteful mix with early decisions off and on."""
WASTE = ("filter.cap_key=template", "filter.max_chars=160")
"""Settings of the wasteful mix, beside a cap of a fifth of the prompts: duplicates, overlong and capped rows."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `potstill bench engine`."""
    parser.add_argument("--config", type=Path, required=True, help="configuration with the teacher and the templates")
    parser.add_argument("--set", dest="overrides", metavar="KEY=VALUE", action="append", default=[])
    parser.add_argument("--rows", type=int, default=4000, help="prompts a round (default: 4000)")
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds of each contender (default: 3)")
    parser.add_argument("--replicas", type=int, default=4, help="teachers of the contender `replicas` (default: 4)")
    parser.add_argument("--contenders", default="chat,generate,potstill", help=f"of {', '.join(CONTENDERS)}")
    parser.add_argument("--contender", help=argparse.SUPPRESS)


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Measure and return the table.

    Raises: PotstillError where a contender fails; what it said is on stderr.
    """
    if args.contender:
        return _measure(args)
    names = args.contenders.split(",")
    unknown = [name for name in names if name not in CONTENDERS]
    if unknown:
        raise PotstillError(f"--contenders: no {unknown[0]}; there are {', '.join(CONTENDERS)}")
    results = {name: _run(name, args) for name in names}
    for name, result in results.items():
        for base in ("chat", "generate", "late"):
            if base in results and base != name:
                unit = "kept_per_s" if base == "late" else "rows_per_s"
                result[f"x_{base}"] = round(result[unit] / results[base][unit], 3)
    return {"bench": "engine", "rows": args.rows, "rounds": args.rounds, "results": results}


def _run(name: str, args: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, str(Path(__file__).parent.parent / "potstill.py"), "bench", "engine"]
    command += ["--contender", name, "--config", str(args.config), "--rows", str(args.rows)]
    command += ["--rounds", str(args.rounds), "--replicas", str(args.replicas)]
    command += [part for override in args.overrides for part in ("--set", override)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    if done.returncode:
        raise PotstillError(f"bench engine: {name} failed with exit code {done.returncode}; see above")
    result: dict[str, Any] = msgspec.json.decode(done.stdout.splitlines()[-1])
    note(f"{name}: {result['rows_per_s']:.1f} rows/s, {result['tokens_per_s']:.0f} tok/s")
    return result


def _measure(args: argparse.Namespace) -> dict[str, Any]:
    overrides = [*args.overrides, f"prompts.count={args.rows}"]
    if args.contender in ("chat", "generate"):
        rounds = _raw(args.contender, load(args.config, overrides), args.rounds)
    else:
        rounds = [_whole(args.contender, args, overrides, number) for number in range(args.rounds)]
    best = [round_["rows"] / round_["seconds"] for round_ in rounds]
    return {
        "rows_per_s": round(statistics.median(best), 2),
        "tokens_per_s": round(statistics.median(one["tokens"] / one["seconds"] for one in rounds), 1),
        "kept_per_s": round(statistics.median(one["kept"] / one["seconds"] for one in rounds), 2),
        "rounds": rounds,
    }


def prompts_of(settings: Config, seed: int) -> list[Prompt]:
    """Return the prompts of one round."""
    changed = msgspec.structs.replace(settings.prompts, seed=seed)
    source = open_source(changed, run_seed=seed, greedy=settings.sampling.temperature == 0)
    return list(islice(source.prompts(), settings.prompts.count))


def _raw(name: str, settings: Config, rounds: int) -> list[dict[str, Any]]:
    """Time vLLM's own offline calls, at the settings that the whole loop gives its engine."""
    from vllm import SamplingParams

    from engine.models import resolve_model
    from engine.vllm_start import start_engine

    model = resolve_model(settings.teacher.model, key="teacher.model")
    llm = start_engine(settings.teacher, model, watched=False).llm
    sampling = settings.sampling
    results = []
    for number in range(-1, rounds):
        prompts = prompts_of(settings, seed=100 + number)
        if number < 0:
            prompts = prompts[: max(64, len(prompts) // 8)]
        params = [
            SamplingParams(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                max_tokens=prompt.max_tokens or sampling.max_tokens,
                seed=prompt.seed,
            )
            for prompt in prompts
        ]
        start = time.perf_counter()
        if name == "chat":
            outputs = llm.chat([prompt.messages() for prompt in prompts], params, use_tqdm=False)
        else:
            ready = _token_ids(llm, prompts)
            start = time.perf_counter()
            outputs = llm.generate(ready, params, use_tqdm=False)
        seconds = time.perf_counter() - start
        tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
        results.append({"rows": len(prompts), "kept": len(prompts), "tokens": tokens, "seconds": round(seconds, 3)})
    return results[1:]


def _token_ids(llm: Any, prompts: list[Prompt]) -> list[Any]:
    from vllm.inputs import tokens_input

    tokenizer = llm.get_tokenizer()
    texts = [tokenizer.apply_chat_template(p.messages(), add_generation_prompt=True, tokenize=False) for p in prompts]
    encoded = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return [tokens_input(ids) for ids in encoded]


def _whole(name: str, args: argparse.Namespace, overrides: list[str], number: int) -> dict[str, Any]:
    """Time the whole loop: prompts, teacher, filter, ledger and disk. Its start-up is in no figure."""
    from engine.generate import generate

    changes = [*overrides, f"prompts.seed={100 + number}", f"sampling.seed={100 + number}"]
    changes += {
        "potstill": ["filter.cap_per_template=0"],
        "replicas": ["filter.cap_per_template=0", f"teacher.replicas={args.replicas}"],
        "late": [*WASTE, f"filter.cap_per_template={args.rows // 5}", "filter.early=false"],
        "early": [*WASTE, f"filter.cap_per_template={args.rows // 5}"],
    }[name]
    with tempfile.TemporaryDirectory(prefix="potstill-bench-") as folder:
        summary = generate(load(args.config, changes), Path(folder) / "run", gate=False)
    return {
        "rows": summary["asked"],
        "kept": summary["kept"],
        "tokens": summary["output_tokens"],
        "seconds": summary["answering_seconds"],
    }
