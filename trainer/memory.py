"""Memory: what training a student will take, estimated from its configuration alone, without loading a weight.

An estimate decides two things: whether a card is too small (said before any time is spent on it) and whether
activations are kept or computed again. It leaves out the libraries' own share, about 1 GiB on a GPU.
"""

from __future__ import annotations

from typing import Any

import msgspec

from engine.config import Train
from engine.errors import ConfigError, TrainError
from trainer.libraries import load_failure
from trainer.plan import Dtype

NF4_BYTES = 0.56
"""Bytes of one 4-bit weight with its share of the scales (block of 64, double quantisation: 4.13 bits) and slack.
Source: QLoRA, arXiv 2305.14314, section 3."""
ADAM_BYTES = 16
"""Bytes of one trained weight: itself, its gradient and Adam's two averages, each in float32."""
ROOMY = 0.8
"""Share of a card that an estimate may fill before activations are computed again instead of kept."""


class Need(msgspec.Struct, frozen=True):
    """Bytes, and the counts they follow from."""

    parameters: int
    trained_parameters: int
    weights_bytes: int
    """Of what is frozen, and of what is trained with gradients and optimizer."""
    activation_bytes: int
    checkpointed_bytes: int
    """Of the activations where they are computed again in the backward pass."""

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.activation_bytes

    @property
    def least_bytes(self) -> int:
        return self.weights_bytes + self.checkpointed_bytes

    def sentence(self, memory_bytes: int) -> str:
        """Say what training takes, and of how much (0 for no card)."""
        total, least, card = (f"{size / 2**30:.2f}" for size in (self.total_bytes, self.least_bytes, memory_bytes))
        has = f"the card has {card}" if memory_bytes else "there is no card here to compare it with"
        return f"train  it takes about {total} GiB, {least} at the least; {has}"


def estimate(config: Any, train: Train, *, tuning: str, dtype: Dtype, tokens: int) -> Need:
    """Estimate from a model's configuration, for a step on so many tokens (padding included) at once."""
    skeleton = _skeleton(config)
    config = config.get_text_config()
    wide = 4 if dtype == "float32" else 2
    parameters = skeleton.num_parameters()
    embedding = skeleton.get_input_embeddings().weight.numel()
    trained = parameters if tuning == "full" else _adapter_parameters(skeleton, train)
    frozen = 0 if tuning == "full" else parameters
    frozen_bytes = NF4_BYTES * (frozen - embedding) + wide * embedding if tuning == "qlora" else wide * frozen
    hidden = config.hidden_size
    # Kept of a layer: its inputs and norms (in float32 too), four attention and four feed-forward tensors.
    layer = wide * (6 * hidden + 4 * getattr(config, "intermediate_size", 4 * hidden)) + 4 * 2 * hidden
    return Need(
        parameters=parameters,
        trained_parameters=trained,
        weights_bytes=int(frozen_bytes) + trained * ADAM_BYTES,
        activation_bytes=tokens * config.num_hidden_layers * layer,
        checkpointed_bytes=tokens * (config.num_hidden_layers * wide * hidden + layer),
    )


def check_card(need: Need, memory_bytes: int) -> None:
    """Compare what is needed at the very least with one card's memory (0 for no card).

    Raises: TrainError where it cannot fit.
    """
    if memory_bytes and need.least_bytes > memory_bytes:
        raise TrainError(
            f"training takes about {need.least_bytes / 2**30:.1f} GiB and the GPU has {memory_bytes / 2**30:.1f}; "
            "set train.tuning = qlora, lower train.batch_size or train.max_length, or take a smaller student"
        )


def read_config(model: str) -> Any:
    """Read a model's configuration.

    Raises: MissingError where it does not load.
    """
    from transformers import AutoConfig

    with load_failure("student.model", model):
        return AutoConfig.from_pretrained(model)


def _skeleton(config: Any) -> Any:
    """Build a model without memory for its weights."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def _adapter_parameters(skeleton: Any, train: Train) -> int:
    from torch.nn import Linear

    ends = tuple(f".{target}" for target in train.target_modules)
    found: int = sum(
        train.r * (module.in_features + module.out_features)
        for name, module in skeleton.named_modules()
        if isinstance(module, Linear) and f".{name}".endswith(ends)
    )
    if not found:
        raise ConfigError(
            "train.target_modules does not fit the student (no layer has such a name); look into its model's code"
        )
    return found
