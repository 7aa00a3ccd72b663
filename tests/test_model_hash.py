"""A model's hash: the same for the same files, another for another fine-tune."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.model_hash import SAMPLE_BYTES, hub_folder, model_hash


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text('{"hidden_size": 8}')
    (tmp_path / "model.safetensors").write_bytes(bytes(range(256)) * 4096)
    (tmp_path / "README.md").write_text("hello")
    return tmp_path


def test_it_is_a_function_of_configuration_and_weights(folder: Path) -> None:
    first = model_hash(folder)
    assert len(first) == 32
    (folder / "README.md").write_text("another text, and a file beside it")
    (folder / "notes.txt").write_text("x")
    assert model_hash(folder) == first
    (folder / "config.json").write_text('{"hidden_size": 9}')
    assert model_hash(folder) != first


@pytest.mark.parametrize("place", [0, 300_000, 2**20 - 1])
def test_a_fine_tune_of_the_same_shape_has_another_hash(folder: Path, place: int) -> None:
    """A fine-tune changes every part of a file; a change of one sampled stretch is enough."""
    first = model_hash(folder)
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    start = max(0, min(place, len(data) - 4 * SAMPLE_BYTES))
    data[start : start + 4 * SAMPLE_BYTES] = b"\xff" * (4 * SAMPLE_BYTES)
    weights.write_bytes(data)
    assert model_hash(folder) != first


def test_names_and_sizes_count(folder: Path) -> None:
    first = model_hash(folder)
    (folder / "adapter_config.json").write_text("{}")
    second = model_hash(folder)
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    third = model_hash(folder)
    (folder / "empty.bin").write_bytes(b"")
    assert len({first, second, third, model_hash(folder)}) == 4


def test_a_folder_is_where_it_is(folder: Path) -> None:
    assert hub_folder(str(folder), None) == folder


@pytest.mark.model
def test_a_model_that_was_never_downloaded_is_nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert hub_folder("nobody/nothing", None) is None
