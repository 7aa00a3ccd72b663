"""Importance: how much each layer of a decoder changes what passes through it, measured on the run's own rows.

Promises the same numbers for the same model and rows. Knows nothing of pruning: it measures, `trainer.prune` cuts.

Source: block influence, Men et al., "ShortGPT: Layers in Large Language Models are More Redundant Than You Expect",
arXiv 2403.03853, section 3: 1 minus the mean cosine similarity of a layer's input and output, over all positions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

MEASURED_ROWS = 128
"""Rows that are looked at, spread over all; with a few thousand positions the order of layers no longer moves."""


def block_influence(model: Any, layers: Sequence[Any], rows: Sequence[Sequence[int]]) -> tuple[float, ...]:
    """Return the influence of each of the model's decoder layers on rows of token ids, from 0 (none) to 2."""
    import torch

    device = next(model.parameters()).device
    sums = torch.zeros(len(layers), dtype=torch.float64, device=device)
    hooks = [layer.register_forward_hook(_add_to(sums, place), with_kwargs=True) for place, layer in enumerate(layers)]
    model.eval()
    chosen = _spread(rows)
    try:
        # A row at a time: padding would be looked at, too.
        with torch.no_grad():
            for ids in chosen:
                model(input_ids=torch.tensor([list(ids)], device=device), use_cache=False, logits_to_keep=1)
    finally:
        for hook in hooks:
            hook.remove()
    positions = sum(len(ids) for ids in chosen)
    return tuple((1 - sums / positions).tolist())


def most_influential(influence: Sequence[float], count: int) -> tuple[int, ...]:
    """Return the numbers of so many layers with the largest influence, rising; of two equal ones the lower stays."""
    ranked = sorted(range(len(influence)), key=lambda layer: (-influence[layer], layer))
    return tuple(sorted(ranked[:count]))


def _spread(rows: Sequence[Sequence[int]]) -> list[Sequence[int]]:
    """Return at most MEASURED_ROWS rows, at equal distances."""
    count = min(len(rows), MEASURED_ROWS)
    return [rows[place * len(rows) // count] for place in range(count)]


def _add_to(sums: Any, place: int) -> Callable[..., None]:
    """Return a hook that adds the similarity of a layer's input and output, summed over positions."""
    from torch.nn.functional import cosine_similarity

    def hook(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        before = args[0] if args else kwargs["hidden_states"]
        after = output[0] if isinstance(output, tuple) else output
        sums[place] += cosine_similarity(before.float(), after.float(), dim=-1).sum()

    return hook
