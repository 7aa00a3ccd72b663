"""Quantise: the student in fewer bits, as compressed-tensors writes it and vLLM serves it.

`fp8` has 8-bit floats with a scale for each row, and inputs scaled as they come, so it needs no data. `w4a16` has
4-bit integers with a scale for each group of columns, rounded on the student's own training rows. Promises that
embeddings and head stay in 16 bits. compressed-tensors is there wherever vLLM is.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

from engine.errors import UsageError
from engine.progress import note
from trainer.examples import read_examples, split
from trainer.gptq import Grid, round_layers
from trainer.merge import load_merged, save_model
from trainer.render import load_chat, render
from trainer.roles import open_rows
from trainer.student import Student

GROUPS = (128, 64, 32)
"""Columns that share a scale, the most first: vLLM has kernels for these."""
BITS = 4
ROWS = 256
"""Training rows that 4-bit weights are rounded on."""
HEAD = "lm_head"
OTHERWISE = "use llm-compressor (pip install llmcompressor, in an environment of its own) on the merged form"


def write_fp8(student: Student, folder: Path) -> dict[str, Any]:
    """Write the student with 8-bit floating-point weights; return what the report says of it.

    Raises: UsageError where the model is a mixture of experts.
    """
    import torch

    model = _load(student, "fp8")
    scheme = _scheme("FP8_DYNAMIC")
    most = torch.finfo(torch.float8_e4m3fn).max
    scales = {name: layer.weight.data.float().abs().amax(1, keepdim=True) / most for name, layer in _linears(model)}
    _write(model, scheme, scales, student, folder)
    return {"scheme": "FP8_DYNAMIC"}


def write_w4a16(student: Student, folder: Path) -> dict[str, Any]:
    """Write the student with 4-bit weights, rounded so that what its layers make of its training rows changes least.

    Raises: UsageError where the model is no plain, dense decoder, or its widths are no multiple of any group.
    """
    import torch

    rows = _training_rows(student)
    model = _load(student, "w4a16")
    if not hasattr(getattr(model, "model", None), "layers"):
        raise UsageError(
            f"w4a16: {type(model).__name__} has no plain list of decoder layers at model.layers; export it as fp8, or "
            f"{OTHERWISE}"
        )
    grid = Grid(BITS, _group(model))
    note(f"export-model  w4a16: rounding to groups of {grid.group} on {len(rows)} training rows")
    scales = round_layers(model.to("cuda" if torch.cuda.is_available() else "cpu"), rows, grid)
    scales, model = {name: scale.cpu() for name, scale in scales.items()}, model.cpu()
    torch.cuda.empty_cache()  # else vLLM, which comes next, finds the card half full
    scheme = _scheme("W4A16")
    scheme.weights.group_size = grid.group
    _write(model, scheme, scales, student, folder)
    return {"scheme": "W4A16", "group": grid.group, "rounded_on_rows": len(rows)}


def _load(student: Student, form: str) -> Any:
    """Return the whole student, all of whose large weights are in linear layers.

    Raises: UsageError where others would stay in 16 bits without a word.
    """
    model = load_merged(student)
    stacked = next((name for name, weight in model.named_parameters() if weight.ndim > 2), None)
    if stacked is not None:
        raise UsageError(f"{form}: no rules here for experts whose weights are one stack ({stacked}); {OTHERWISE}")
    return model


def _scheme(preset: str) -> Any:
    from compressed_tensors.quantization import preset_name_to_scheme

    return preset_name_to_scheme(preset, ["Linear"])


def _write(model: Any, scheme: Any, scales: dict[str, Any], student: Student, folder: Path) -> None:
    """Compress every linear layer but the head with its scales, and write the folder."""
    import torch
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config

    groups = {"group_0": scheme}
    settings = QuantizationConfig(config_groups=groups, ignore=[HEAD], quantization_status="initialized")
    apply_quantization_config(model, settings)
    for name, layer in _linears(model):
        kind = layer.weight_scale.dtype
        # Of a row of zeros, too: 0 / 0 would be written as not a number.
        layer.weight_scale.data = scales[name].clamp(min=torch.finfo(kind).tiny * torch.finfo(kind).eps).to(kind)
    compressor = ModelCompressor.from_pretrained_model(model)
    with redirect_stderr(io.StringIO()):  # its progress bar
        compressor.compress_model(model)
    save_model(model, student, folder)
    compressor.update_config(str(folder))


def _linears(model: Any) -> Iterator[tuple[str, Any]]:
    from torch.nn import Linear

    layers = ((name, module) for name, module in model.named_modules() if isinstance(module, Linear))
    return ((name, module) for name, module in layers if name != HEAD)


def _group(model: Any) -> int:
    """Return the widest group of columns that every layer's width is a multiple of."""
    widths = {layer.weight.shape[1] for _, layer in _linears(model)}
    for group in GROUPS:
        if all(width % group == 0 for width in widths):
            return group
    raise UsageError(
        f"w4a16: the layers have {', '.join(map(str, sorted(widths)))} columns, which do not divide into groups of "
        f"{GROUPS[-1]}; export it as fp8"
    )


def _training_rows(student: Student) -> list[list[int]]:
    """Return token ids of rows that the student was trained on, spread over them."""
    settings = student.config.train
    examples, _ = read_examples(*open_rows(student.data))
    learnt, _ = split(examples, val_fraction=settings.val_fraction, seed=settings.seed)
    chosen = sorted(learnt, key=lambda example: example.id)[:ROWS]
    rendered = render(load_chat(str(student.tokenizer), student.template_kwargs), chosen)
    return [list(row.input_ids) for row in rendered if row.tokens <= settings.max_length]
