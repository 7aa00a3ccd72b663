"""GPTQ on a small decoder: exact multiples of the scales, and less changed than plain rounding changes."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from trainer.gptq import Grid, _Inputs, round_layers

pytestmark = pytest.mark.model

GRID = Grid(bits=4, group=32)


def small_model() -> Any:
    import transformers

    transformers.set_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=100,
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        initializer_range=0.3,
    )
    return transformers.LlamaForCausalLM(config)


def rounded_plainly(model: Any) -> Any:
    import torch

    for _, layer in model.model.layers.named_modules():
        if isinstance(layer, torch.nn.Linear):
            groups = layer.weight.data.unflatten(1, (-1, GRID.group))
            scale = groups.abs().amax(2, keepdim=True) / 7.5
            layer.weight.data = GRID.round(groups, scale).flatten(1)
    return model


def test_a_rounded_model_answers_closer_than_one_rounded_plainly() -> None:
    import torch

    model = small_model()
    generator = torch.Generator().manual_seed(1)
    rows = torch.randint(0, 100, (48, 24), generator=generator).tolist()
    unseen = torch.randint(0, 100, (16, 24), generator=generator)
    with torch.no_grad():
        whole = model(unseen).logits
        plain = rounded_plainly(copy.deepcopy(model))(unseen).logits
        scales = round_layers(model, rows, GRID)
        rounded = model(unseen).logits
    assert len(scales) == 2 * 7
    assert (rounded - whole).square().mean() < 0.75 * (plain - whole).square().mean()


def test_weights_are_multiples_of_their_scales() -> None:
    model = small_model()
    scales = round_layers(model, [[1, 2, 3, 4, 5]] * 3, GRID)
    for name, scale in scales.items():
        weight = model.get_submodule(name).weight.data
        assert scale.shape == (weight.shape[0], weight.shape[1] // GRID.group)
        steps = weight.unflatten(1, (-1, GRID.group)) / scale[:, :, None]
        assert (steps - steps.round()).abs().max() < 1e-3
        assert steps.round().min() >= -8
        assert steps.round().max() <= 7


def test_layers_that_are_given_the_same_are_rounded_together() -> None:
    import torch

    layer = small_model().model.layers[0].mlp
    inputs = _Inputs()
    given = [torch.randn(2, 3, 64), torch.randn(1, 5, 64)]
    with inputs.watched(layer), torch.no_grad():
        for values in given:
            layer(values)
        layer.up_proj(given[0].clone())
    assert inputs.alike() == [["gate_proj"], ["up_proj"], ["down_proj"]], "the third call was for one of them only"
    flat = torch.cat([values.flatten(0, 1) for values in given])
    torch.testing.assert_close(inputs.moments["gate_proj"], flat.T @ flat)
    inputs = _Inputs()
    with inputs.watched(layer), torch.no_grad():
        layer(given[0])
    assert inputs.alike() == [["gate_proj", "up_proj"], ["down_proj"]]
