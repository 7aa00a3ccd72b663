from pathlib import Path

import msgspec
import pytest

from engine import config
from engine.errors import ConfigError, MissingError


def write(folder: Path, text: str) -> Path:
    path = folder / "c.toml"
    path.write_text(text)
    return path


def test_shortest_useful_config(tmp_path: Path) -> None:
    text = '[teacher]\nmodel = "a/b"\n[prompts]\ntemplates = "t.toml"\n[student]\nmodel = "c/d"\n'
    loaded = config.load(write(tmp_path, text))
    assert loaded.prompts.templates == str(tmp_path / "t.toml")
    assert loaded.filter.phrases == config.RECIPE_PHRASES
    assert (loaded.filter.min_chars, loaded.filter.max_chars, loaded.filter.cap_per_template) == (5, 800, 50)
    assert (loaded.train.r, loaded.train.alpha, loaded.train.epochs, loaded.train.learning_rate) == (16, 16, 2, 2e-4)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[filter]\nmax_char = 9\n", "unknown key filter.max_char; did you mean max_chars?"),
        ("[fliter]\nmax_chars = 9\n", "unknown key fliter; did you mean filter?"),
        ("[teacher.echo]\nrefusal = 0.1\n", "unknown key teacher.echo.refusal; did you mean refusals?"),
        ("[filter]\nmax_chars = -1\n", "filter.max_chars"),
        ('[sampling]\ntemperature = "hot"\n', "sampling.temperature"),
        ("[teacher]\ntimeout_s = inf\n", "teacher.timeout_s"),
        ('[filter]\ncap_key = "none"\n', "filter.cap_key"),
        ("[filter\n", "not valid TOML"),
    ],
)
def test_refusals_name_the_key(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=r"c\.toml") as caught:
        config.load(write(tmp_path, text))
    assert says in str(caught.value)


def test_overrides_are_read_like_toml(tmp_path: Path) -> None:
    path = write(tmp_path, "[sampling]\ntemperature = 0.7\n")
    overrides = ["sampling.temperature=0", "teacher.model=a/b", 'filter.phrases=["x", "y"]', "teacher.echo.empty=0.5"]
    loaded = config.load(path, overrides)
    assert loaded.sampling.temperature == 0
    assert loaded.teacher.model == "a/b"
    assert loaded.filter.phrases == ("x", "y")
    assert loaded.teacher.echo.empty == 0.5


@pytest.mark.parametrize("override", ["temperature=1", "sampling.temperature", "sampling.heat=1"])
def test_bad_overrides_are_refused(override: str) -> None:
    with pytest.raises(ConfigError):
        config.load(None, [override])


def test_missing_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="no such configuration file"):
        config.load(tmp_path / "none.toml")
    with pytest.raises(MissingError, match="cannot be read"):
        config.load(Path("/proc/self/mem"))


def test_dump_loads_again(tmp_path: Path) -> None:
    loaded = config.load(None, ["filter.max_chars=77", "prompts.count=3"])
    path = tmp_path / "again.toml"
    path.write_bytes(config.dump(loaded))
    assert config.load(path) == loaded


def test_every_field_has_bounds_that_its_default_meets() -> None:
    assert msgspec.convert(msgspec.to_builtins(config.Config()), config.Config) == config.Config()


TOO_MUCH = {
    "teacher.echo.tokens_per_s": 1e-6,
    "teacher.echo.max_num_seqs": 10**9,
    "teacher.max_num_seqs": 10**9,
    "teacher.requests_per_s": 1e-6,
    "teacher.max_in_flight": 10**9,
    "teacher.retries": 10**9,
    "sampling.end_loops.max_pattern_size": 10**9,
    "output.shard_bytes": 10**15,
    "train.r": 10**9,
    "train.processes": 10**6,
    "eval.bootstrap": 10**12,
}
RULES_TOO_MUCH = {
    "repetition": ("words", 10**6),
    "near_duplicate": ("permutations", 1025),
    "semantic": ("memory_rows", 10**9),
    "leak": ("words", 10**6),
}


@pytest.mark.parametrize("key", TOO_MUCH)
def test_what_would_hang_or_take_all_memory_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"{key}: Expected `(int|float)( \| null)?` (<=|>=) [\d.]+$"):
        config.load(None, [f"{key}={TOO_MUCH[key]}"])


@pytest.mark.parametrize("use", RULES_TOO_MUCH)
def test_a_rule_that_would_take_all_memory_is_refused(use: str) -> None:
    key, value = RULES_TOO_MUCH[use]
    rule = {"use": use, key: value} | ({"files": ["x"]} if use == "leak" else {})
    with pytest.raises(ConfigError, match=rf"filter\.rules\[0\]\.{key}: Expected `int` <= \d+$"):
        config.from_mapping({"filter": {"rules": [rule]}}, where="test")
