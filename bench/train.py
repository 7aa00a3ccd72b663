"""Train: trained tokens a second of the trainer beside the original recipe, on the same rows, model and epochs.

Each contender has a process of its own; its start and the first steps are in no speed. The held-out loss is measured
afterwards in one process, in one way for all. What is printed is a ratio to `recipe`.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from bench.flops import flops_per_token, peak_tflops
from bench.machine import machine
from bench.shapes import PACKAGED, SHAPES, model_of
from bench.train_contender import CONTENDERS, Job
from bench.train_processes import run_all
from bench.train_report import table, write_report
from bench.train_rows import TEMPLATE_KWARGS, Rows, load_rows, write_run
from engine.command import path_of, whole
from engine.config import Config, Train, dump, from_mapping, load
from engine.errors import PotstillError
from engine.models import resolve_model
from engine.part import make_folder
from engine.progress import note
from trainer.libraries import NAMED, quiet
from trainer.memory import estimate, read_config
from trainer.plan import Machine, look
from trainer.render import load_chat

OURS = ("tuning=lora", "packing=true")
"""Settings of Potstill's contenders, beside the recipe's own: what a card with room for 16-bit weights is best at."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `potstill bench train`."""
    parser.add_argument("--shape", default="135m", help=f"{', '.join(SHAPES)}, or a model (default: 135m)")
    parser.add_argument(
        "--data", type=path_of, help="a run or a JSONL file (default: the three tasks, made on the spot)"
    )
    parser.add_argument("--rows", type=whole(1), default=1000, help="rows to train on, about (default: 1000)")
    parser.add_argument(
        "--held-out", type=whole(1), default=200, help="rows to measure the loss on, about (default: 200)"
    )
    parser.add_argument("--epochs", type=float, default=2.0, help="epochs of every contender (default: 2)")
    parser.add_argument(
        "--steps", type=whole(0), default=0, help="end every training after so many steps (default: all)"
    )
    parser.add_argument("--warm-up", type=whole(0), default=10, help="first steps, in no speed (default: 10)")
    parser.add_argument(
        "--contenders",
        help=f"of {', '.join(CONTENDERS)}; settings behind a colon: potstill-trl:packing=false+batch_size=8 "
        "(default: all that run here)",
    )
    parser.add_argument("--set", dest="settings", metavar="KEY=VALUE", action="append", default=[], help=_SET)
    parser.add_argument("--together", action="store_true", help="start all at once, train in turn; needs more memory")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--write", type=path_of, help="write train-SHAPE.json and .md into this folder")


_SET = f"a [train] setting of Potstill's contenders (beside {' '.join(OURS)})"


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Measure and return the table.

    Raises: PotstillError where a contender fails, after all others are done; what it said is on stderr.
    """
    here = look()
    if args.write:
        make_folder(args.write)
    names = args.contenders.split(",") if args.contenders else _default(here)
    for name in names:
        if name.partition(":")[0] not in CONTENDERS:
            raise PotstillError(f"--contenders: no {name}; there are {', '.join(CONTENDERS)}")
        load(None, _overrides(name, args, here))
    with tempfile.TemporaryDirectory(prefix="potstill-bench-") as folder:
        with quiet():
            tokenizer_of = resolve_model(PACKAGED if args.shape in SHAPES else args.shape, key="--shape")
            chat = load_chat(tokenizer_of, TEMPLATE_KWARGS)
            rows = load_rows(args.data, args.rows, args.held_out, chat, seed=args.seed)
            model = model_of(args.shape, Path(folder) / "model")
        write_run(Path(folder) / "run", rows.train)
        write_run(Path(folder) / "held-out", rows.held_out)
        (Path(folder) / "config.toml").write_bytes(dump(_config(args, model)))
        jobs = {name: _job(name, args, Path(folder), place, here) for place, name in enumerate(names)}
        results = run_all(jobs, str(Path(folder) / "held-out"), together=args.together)
        found = _found(args, rows, model, results, here)
    note(table(found))
    if args.write:
        write_report(args.write, found)
    if found["failed"]:
        raise PotstillError(f"bench train: {', '.join(found['failed'])} failed; what they said is above")
    return found


def _default(here: Machine) -> list[str]:
    ready = here.device == "cuda" and here.unsloth
    return ["recipe", "recipe-trl", "potstill-unsloth", "potstill-trl"] if ready else ["recipe", "potstill-trl"]


def _config(args: argparse.Namespace, model: str) -> Config:
    train: dict[str, Any] = {"epochs": args.epochs, "val_fraction": 0, "checkpoint_steps": 0, "seed": args.seed}
    if args.steps:
        train["max_steps"] = args.steps
    teacher = {"chat_template_kwargs": TEMPLATE_KWARGS}
    return from_mapping({"teacher": teacher, "student": {"model": model}, "train": train}, where="bench train")


def _overrides(name: str, args: argparse.Namespace, here: Machine) -> list[str]:
    """Return the settings of a contender, as section.key=value."""
    kind, _, own = name.partition(":")
    settings = [] if kind.startswith("recipe") else [*OURS, *args.settings]
    settings += own.split("+") if own else []
    plain = kind.endswith("-trl") or (kind.startswith("recipe") and not (here.device == "cuda" and here.unsloth))
    return [f"train.backend={'trl' if plain else 'unsloth'}", *(f"train.{setting}" for setting in settings)]


def _job(name: str, args: argparse.Namespace, folder: Path, place: int, here: Machine) -> Job:
    kind, out = name.partition(":")[0], folder / f"out-{place}"
    overrides = _overrides(name, args, here)
    return Job(kind, str(folder / "config.toml"), str(folder / "run"), str(out), overrides, args.warm_up)


def _found(
    args: argparse.Namespace, rows: Rows, model: str, results: dict[str, dict[str, Any]], here: Machine
) -> dict[str, Any]:
    config = read_config(model)
    parameters = estimate(config, Train(), tuning="lora", dtype="bfloat16", tokens=1).parameters
    per_token = flops_per_token(config, parameters, rows.tokens / len(rows.train))
    card = _card(here)
    share = rows.trained_tokens / rows.tokens
    worked = {name: _figures(result, share, per_token, card) for name, result in results.items() if result}
    base = next((worked[name] for name in results if name in worked and name.startswith("recipe")), None)
    for figures in worked.values():
        if base is not None:
            figures["x_recipe"] = round(figures["trained_per_s"] / base["trained_per_s"], 2)
    return {
        "bench": "train",
        "shape": args.shape,
        "parameters": parameters,
        "rows": len(rows.train),
        "held_out_rows": len(rows.held_out),
        "over_length": rows.over_length,
        "tokens_per_row": round(rows.tokens / len(rows.train), 1),
        "trained_share": round(share, 3),
        "epochs": args.epochs,
        "warm_up_steps": args.warm_up,
        "flops_per_token": per_token,
        "card": card,
        "peak_tflops": peak_tflops(card) if card else None,
        "machine": machine(NAMED),
        "results": worked,
        "failed": [name for name, result in results.items() if not result],
    }


def _figures(result: dict[str, Any], share: float, per_token: float, card: str) -> dict[str, Any]:
    """Turn what a contender counted into speeds. All are of the timed part alone, but steps, loss and memory."""
    timed = result["timed"]
    if timed["step"] < 1:
        raise PotstillError("bench train: no step is left to time; raise --rows or --steps, or lower --warm-up")
    real = timed["real"] / timed["s"]
    peak = peak_tflops(card) if card else None
    return {
        **{key: result[key] for key in ("backend", "tuning", "dtype", "settings", "steps")},
        "train_s": round(result["train_s"], 2),
        "load_s": round(result["load_s"], 2),
        "timed_steps": timed["step"],
        "timed_s": round(timed["s"], 3),
        "ms_per_step": round(1000 * timed["s"] / timed["step"], 1),
        "trained_per_s": round(real * share, 1),
        "real_per_s": round(real, 1),
        "padded_per_s": round(timed["padded"] / timed["s"], 1),
        "padding_efficiency": round(timed["real"] / timed["padded"], 3),
        "tokens_per_step": round(timed["real"] / timed["step"], 1),
        "mfu": round(real * per_token / (peak * 1e12), 4) if peak else None,
        "peak_gb": round(result["peak_gb"], 2),
        "train_loss": result["train_loss"],
        "eval_loss": round(result["eval_loss"], 4),
        "untrained_loss": round(result["untrained_loss"], 4),
    }


def _card(here: Machine) -> str:
    if here.device == "cpu":
        return ""
    import torch

    return str(torch.cuda.get_device_name(0))
