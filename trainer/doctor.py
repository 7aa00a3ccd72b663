"""`potstill doctor`: advice before money is spent.

Looks at the pair of models, the machine, the memory that both stages take, the prompts and the disk, and says of each
ok, warn or fail and what to do. Promises that no weight is loaded, nothing is written and every check is made whatever
the others find; only the estimate of training imports torch.
"""

from __future__ import annotations

import importlib.util
import os
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from engine import rule_settings
from engine.config import Config
from engine.errors import PotstillError
from engine.gpu import look_at_gpus
from engine.progress import note
from engine.prompts import open_source
from engine.rules import Draft, make_rule
from trainer import doctor_machine as machine
from trainer.doctor_pair import check_chat, check_licence, check_pair
from trainer.finding import Finding
from trainer.model_files import BYTES_OF_QUANTISED, ModelFiles, config_of, read_model, shape_of
from trainer.plan import Dtype, Machine
from trainer.prune import choose_layers, cut_config

PROMPTS_LOOKED_AT = 10_000
FULL_ANSWERS = 8
"""Prompts that should fit into the cache at their full length, below which a card is mostly idle."""
WEIGHTS = (".safetensors", ".bin", ".gguf")
"""How names of files with weights end."""
ADAPTER_BYTES = 2.0**28
"""Of an adapter, generously."""
OVERHEAD_BYTES = 2 * 2**30
"""Of a card beside weights and cache: context, activations, CUDA graphs."""


def examine(config: Config, out: Path) -> dict[str, Any]:
    """Make every check, say each finding, and return them with their counts."""
    found: list[Finding] = []
    for finding in _findings(config, out):
        note(finding.line())
        found.append(finding)
    counts = Counter(finding.level for finding in found)
    return {
        **{level: counts[level] for level in ("ok", "warn", "fail")},
        "findings": msgspec.to_builtins(found),
    }


def _findings(config: Config, out: Path) -> Iterator[Finding]:
    cards, versions = look_at_gpus(), machine.installed()
    models: dict[str, ModelFiles] = {}
    if not config.student.model:
        yield check_no_student(config)
    for role, read in (("teacher", read_teacher), ("student", read_student)):
        try:
            model = read(config)
        except PotstillError as error:
            yield Finding(role, "fail", str(error))
            continue
        if model is not None:
            models[role] = model
            yield from check_weights(role, model)
    kwargs, method = config.teacher.chat_template_kwargs, getattr(config.train, "method", "sft")
    if len(models) == 2:
        yield from check_pair(models["teacher"], models["student"], kwargs, method)
    else:
        for role, model in models.items():
            yield from check_chat(role, model, kwargs)
    yield from (check_licence(role, model) for role, model in models.items())
    yield from machine.check_cards(config, cards, versions)
    if config.student.model:
        yield machine.check_plan(config.train, cards, versions)
    yield from machine.check_libraries(versions, gpu=bool(cards), vllm=config.teacher.backend == "vllm")
    if "teacher" in models:
        yield check_teacher(config, models["teacher"], [card.total_bytes for card in cards], memory_of_machine())
    if "student" in models:
        yield check_training(config, models["student"], machine.machine_of(cards, versions))
    yield from check_prompts(config)
    yield machine.check_disk(config, out, trained_bytes(config, models.get("student")))


def check_no_student(config: Config) -> Finding:
    """Say what a configuration without a student is good for."""
    if config.eval.items:
        says = "eval.items is set but student.model is not, so there is nobody to compare"
        return Finding("student", "fail", says, "set student.model, or remove [eval]")
    return Finding("student", "warn", "student.model is not set: rows are generated, and nothing is trained")


def check_weights(role: str, model: ModelFiles) -> Iterator[Finding]:
    """Look whether a model folder of this machine holds weights; the hub's are fetched when they are needed."""
    folder = Path(model.name).expanduser()
    if folder.is_dir() and not any(path.suffix in WEIGHTS for path in folder.iterdir()):
        yield Finding(role, "fail", f"{model.name} holds no weights", "copy the whole model, or name another folder")


def trained_bytes(config: Config, student: ModelFiles | None) -> float:
    """Return the bytes of one copy of what is trained; a student that cannot be read counts as an adapter."""
    if not config.student.model:
        return 0.0
    return 4.0 * student.shape.parameters if student and config.train.tuning == "full" else ADAPTER_BYTES


def read_teacher(config: Config) -> ModelFiles | None:
    """Read the teacher's small files; None where it is not on this machine (an endpoint) or is no model (echo)."""
    return read_model(config.teacher.model, key="teacher.model") if config.teacher.backend == "vllm" else None


def read_student(config: Config) -> ModelFiles | None:
    """Read the student's small files; with `init = "prune"`, of what is left of it. None where there is no student."""
    if not config.student.model:
        return None
    model = read_model(config.student.model, key="student.model")
    if config.student.init == "model":
        return model
    kept = choose_layers(model.shape.layers, config.student.layers)
    return msgspec.structs.replace(model, shape=shape_of(config_of(model), layers=len(kept)))


def check_teacher(config: Config, teacher: ModelFiles, cards: list[int], memory: int) -> Finding:
    """Compare the teacher's weights and cache with one card's memory (`cards`, in bytes), or with the machine's."""
    settings = config.teacher
    stored = BYTES_OF_QUANTISED.get(settings.quantization or "", teacher.weight_bytes)
    if settings.dtype in ("float32", "float") or (not cards and settings.dtype == "auto"):
        stored = 4.0
    # With `auto` as many replicas are started as fit.
    replicas = 1 if settings.replicas == "auto" else settings.replicas
    copies = 1 if len(cards) >= replicas * settings.tensor_parallel_size else replicas
    weights = stored * teacher.shape.parameters * copies / settings.tensor_parallel_size
    room = cards[0] * settings.gpu_memory_utilization if cards else 0.8 * memory
    longest = settings.max_model_len or min(teacher.shape.longest or 4096, 4096)
    cache = teacher.shape.cache_bytes_per_token * longest * FULL_ANSWERS / settings.tensor_parallel_size
    where = "the card" if cards else "this machine"
    says = f"weights {_gib(weights)} GiB of the {_gib(room)} that the teacher may take of {where}"
    if weights > room:
        do = "set teacher.tensor_parallel_size or teacher.quantization = bitsandbytes, or take a smaller teacher"
        return Finding("teacher", "fail", f"{says}: it does not fit", do)
    if weights + cache + (OVERHEAD_BYTES if cards else 0) > room:
        short = f"{FULL_ANSWERS} answers of {longest} tokens take {_gib(cache)} more and do not fit at once"
        return Finding("teacher", "warn", f"{says}; {short}", "lower teacher.max_model_len, or quantise the teacher")
    return Finding("teacher", "ok", f"{says}, and room for answers in flight")


def check_training(config: Config, student: ModelFiles, seen: Machine) -> Finding:
    """Compare the estimate of training, for rows of full length, with the card."""
    missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    if missing:
        return Finding("training", "warn", f"no estimate of its memory without {', '.join(missing)}")
    from trainer.memory import ROOMY, check_card, estimate, read_config

    train = config.train
    tokens = train.batch_size * train.max_length
    shape = read_config(str(student.folder))
    if config.student.init == "prune":
        cut_config(shape, choose_layers(shape.num_hidden_layers, config.student.layers))
    dtype: Dtype = "bfloat16" if train.dtype == "auto" else train.dtype
    try:
        need = estimate(shape, train, tuning=train.tuning, dtype=dtype, tokens=tokens)
    except PotstillError as error:
        return Finding("training", "fail", str(error))
    says = f"about {_gib(need.total_bytes)} GiB with {tokens:,} tokens a step, {_gib(need.least_bytes)} at the least"
    if not seen.memory_bytes:
        return Finding("training", "ok", says)
    try:
        check_card(need, seen.memory_bytes)
    except PotstillError as error:
        return Finding("training", "fail", str(error))
    if need.total_bytes > ROOMY * seen.memory_bytes:
        return Finding("training", "ok", f"{says}: activations are computed again, which takes a fifth longer")
    return Finding("training", "ok", f"{says}: it fits the card")


def check_prompts(config: Config) -> Iterator[Finding]:
    """Look at the first prompts: are they there, and does one ask what is held out."""
    try:
        source = open_source(config.prompts, run_seed=config.sampling.seed, greedy=config.sampling.temperature == 0)
        prompts = list(islice(source.prompts(), PROMPTS_LOOKED_AT))
    except PotstillError as error:
        yield Finding("prompts", "fail", str(error))
        return
    yield Finding("prompts", "ok", f"{len(prompts):,} looked at, of {source.count or 'a whole file'}")
    if not config.eval.items:
        yield Finding("held out", "warn", "eval.items is not set, so nobody can say what the student retains")
        return
    try:
        leak = make_rule(rule_settings.Leak(files=(config.eval.items,), words=0))
    except PotstillError as error:
        yield Finding("held out", "fail", str(error))
        return
    found = [reason for p in prompts if (reason := leak.finish(Draft(p.instruction, "", p.input, p.template)))]
    guarded = any(isinstance(rule, rule_settings.Leak) for rule in config.filter.rules)
    if found and not guarded:
        do = f'add [[filter.rules]] with use = "leak" and files = ["{config.eval.items}"]'
        yield Finding("held out", "warn", f"{len(found):,} of {len(prompts):,} prompts: {found[0]}", do)
    else:
        yield Finding(
            "held out", "ok", "the filter drops what is held out" if found else "no prompt asks what is held out"
        )


def memory_of_machine() -> int:
    """Return the bytes of main memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f}"
