"""Prune: a smaller student cut out of a decoder by keeping some of its layers.

Promises that kept layers, embeddings and head are the model's own weights, bit for bit, that the folder it writes is a
normal model folder which loads without a missing or a spare weight, and that it appears whole or not at all. Works for
decoders with a plain list of layers (Llama, Qwen, Mistral, Gemma, SmolLM); anything else is refused with a sentence.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from engine.config import Student
from engine.errors import ConfigError
from engine.shards import disk
from trainer.folders import write_folder
from trainer.importance import block_influence, most_influential
from trainer.libraries import load_failure


class Pruned(msgspec.Struct, frozen=True):
    """What was kept."""

    layers: tuple[int, ...]
    of_layers: int
    parameters: int
    of_parameters: int
    influence: tuple[float, ...] = ()
    """Of every layer of the whole model, where it was measured."""


def prune(
    model: str, target: Path, layers: int | Sequence[int] | None, rows: Sequence[Sequence[int]] | None = None
) -> Pruned:
    """Write a model with fewer layers, and its tokenizer, to a folder.

    With rows of token ids, the layers that influence these most are kept; else evenly spaced ones.

    Raises: ConfigError where student.layers does not fit or the model is no plain decoder, MissingError where it does
    not load.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with load_failure("student.model", model):
        whole = AutoModelForCausalLM.from_pretrained(model, dtype="auto")
        tokenizer = AutoTokenizer.from_pretrained(model)
    decoder_layers = _layers(whole, model)
    before, total = whole.num_parameters(), len(decoder_layers)
    kept = choose_layers(total, layers)
    influence: tuple[float, ...] = ()
    if rows is not None:
        influence = block_influence(_on_gpu(whole), decoder_layers, rows)
        kept = most_influential(influence, len(kept))
    _cut(whole, kept)
    _check_loads(whole, model)
    with disk(target), write_folder(target) as folder:
        whole.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return Pruned(kept, total, whole.num_parameters(), before, influence)


def check_student(student: Student) -> None:
    """Check that the keys about layers go together.

    Raises: ConfigError where one of them would do nothing.
    """
    if student.init == "model" and student.layers is not None:
        raise ConfigError("student.layers cuts nothing while student.init = model; set student.init = prune")
    if student.layers_by == "importance" and student.init == "model":
        raise ConfigError("student.layers_by = importance cuts nothing while student.init = model; set it to prune")
    if student.layers_by == "importance" and isinstance(student.layers, tuple):
        raise ConfigError(
            "student.layers names the layers to keep, so student.layers_by = importance has none to choose; "
            "give student.layers as a number, or take student.layers_by out"
        )


def choose_layers(total: int, layers: int | Sequence[int] | None) -> tuple[int, ...]:
    """Return the indices to keep: the given ones, or so many evenly spaced ones, first and last always among them.

    Raises: ConfigError where they do not fit into `total` layers.
    """
    if layers is None:
        layers = -(-total // 2)
    if isinstance(layers, int):
        if layers > total:
            raise ConfigError(f"student.layers = {layers}: the model has {total}; keep at most so many")
        if layers == 1:
            return (0,)
        return tuple(round(place * (total - 1) / (layers - 1)) for place in range(layers))
    chosen = tuple(layers)
    if not chosen or max(chosen) >= total or list(chosen) != sorted(set(chosen)):
        raise ConfigError(
            f"student.layers = {list(chosen)}: give rising layer numbers from 0 to {total - 1}, each once"
        )
    return chosen


def _on_gpu(model: Any) -> Any:
    """Move a model to where looking at it is fast."""
    import torch

    return model.to("cuda") if torch.cuda.is_available() else model


def _layers(model: Any, name: str) -> Any:
    """Return the list of decoder layers."""
    from torch.nn import ModuleList

    layers = getattr(getattr(model, "model", None), "layers", None)
    if not isinstance(layers, ModuleList) or len(layers) != getattr(model.config, "num_hidden_layers", None):
        raise ConfigError(
            f"student.init = prune: {name} ({type(model).__name__}) has no plain list of decoder layers "
            "at model.layers; set student.init = model, or take a Llama- or Qwen-style model"
        )
    return layers


def cut_config(config: Any, kept: Sequence[int]) -> None:
    """Make a configuration say that only these layers are kept, in its per-layer lists too."""
    total = config.num_hidden_layers
    for key, value in config.to_dict().items():
        per_layer = isinstance(value, list | tuple) and len(value) == total and ("layer" in key or "block" in key)
        if per_layer:
            setattr(config, key, [value[index] for index in kept])
    config.num_hidden_layers = len(kept)


def _cut(model: Any, kept: Sequence[int]) -> None:
    from torch.nn import ModuleList

    model.model.layers = ModuleList(model.model.layers[index] for index in kept)
    cut_config(model.config, kept)


def _check_loads(model: Any, name: str) -> None:
    """Compare the cut weights with those that a model of the cut configuration has: same names, same shapes.

    They differ where a layer's kind depends on its number in a way that no per-layer list says (dense first layers of
    a mixture of experts, say); such a model would load with layers of noise.
    """
    import torch

    with torch.device("meta"):
        expected = type(model)(model.config).state_dict()
    if {key: value.shape for key, value in model.state_dict().items()} != {
        key: value.shape for key, value in expected.items()
    }:
        raise ConfigError(
            f"student.init = prune: the layers of {name} ({type(model).__name__}) differ from each other in ways its "
            "configuration does not list; keep another choice of student.layers, or take another model"
        )
