"""What a model is, in one short hash: its configuration, and a sample of every weight file.

Reads at most 256 kB of a file, so that it costs nothing beside starting the model, and still tells two fine-tunes of
one model apart, whose files have the same names, sizes and headers. Knows nothing of libraries that load models.
"""

from __future__ import annotations

import os
from pathlib import Path

import xxhash

SAMPLES = 64
"""Places of a file that are read, spread evenly, its first and last bytes among them."""
SAMPLE_BYTES = 4096
CONFIGS = ("config.json", "adapter_config.json")
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")


def model_hash(folder: Path) -> str:
    """Return the xxh3-128 of a model's or an adapter's folder, in hexadecimal."""
    digest = xxhash.xxh3_128()
    for path in sorted(folder.iterdir()):
        if path.name in CONFIGS:
            digest.update(path.name.encode() + path.read_bytes())
        elif path.suffix in WEIGHTS:
            digest.update(path.name.encode() + _sample(path))
    return digest.hexdigest()


def _sample(path: Path) -> bytes:
    """Return a file's size and its bytes at evenly spread places."""
    size = path.stat().st_size
    with path.open("rb", buffering=0) as file:
        parts = [str(size).encode()]
        for number in range(SAMPLES):
            file.seek(max(0, size - SAMPLE_BYTES) * number // (SAMPLES - 1), os.SEEK_SET)
            parts.append(file.read(SAMPLE_BYTES))
    return b"".join(parts)


def hub_folder(model: str, revision: str | None) -> Path | None:
    """Return where a model is on this disk: a folder, or a Hugging Face id that was downloaded before."""
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
