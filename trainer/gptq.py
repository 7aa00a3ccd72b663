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
ROWS_AT_ONCE = 16
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
            inputs = _Inputs()
            with inputs.watched(layer):
                _forward(layer, states, settings[number])
            for names in inputs.alike():
                linears = [layer.get_submodule(name) for name in names]
                found = _round(linears, inputs.moments[names[0]], grid)
                scales |= {f"model.layers.{number}.{name}": scale for name, scale in zip(names, found, strict=True)}
            states = _forward(layer, states, settings[number])
    return scales


class _Inputs:
    """The second moment of what each linear layer is given."""

    def __init__(self) -> None:
        self.moments: dict[str, Any] = {}
        self._calls: dict[str, list[int]] = {}
        self._last: tuple[int, Any, Any] = (0, None, None)
        """The number of the latest input, itself and its moment."""

    @contextmanager
    def watched(self, layer: Any) -> Iterator[None]:
        """Add up what the linear layers are given meanwhile."""
        handles = [
            linear.register_forward_pre_hook(lambda module, args, name=name: self._add(name, args[0]))
            for name, linear in _linears(layer)
        ]
        yield
        self._last = (0, None, None)
        for handle in handles:
            handle.remove()

    def alike(self) -> list[list[str]]:
        """Return the layers in groups that were given the same: query, key and value, for one."""
        groups: dict[tuple[int, ...], list[str]] = {}
        for name, calls in self._calls.items():
            groups.setdefault(tuple(calls), []).append(name)
        return list(groups.values())

    def _add(self, name: str, values: Any) -> None:
        number, latest, moment = self._last
        if values is not latest:
            flat = values.reshape(-1, values.shape[-1]).float()
            number, moment = number + 1, flat.T @ flat
            self._last = (number, values, moment)
        self._calls.setdefault(name, []).append(number)
        self.moments[name] = self.moments[name] + moment if name in self.moments else moment


def _linears(layer: Any) -> Iterator[tuple[str, Any]]:
    from torch.nn import Linear

    return ((name, module) for name, module in layer.named_modules() if isinstance(module, Linear))


def _layer_inputs(model: Any, rows: Sequence[Sequence[int]]) -> tuple[list[Any], list[list[dict[str, Any]]]]:
    """Return what the first layer is given, and with which further arguments each layer is called.

    Rows of the same length are one batch: a padded one would count what stands for nothing.
    """
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
    by_length: dict[int, list[list[int]]] = {}
    for row in rows:
        by_length.setdefault(len(row), []).append(list(row))
    for batch in by_length.values():
        for start in range(0, len(batch), ROWS_AT_ONCE):
            model.model(torch.tensor(batch[start : start + ROWS_AT_ONCE], device=model.device), use_cache=False)
    for handle in handles:
        handle.remove()
    return states, settings


def _forward(layer: Any, states: Sequence[Any], settings: Sequence[dict[str, Any]]) -> list[Any]:
    """Return what a layer makes of each batch's states."""
    outputs = [layer(state, **kwargs) for state, kwargs in zip(states, settings, strict=True)]
    return [output[0] if isinstance(output, tuple) else output for output in outputs]


def _round(linears: Sequence[Any], moment: Any, grid: Grid) -> Sequence[Any]:
    """Round the weights, (rows, columns) each, of layers that are given the same, in place.

    All at once, since a row's rounding looks at no other row. Returns the scales, (rows, groups) each.
    """
    import torch

    weight, dtype = torch.cat([linear.weight.data.float() for linear in linears]), linears[0].weight.dtype
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
                scales.append(grid.scales(weight[:, group], importance[group], dtype))
            rounded[:, column] = grid.round(weight[:, column], scales[-1][:, 0])
            error = (weight[:, column] - rounded[:, column]) / carry[column, column]
            weight[:, column:end].addr_(error, carry[column, column:end], alpha=-1)
            errors[:, column - start] = error
        weight[:, end:] -= errors @ carry[start:end, end:]
    heights = [len(linear.weight) for linear in linears]
    for linear, part in zip(linears, rounded.to(dtype).split(heights), strict=True):
        linear.weight.data = part.clone()
    found: Sequence[Any] = torch.cat(scales, dim=1).split(heights)
    return found
