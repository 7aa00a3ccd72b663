"""What a run says of itself while it goes: metrics.jsonl, the summary, Prometheus."""

import re
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

import orjson
import pytest
from echo_runs import command, settings

from engine.errors import UsageError
from engine.generate import generate
from engine.shards import read_manifest


def test_a_port_that_is_none_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--metrics-port 99999: .*choose another port"):
        generate(settings(), tmp_path / "run", metrics_port=99999)


def test_prometheus_text_while_it_runs(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = [*command(tmp_path / "run", "teacher.echo.tokens_per_s=20000"), "--metrics-port", str(port)]
    process = subprocess.Popen(arguments, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        text, deadline = "", time.monotonic() + 20
        while 'result="kept",template="json"' not in text and time.monotonic() < deadline:
            time.sleep(0.1)
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as response:
                    text = response.read().decode()
            except OSError:
                continue
    finally:
        process.kill()
        process.wait()
    assert 'potstill_prompts_total{outcome="kept"' in text
    assert 'potstill_tokens_total{kind="saved_skipped"}' in text
    assert 'potstill_template_prompts_total{result="kept",template="json"}' in text
    assert "potstill_kept_per_answering_s " in text
    [answered] = re.findall(r"^potstill_answered_tokens_total (\S+)$", text, re.MULTILINE)
    [committed] = re.findall(r'^potstill_tokens_total{kind="output"} (\S+)$', text, re.MULTILINE)
    assert float(answered) >= float(committed) > 0
    assert "potstill_answered_prompts_total " in text


def test_metrics_and_summary_agree(whole: Path) -> None:
    last = orjson.loads((whole / "metrics.jsonl").read_bytes().splitlines()[-1])
    manifest = read_manifest(whole)
    assert manifest.finished
    for key in ("asked", "kept", "rejected", "skipped", "failed", "output_tokens", "tokens_saved", "templates"):
        assert last[key] == manifest.summary[key]
    assert {"rows_per_s", "output_tokens_per_s", "kept_per_s", "kept_per_answering_s", "kept_per_gpu_s"} <= last.keys()
    templates = last["templates"]
    assert sum(one["kept"] for one in templates.values()) == last["kept"]
    assert sum(sum(one.values()) for one in templates.values()) == last["asked"]
