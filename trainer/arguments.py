"""Training arguments: ONE set of values for both backends.

Importing Unsloth changes the defaults of TRL's configuration (batch size, weight decay, optimizer, seed, warm-up and
more) without a word. So every value that decides a result is given here and never left to a default; a test compares
what both backends make of it, and `changed` says at run time what a library made of it.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import msgspec

from engine.config import Train
from engine.errors import ConfigError
from trainer.plan import Plan

LOG_POINTS = 100
"""Points that a loss curve has at least, where there are so many steps."""
LOG_STEPS = 10
"""Most steps between two points."""


class Load(msgspec.Struct, frozen=True):
    """The rows, as far as arguments depend on them."""

    rows: int
    longest: int
    """Tokens of the longest row."""
    tokens: int
    """Of all rows."""
    validation_rows: int

    @property
    def mean(self) -> float:
        return self.tokens / self.rows


class Steps(msgspec.Struct, frozen=True):
    """How rows become steps. With packing a step takes about as many tokens as without, in fewer, fuller rows."""

    max_length: int
    batch_size: int
    total: int
    log: int
    checkpoint: int


def share(train: Train, processes: int) -> Train:
    """Return the part of each step that one of so many processes takes: together they train the batch of the settings.

    Raises: ConfigError where the rows of a step cannot be shared evenly.
    """
    rows = train.batch_size * train.gradient_accumulation
    if rows % processes:
        raise ConfigError(
            f"train.batch_size x train.gradient_accumulation = {rows} rows a step, over all processes: they cannot be "
            f"shared by {processes}; make it a multiple of {processes}"
        )
    own = rows // processes
    batch = max(size for size in range(1, min(own, train.batch_size) + 1) if own % size == 0)
    return msgspec.structs.replace(train, batch_size=batch, gradient_accumulation=own // batch)


def plan_steps(train: Train, load: Load, processes: int = 1) -> Steps:
    """Settle length, batch and intervals, for one of several processes.

    A packed row is as long as a whole unpacked batch, where max_length allows: tokens a step stay what they were.
    """
    max_length, batch_size = train.max_length, train.batch_size
    if train.packing:
        batch_tokens = train.batch_size * load.mean
        max_length = min(train.max_length, max(load.longest, math.ceil(batch_tokens)))
        batch_size = max(1, round(batch_tokens / max_length))
    batches = math.ceil(load.rows / (train.batch_size * processes))
    total = train.max_steps or math.ceil(math.ceil(batches / train.gradient_accumulation) * train.epochs)
    log = min(LOG_STEPS, max(1, total // LOG_POINTS))
    # A checkpoint between two points of the loss curve would shift every later point of a resumed run.
    return Steps(max_length, batch_size, total, log, checkpoint=math.ceil(train.checkpoint_steps / log) * log)


def training_arguments(
    train: Train, plan: Plan, load: Load, *, folder: Path, gradient_checkpointing: bool
) -> dict[str, Any]:
    """Return the keyword arguments of SFTConfig, the same for both backends; checkpoints go to `folder`."""
    steps = plan_steps(train, load, plan.processes)
    return {
        "output_dir": str(folder),
        **_data(train, steps),
        **_optimisation(train, steps),
        **_machine(train, plan, gradient_checkpointing=gradient_checkpointing),
        **_records(train, steps, evaluate=load.validation_rows > 0),
    }


def _data(train: Train, steps: Steps) -> dict[str, Any]:
    return {
        "max_length": steps.max_length,
        "packing": train.packing,
        "packing_strategy": "bfd",
        "eval_packing": False,
        # Packed rows always are; unset, Unsloth switches it on for unpacked ones too.
        "padding_free": train.packing,
        "pad_to_multiple_of": None,
        "completion_only_loss": True,
        "assistant_only_loss": False,
        "shuffle_dataset": False,
        # The order of rows is ours (trainer/order.py): TRL's own length grouping changes when a run is resumed.
        "train_sampling_strategy": "random",
        "per_device_train_batch_size": steps.batch_size,
        "per_device_eval_batch_size": _evaluation_batch(train, steps),
        "dataloader_drop_last": False,
        # Packed rows have no other columns, and Unsloth keeps them all.
        "remove_unused_columns": not train.packing,
    }


def _evaluation_batch(train: Train, steps: Steps) -> int:
    """Return rows evaluated at once: a step's. Unsloth takes an 8 for a default, and lowers it to packed rows' few."""
    return 7 if train.batch_size == 8 > steps.batch_size else train.batch_size


def _optimisation(train: Train, steps: Steps) -> dict[str, Any]:
    return {
        "loss_type": "nll",
        "label_smoothing_factor": 0.0,
        "neftune_noise_alpha": None,
        "num_train_epochs": train.epochs,
        "max_steps": train.max_steps or -1,
        "learning_rate": train.learning_rate,
        "lr_scheduler_type": train.scheduler,
        "warmup_steps": train.warmup_steps,
        "gradient_accumulation_steps": train.gradient_accumulation,
        "average_tokens_across_devices": True,
        # Looking for weights without a gradient costs time, and reentrant checkpointing cannot have it.
        "ddp_find_unused_parameters": False,
        "weight_decay": train.weight_decay,
        "max_grad_norm": 1.0,
        # 8-bit Adam saves nothing worth having on an adapter, and has no CPU version.
        "optim": "adamw_torch_fused",
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "adam_epsilon": 1e-8,
        "seed": train.seed,
        "data_seed": train.seed,
    }


def _machine(train: Train, plan: Plan, *, gradient_checkpointing: bool) -> dict[str, Any]:
    return {
        "use_cpu": plan.device == "cpu",
        "bf16": plan.dtype == "bfloat16",
        "fp16": plan.dtype == "float16",
        # Only for an evaluation outside of training, of which there is none; so that Unsloth need not change it.
        "bf16_full_eval": plan.dtype == "bfloat16",
        "fp16_full_eval": plan.dtype == "float16",
        "gradient_checkpointing": gradient_checkpointing,
        # Unsloth can do only the reentrant kind.
        "gradient_checkpointing_kwargs": {"use_reentrant": True} if gradient_checkpointing else None,
        "activation_offloading": False,
        "torch_compile": False,
        "torch_empty_cache_steps": None,
        "auto_find_batch_size": False,
        "eval_accumulation_steps": train.gradient_accumulation,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": plan.device == "cuda",
    }


def _records(train: Train, steps: Steps, *, evaluate: bool) -> dict[str, Any]:
    keep_best = evaluate and train.patience > 0
    return {
        "eval_strategy": ("steps" if keep_best else "epoch") if evaluate else "no",
        "eval_steps": steps.checkpoint if keep_best else None,
        "prediction_loss_only": True,
        "load_best_model_at_end": keep_best,
        "metric_for_best_model": "eval_loss" if keep_best else None,
        "greater_is_better": False if keep_best else None,
        "save_strategy": "steps" if steps.checkpoint else "no",
        "save_steps": steps.checkpoint or steps.total,
        "save_total_limit": 1,
        "logging_strategy": "steps",
        "logging_steps": steps.log,
        "logging_first_step": False,
        # A loss that is not a number must show: the run stops on it.
        "logging_nan_inf_filter": False,
        "include_num_input_tokens_seen": "no",
        "disable_tqdm": True,
        # Left alone, the library makes all processes but the first talk.
        "log_level_replica": "error",
        "report_to": list(train.report_to) or "none",
    }


def changed(wanted: dict[str, Any], resolved: Any) -> dict[str, tuple[Any, Any]]:
    """Return what a library made of the arguments: key -> (wanted, resolved), for those that differ."""
    pairs = {key: (value, _plain(getattr(resolved, key))) for key, value in wanted.items()}
    same_meaning: dict[str, Any] = {"report_to": []}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1] and same_meaning.get(key) != pair[1]}


def _plain(value: Any) -> Any:
    """Return the name of an enumeration's member as it is written in a configuration, else the value."""
    return getattr(value, "value", value)
