"""What a trained token costs, and what a card can do: the two sides of model FLOPs utilisation (MFU).

The convention is 6 N FLOPs a token (2 forward, 4 backward) for the N weights that are multiplied with, plus attention,
12 x layers x heads x head size x row length, not halved for causality. Source: PaLM, arXiv 2204.02311, appendix B.
Only real tokens count, no padding. An adapter's frozen weights need no gradient of their own, so LoRA does about two
thirds of that: its MFU in this convention may exceed what the chip did, never what full fine-tuning would have done.
"""

from __future__ import annotations

from typing import Any

CARDS = (
    ("H200", 989.4),
    ("H100 PCIe", 756.0),
    ("H100 NVL", 835.0),
    ("H100", 989.4),
    ("A100", 312.0),
    ("L40S", 362.05),
    ("L4", 121.0),
    ("A10", 125.0),
    ("RTX 4090", 165.2),
    ("RTX 3090", 71.0),
)
"""Part of a card's name -> dense bfloat16 TFLOP/s with float32 sums; the first that fits is taken. Source: NVIDIA's
data sheets of each card; where one gives the figure with sparsity, half of it."""


def peak_tflops(card: str) -> float | None:
    """Return the peak of a card by its name, or None where it is not in the table."""
    words = f" {card} ".replace("-", " ")
    return next((peak for name, peak in CARDS if f" {name} " in words), None)


def flops_per_token(config: Any, parameters: int, row_tokens: float) -> float:
    """Return the training FLOPs of a token in a row of `row_tokens`, from a model's configuration."""
    config = config.get_text_config()
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    # An embedding is looked up; tied to the output layer, the same weights are multiplied with there.
    looked_up = 0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size
    attention = 12 * config.num_hidden_layers * config.num_attention_heads * head * row_tokens
    return float(6 * (parameters - looked_up) + attention)
