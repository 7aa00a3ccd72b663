"""The bench of the loop measures a real run, in a process of its own."""

import argparse

from bench.loop import CONFIG, _run


def test_a_run_says_what_it_took() -> None:
    args = argparse.Namespace(config=CONFIG, overrides=["sampling.seed=3"])
    found = _run(args, ["prompts.count=300", "teacher.echo.tokens_per_s=1e9"])
    assert found["asked"] == 300
    assert 100 < found["kept"] <= 300
    assert 15 < found["peak_mb"] < 500
    assert found["cpu_s"] > 0 < found["answering_s"]
