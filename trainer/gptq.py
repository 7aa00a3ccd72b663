"""GPTQ: rounding to few bits so that a layer's outputs on given rows change least, one column after the other.

What a rounded column gets wrong is made up for in the columns that are not rounded yet, as far as the layer's inputs
are correlated. Layers are done in order, each on what the rounded ones before it put out. Promises weights that are
exact multiples of their scales, so that rounding them again changes nothing. Knows nothing of files.

Source: Frantar et al., GPTQ, arXiv 2210.17323.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec

BLOCK = 128
"""Columns whose errors are carried into the rest together."""
DAMPING = 0.01
"""Added to the diagonal, as a share of its mean, so that it can be inverted."""
SHRINKS = tuple(1 - step / 20 for step in range(10))
"""Shares of the widest weight that the scale of a group is tried with."""


class Grid(msgspec.Struct, frozen=True):
    """Which values there are: signed integers of so many bits, times a scale for each group of columns."""

    bits: int
    group: int

    @property
    def most(self) -> int:
        return int(2 ** (self.bits - 1)) - 1

    def round(self, values: Any, scale: Any) -> Any:
        """Return the nearest values of the grid; `scale` broadcasts."""
        return (values / scale).round().clamp(-self.most - 1, self.most) * scale

    def scales(self, columns: Any, weight: Any, dtype: Any) -> Any:
        """Return the scale of each row of one group, (rows, 1), that costs the least error weighted by column."""
        import torch

        widest = columns.abs().amax(1, keepdim=True).clamp(min=1e-8) / (self.most + 0.5)
        best, least = widest, torch.full_like(widest, float("inf"))
        for shrink in SHRINKS:
            scale = (widest * shrink).to(dtype).float()
            error = ((self.round(columns, scale) - columns).square() * weight).sum(1, keepdim=True)
            best = torch.where(error < least, scale, best)
            least = torch.minimum(error, least)
        return best


def round_layers(model: Any, rows: Sequence[Sequence[int]], grid: Grid) -> dict[str, Any]:
    """Round every linear layer of a decoder in place; return the scales, (rows, groups), by the layer's name.

    `rows` are token ids. The model is a decoder with its layers at `model.layers`.
    """
    import torch

    scales: dict[str, Any] = {}
    with torch.no_grad():
        states, settings = _layer_inputs(model, rows)
        for number, layer in enumerate(model.model.layers):
            inputs = {name: _Inputs() for name, _ in _linears(layer)}
            with _watched(layer, inputs):
                _forward(layer, states, settings[number])
            for name, linear in _linears(layer):
                scales[f"model.layers.{number}.{name}"] = _round(linear, inputs[name].moment, grid)
            states = _forward(layer, states, settings[number])
    return scales


class _Inputs:
    """The second moment of what a linear layer is given."""

    moment: Any = None

    def add(self, values: Any) -> None:
        values = values.reshape(-1, values.shape[-1]).float()
        product = values.T @ values
        self.moment = product if self.moment is None else self.moment + product


def _linears(layer: Any) -> Iterator[tuple[str, Any]]:
    from torch.nn import Linear

    return ((name, module) for name, module in layer.named_modules() if isinstance(module, Linear))


def _layer_inputs(model: Any, rows: Sequence[Sequence[int]]) -> tuple[list[Any], list[list[dict[str, Any]]]]:
    """Return what the first layer is given for each row, and with which further arguments each layer is called."""
    import torch

    states: list[Any] = []
    settings: list[list[dict[str, Any]]] = [[] for _ in model.model.layers]

    def note(number: int) -> Any:
        def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            settings[number].append({key: value for key, value in kwargs.items() if key != "hidden_states"})
            if number == 0:
                states.append(args[0] if args else kwargs["hidden_states"])

        return hook

    handles = [
        layer.register_forward_pre_hook(note(number), with_kwargs=True)
        for number, layer in enumerate(model.model.layers)
    ]
    for row in rows:
        model.model(torch.tensor([list(row)], device=model.device), use_cache=False)
    for handle in handles:
        handle.remove()
    return states, settings


@contextmanager
def _watched(layer: Any, inputs: dict[str, _Inputs]) -> Iterator[None]:
    handles = [
        linear.register_forward_pre_hook(lambda module, args, name=name: inputs[name].add(args[0]))
        for name, linear in _linears(layer)
    ]
    yield
    for handle in handles:
        handle.remove()


def _forward(layer: Any, states: Sequence[Any], settings: Sequence[dict[str, Any]]) -> list[Any]:
    """Return what a layer makes of each row's states."""
    outputs = [layer(state, **kwargs) for state, kwargs in zip(states, settings, strict=True)]
    return [output[0] if isinstance(output, tuple) else output for output in outputs]


def _round(linear: Any, moment: Any, grid: Grid) -> Any:
    """Round one layer's weight, (rows, columns), in place; return its scales, (rows, groups)."""
    import torch

    weight = linear.weight.data.float()
    dead = moment.diagonal() == 0
    moment.diagonal()[dead] = 1.0
    weight[:, dead] = 0.0
    importance = moment.diagonal().clone()
    moment.diagonal().add_(DAMPING * importance.mean())
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(moment))
    carry = torch.linalg.cholesky(inverse, upper=True)
    rounded, scales = torch.zeros_like(weight), []
    for start in range(0, weight.shape[1], BLOCK):
        end = min(start + BLOCK, weight.shape[1])
        errors = torch.zeros_like(weight[:, start:end])
        for column in range(start, end):
            if column % grid.group == 0:
                group = slice(column, column + grid.group)
                scales.append(grid.scales(weight[:, group], importance[group], linear.weight.dtype))
            rounded[:, column] = grid.round(weight[:, column], scales[-1][:, 0])
            error = (weight[:, column] - rounded[:, column]) / carry[column, column]
            weight[:, column:end] -= error[:, None] * carry[column, column:end]
            errors[:, column - start] = error
        weight[:, end:] -= errors @ carry[start:end, end:]
    linear.weight.data = rounded.to(linear.weight.dtype)
    return torch.cat(scales, dim=1)
