"""The compiled kernel's image: made once, checked before it is used, made again when it is damaged."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from compiled import kernel

from engine.native import build, load
from engine.native.build import NotLinkedError


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give an image in a cache of its own; compiling is replaced by copying it."""
    kernel()
    made = next(path for path in (load.cache_folder() / "native").glob(f"{load._key()}.image"))
    data = made.read_bytes()
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path))

    def copy(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        Path(command[-1]).write_bytes(data)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", copy)
    return tmp_path / "native" / made.name


def test_it_is_made_when_asked_for_and_then_kept(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert load.load_kernel(build=False) is None
    assert load.load_kernel(build=True) is not None
    assert "once on this machine" in capsys.readouterr().err
    assert load.load_kernel(build=False) is not None
    assert capsys.readouterr().err == ""
    assert [path.name for path in image.parent.iterdir()] == [image.name]


@pytest.mark.parametrize("place", [0, 10, 25, 40, 200, -1])
def test_a_damaged_image_is_not_used_and_made_again(image: Path, place: int) -> None:
    load.load_kernel(build=True)
    whole = image.read_bytes()
    damaged = bytearray(whole)
    damaged[place] ^= 1
    if place == 40:
        damaged = damaged[:1000]
    image.write_bytes(damaged)
    assert load.load_kernel(build=False) is None
    assert load.load_kernel(build=True) is not None
    assert image.read_bytes() == whole


def test_an_empty_image_is_not_used(image: Path) -> None:
    image.parent.mkdir(parents=True)
    image.touch()
    assert load.load_kernel(build=False) is None


def test_a_folder_that_must_not_hold_programs_is_told(
    image: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    load.load_kernel(build=True)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("noexec")

    monkeypatch.setattr(load.mmap, "mmap", refuse)
    capsys.readouterr()
    assert load.load_kernel(build=True) is None
    said = capsys.readouterr().err
    assert "must not hold programs" in said
    assert "compiling" not in said


def test_without_numba_the_extra_is_named(
    image: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(load.importlib.util, "find_spec", lambda name: None)
    assert load.load_kernel(build=True) is None
    assert "potstill[fast]" in capsys.readouterr().err
    assert not image.exists()


def test_the_switch_and_a_failed_build_leave_python(
    image: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 1, "", "no numba here\n")
    )
    assert load.load_kernel(build=True) is None
    assert "cannot be compiled here (no numba here)" in capsys.readouterr().err
    monkeypatch.setenv(load.SWITCH, "0")
    assert load.load_kernel(build=True) is None
    assert capsys.readouterr().err == ""


def test_a_run_imports_nothing_large(tmp_path: Path) -> None:
    kernel()
    lines = [
        {"instruction": "a", "output": "fine answer"},
        {"instruction": "a", "output": "fine answer"},
        {"instruction": "a", "output": "no", "rule": "mine", "row_number": 1e9},
        {"instruction": "b", "output": "As an AI language model, I cannot answer"},
        {"instruction": "é", "output": "a \u212aelvin sign", "n": 1e99},
        *({"instruction": "a b c d", "output": f"answer number {number}"} for number in range(60)),
    ]
    data = "\n".join([*map(json.dumps, lines), "", "no row"]).encode()
    (tmp_path / "rows.jsonl").write_bytes(data)
    code = (
        "import sys; from pathlib import Path; from engine.config import Config;"
        "from engine.filter_run import filter_rows;"
        f"found = filter_rows([{str(tmp_path / 'rows.jsonl')!r}], Path({str(tmp_path / 'out')!r}), Config());"
        "print(found['kept'], found['failed'], *found['rejected'].values());"
        "large = {'numpy', 'numba', 'hyperscan', 'ahocorasick_rs', 'email', 'logging', 'engine.filter_native'};"
        "print(large & set(sys.modules))"
    )
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["52 1 1 1 1 10", "{'engine.filter_native'}"]


def test_only_what_is_understood_is_linked() -> None:
    with pytest.raises(NotLinkedError, match="not an object"):
        build.link(b"\x7fELF\x02\x01" + bytes(100), "run")
