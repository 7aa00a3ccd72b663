"""`teacher.replicas = "auto"`: how many, and why."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from engine import replica_count
from engine.backend import make_backend
from engine.config import Sampling, Teacher, load
from engine.errors import ConfigError
from engine.generate import generate
from engine.replica_count import Machine, choose, resolve, weight_bytes
from engine.shards import read_manifest

GIB = 2**30
H100 = Machine(cards=1, card_bytes=80 * GIB, cores=16)
SMALL, LARGE = GIB // 4, 8 * GIB
AUTO = Teacher(model="m", replicas="auto")


@pytest.mark.parametrize(
    ("weights", "changes", "count", "why"),
    [
        (SMALL, {}, 4, "cores"),
        (SMALL, {"cores": 64}, 4, "what was measured to scale"),
        (SMALL, {"cores": 9}, 2, "cores"),
        (SMALL, {"cores": 2}, 1, "at least one"),
        (SMALL, {"card_bytes": 24 * GIB}, 2, "memory"),
        (SMALL, {"card_bytes": 6 * GIB}, 1, "at least one"),
        (SMALL, {"card_bytes": None}, 1, "the driver does not say"),
        (LARGE, {}, 1, "weights of 8.0 GiB fill a card alone"),
        (None, {}, 1, "not known before it is downloaded"),
        (SMALL, {"cards": 0, "card_bytes": None}, 1, "there is no card"),
        (LARGE, {"cards": 4}, 4, "4 groups of cards, 1 on each"),
        (SMALL, {"cards": 4, "cores": 64}, 16, "4 groups of cards, 4 on each"),
        (SMALL, {"cards": 4}, 4, "4 groups of cards, 1 on each"),
    ],
)
def test_by_size_memory_and_cores(weights: int | None, changes: dict[str, int], count: int, why: str) -> None:
    found, reason = choose(AUTO, weights, msgspec.structs.replace(H100, **changes))
    assert found == count
    assert why in reason


def test_a_model_over_several_cards_is_one_a_group() -> None:
    spread = Teacher(model="m", replicas="auto", tensor_parallel_size=2)
    assert choose(spread, SMALL, msgspec.structs.replace(H100, cards=4))[0] == 2
    assert choose(spread, SMALL, msgspec.structs.replace(H100, cards=2))[0] == 1


def test_sizes_are_read_from_the_weights_files(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert weight_bytes(Teacher(model=str(tmp_path))) is None
    for name in ("a.safetensors", "b.safetensors"):
        (tmp_path / name).write_bytes(b"\0" * 1000)
    assert weight_bytes(Teacher(model=str(tmp_path))) == 2000


def test_with_cards_it_is_resolved_and_a_number_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "a.safetensors").write_bytes(b"\0" * 1000)
    monkeypatch.setattr(replica_count, "this_machine", lambda: H100)
    teacher, why = resolve(Teacher(model=str(tmp_path), replicas="auto"))
    assert (teacher.replicas, teacher.replica_count) == (4, 4)
    assert "16 cores" in why
    assert resolve(Teacher(model=str(tmp_path), replicas=7)) == (Teacher(model=str(tmp_path), replicas=7), "")


async def test_without_a_card_it_is_one_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert resolve(AUTO)[0].replicas == 1
    backend = make_backend(AUTO, Sampling())
    assert "teacher.replicas = auto: 1 (there is no card" in capsys.readouterr().err
    assert "no card" in str(backend._chosen)  # type: ignore[attr-defined]


def test_a_run_says_it_and_may_go_on_with_another_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    templates = Path(__file__).resolve().parent.parent / "data" / "templates" / "echo.toml"
    overrides = ["teacher.backend=echo", "prompts.count=80", f"prompts.templates={templates}"]
    generate(load(None, [*overrides, "teacher.replicas=auto"]), folder)
    assert "teacher.replicas = auto: 1 (teacher.backend is echo)" in capsys.readouterr().err
    generate(load(None, [*overrides, "teacher.replicas=2"]), folder)
    assert read_manifest(folder).finished


def test_words_other_than_auto_are_refused() -> None:
    with pytest.raises(ConfigError, match="replicas"):
        load(None, ["teacher.replicas=many"])
    assert Teacher().replica_count == 1
