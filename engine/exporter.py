"""Prometheus text on a port of this machine, read from a run's counts at each scrape.

Imports prometheus_client only when asked for; decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from engine.errors import MissingError, UsageError
from engine.progress import Progress
from engine.tally import Tally


@contextmanager
def metrics_server(port: int | None, tally: Tally, progress: Progress) -> Iterator[None]:
    """Serve the counts on 127.0.0.1 while the block runs; no port, no server.

    Raises: MissingError without prometheus_client, UsageError where the port is taken.
    """
    if port is None:
        yield
        return
    try:
        from prometheus_client import CollectorRegistry, start_http_server
    except ImportError:
        raise MissingError("--metrics-port needs prometheus_client; pip install prometheus-client") from None
    registry = CollectorRegistry()
    registry.register(_Counts(tally, progress))
    try:
        server, thread = start_http_server(port, addr="127.0.0.1", registry=registry)
    except (OSError, OverflowError) as error:
        raise UsageError(f"--metrics-port {port}: {error}; choose another port") from None
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Counts:
    """A collector in prometheus_client's sense."""

    def __init__(self, tally: Tally, progress: Progress) -> None:
        self._tally = tally
        self._progress = progress

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        tally = self._tally
        prompts = CounterMetricFamily("potstill_prompts", "Prompts by outcome", labels=["outcome", "rule"])
        for outcome, count in {"kept": tally.kept, "failed": tally.failed}.items():
            prompts.add_metric([outcome, ""], count)
        for outcome, by_rule in {"rejected": tally.rejected, "skipped": tally.skipped_by}.items():
            for rule, count in sorted(by_rule.items()):
                prompts.add_metric([outcome, rule], count)
        yield prompts
        yields = CounterMetricFamily(
            "potstill_template_prompts", "Prompts by template: kept, failed, or the rule", labels=["template", "result"]
        )
        for name, one in tally.largest():
            for result, count in sorted(one.results.items()):
                yields.add_metric([name, result], count)
        yield yields
        tokens = CounterMetricFamily("potstill_tokens", "Tokens by kind; saved ones are estimates", labels=["kind"])
        for kind, count in (
            ("prompt", tally.prompt_tokens),
            ("output", tally.output_tokens),
            ("kept", tally.kept_tokens),
            *((f"saved_{name}", count) for name, count in tally.tokens_saved.items()),
        ):
            tokens.add_metric([kind], count)
        yield tokens
        progress = self._progress
        for name, count in {"prompts": progress.answers, "tokens": progress.answered_tokens}.items():
            yield CounterMetricFamily(
                f"potstill_answered_{name}", "Answered since this command began, committed or waiting", value=count
            )
        for name, value in self._progress.goodput().items():
            if value is not None:
                yield GaugeMetricFamily(f"potstill_{name}", "Over the time in which a teacher answered", value=value)
