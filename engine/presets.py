"""Presets of `[train]`: what suits a kind of card, beneath what the user wrote.

    [train]
    preset = "h100"
    epochs = 3            # as written; every key that is written wins over the preset

Promises that a preset is only defaults: a resolved configuration names every value, and loads to itself again.
"""

from __future__ import annotations

from typing import Any

from engine.errors import ConfigError

PRESETS: dict[str, dict[str, Any]] = {
    # 8 to 16 GB and no bfloat16 (T4, V100, RTX 20): weights in 4 bits, computed in float16, the recipe's 8 rows a step.
    "t4": {
        "tuning": "qlora",
        "dtype": "float16",
        "batch_size": 2,
        "gradient_accumulation": 4,
        "max_length": 1024,
        "packing": False,
    },
    # 24 GB (L4, A10, RTX 3090 and 4090): the weights of a student of up to 3 B fit in bfloat16, so the adapter is
    # trained on what it is served on; packed, since short rows are mostly padding.
    "24gb": {
        "tuning": "lora",
        "dtype": "bfloat16",
        "batch_size": 4,
        "gradient_accumulation": 2,
        "max_length": 2048,
        "packing": True,
    },
    # 80 GB (H100, A100): memory is no constraint, so nothing is quantised and no step is split.
    "h100": {
        "tuning": "lora",
        "dtype": "bfloat16",
        "batch_size": 16,
        "gradient_accumulation": 1,
        "max_length": 4096,
        "packing": True,
    },
}


def under(data: dict[str, Any], *, where: str) -> dict[str, Any]:
    """Return a configuration's mapping with the preset that it names beneath what it says.

    Raises: ConfigError where there is no such preset.
    """
    train = data.get("train")
    name = train.get("preset", "") if isinstance(train, dict) else ""
    if not isinstance(train, dict) or name == "":
        return data
    if not isinstance(name, str) or name not in PRESETS:
        raise ConfigError(f"{where}: train.preset = {name!r} is not known; take one of {', '.join(PRESETS)}")
    return {**data, "train": {**PRESETS[name], **train}}
