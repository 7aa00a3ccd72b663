"""The original recipe as people write it down: a `text` column, batches of 2 x 4, no packing, 4-bit base, 8-bit Adam.

It is what the trainer is measured against, so it takes nothing from the trainer: TRL's SFTTrainer on rendered text,
with Unsloth or without. On a CPU, where neither 4-bit weights nor 8-bit Adam exist, a plain base and Adam stand in.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from bench.train_rows import MAX_LENGTH
from engine.rows import Row
from trainer.examples import example_of

RANK = ALPHA = 16
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class Settings(msgspec.Struct, frozen=True):
    """What a recipe run depends on."""

    model: str
    unsloth: bool
    padding: bool
    """False leaves padding to Unsloth, which joins the rows of a batch unless told not to."""
    tuning: str
    dtype: str
    device: str
    epochs: float
    max_steps: int
    warm_up: int
    """Steps before the clock starts."""
    seed: int


class Clock:
    """Counts tokens as batches are drawn, and takes the time from the end of the warm-up on."""

    def __init__(self, warm_up: int) -> None:
        self.warm_up = warm_up
        self.marks: list[dict[str, float]] = []
        self.real = 0
        self.padded = 0

    def count(self, batches: Sequence[Any]) -> None:
        """Add the tokens of a step."""
        for batch in batches:
            ids, mask = batch["input_ids"], batch.get("attention_mask")
            self.real += ids.numel() if mask is None else int(mask.sum())
            self.padded += ids.numel()

    def mark(self, step: int) -> None:
        """Take the time once the device has done what it was given."""
        import torch

        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.marks.append({"step": step, "s": time.perf_counter(), "real": self.real, "padded": self.padded})


def train_recipe(settings: Settings, rows: Sequence[Row], out: Path) -> dict[str, Any]:
    """Train as the recipe does, write the adapter to `out`, and return steps, seconds and tokens of the timed part."""
    model, tokenizer, adapter = (_with_unsloth if settings.unsloth else _plain)(settings)
    trainer = _trainer(settings, model, tokenizer, adapter, rows, out)
    clock = Clock(settings.warm_up)
    _watch(trainer, clock)
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
    trainer.model.save_pretrained(out, save_embedding_layers=False)
    first, last = clock.marks[0], clock.marks[-1]
    return {
        "steps": trainer.state.global_step,
        "train_s": seconds,
        "train_loss": next((log["loss"] for log in reversed(trainer.state.log_history) if "loss" in log), None),
        "real": clock.real,
        "padded": clock.padded,
        "timed": {key: last[key] - first[key] for key in first},
    }


def _plain(settings: Settings) -> tuple[Any, Any, Any]:
    import torch
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    dtype = getattr(torch, settings.dtype)
    quantised = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    more = {"quantization_config": quantised} if settings.tuning == "qlora" else {}
    where = {"device_map": {"": 0}} if settings.device == "cuda" else {}
    model = AutoModelForCausalLM.from_pretrained(settings.model, dtype=dtype, **where, **more)
    adapter = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(PROJECTIONS), task_type="CAUSAL_LM")
    return model, AutoTokenizer.from_pretrained(settings.model), adapter


def _with_unsloth(settings: Settings) -> tuple[Any, Any, Any]:
    import torch
    from unsloth import FastLanguageModel

    model, tokenizer = FastLanguageModel.from_pretrained(
        model_name=settings.model,
        max_seq_length=MAX_LENGTH,
        dtype=getattr(torch, settings.dtype),
        load_in_4bit=settings.tuning == "qlora",
        load_in_16bit=settings.tuning == "lora",
        use_exact_model_name=True,
    )
    model = FastLanguageModel.get_peft_model(
        model,
        r=RANK,
        lora_alpha=ALPHA,
        lora_dropout=0,
        bias="none",
        target_modules=list(PROJECTIONS),
        use_gradient_checkpointing="unsloth",
        random_state=settings.seed,
    )
    return model, tokenizer, None


def _trainer(settings: Settings, model: Any, tokenizer: Any, adapter: Any, rows: Sequence[Row], out: Path) -> Any:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    def text(row: Row) -> str:
        turns = example_of(row).conversation({})
        return str(tokenizer.apply_chat_template(turns["prompt"] + turns["completion"], tokenize=False))

    on_cpu = settings.device == "cpu"
    more: dict[str, Any] = {"padding_free": False} if settings.padding else {}
    return SFTTrainer(
        model=model,
        processing_class=tokenizer,
        train_dataset=Dataset.from_dict({"text": [text(row) for row in rows]}),
        peft_config=adapter,
        args=SFTConfig(
            output_dir=str(out),
            dataset_text_field="text",
            max_length=MAX_LENGTH,
            packing=False,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=4,
            num_train_epochs=settings.epochs,
            max_steps=settings.max_steps or -1,
            learning_rate=2e-4,
            lr_scheduler_type="linear",
            warmup_steps=20,
            weight_decay=0.01,
            optim="adamw_torch" if on_cpu else "adamw_8bit",
            bf16=settings.dtype == "bfloat16",
            fp16=settings.dtype == "float16",
            use_cpu=on_cpu,
            logging_steps=10,
            save_strategy="no",
            seed=settings.seed,
            report_to="none",
            disable_tqdm=True,
            **more,
        ),
    )


def _watch(trainer: Any, clock: Clock) -> None:
    """Count the batches of each step, and mark the end of the warm-up and of the last step."""
    from transformers import PrinterCallback, TrainerCallback

    draw = trainer.get_batch_samples

    def counted(*args: Any, **kwargs: Any) -> Any:
        batches, items = draw(*args, **kwargs)
        clock.count(batches)
        return batches, items

    class Marks(TrainerCallback):  # type: ignore[misc, unused-ignore]
        """Marks the two ends of what is timed."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if clock.warm_up == 0:
                clock.mark(0)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step in (clock.warm_up, state.max_steps):
                clock.mark(state.global_step)

    trainer.get_batch_samples = counted
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Marks())
