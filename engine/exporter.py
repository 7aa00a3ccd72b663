"""Prometheus text on a port of this machine, read from a run's counts at each scrape.

Imports prometheus_client only when asked for; decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from engine.errors import MissingError, UsageError
from engine.tally import Tally


@contextmanager
def metrics_server(port: int | None, tally: Tally) -> Iterator[None]:
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
    registry.register(_Counts(tally))
    try:
        server, thread = start_http_server(port, addr="127.0.0.1", registry=registry)
    except OSError as error:
        raise UsageError(f"--metrics-port {port}: {error.strerror or error}; choose another port") from None
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Counts:
    """A collector in prometheus_client's sense."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily

        tally = self._tally
        outcomes = {"kept": tally.kept, "skipped": tally.skipped, "failed": tally.failed}
        prompts = CounterMetricFamily("potstill_prompts", "Prompts by outcome", labels=["outcome", "rule"])
        for outcome, count in outcomes.items():
            prompts.add_metric([outcome, ""], count)
        for rule, count in tally.rejected.items():
            prompts.add_metric(["rejected", rule], count)
        yield prompts
        tokens = CounterMetricFamily("potstill_tokens", "Tokens by kind", labels=["kind"])
        for kind, count in (
            ("prompt", tally.prompt_tokens),
            ("output", tally.output_tokens),
            ("kept", tally.kept_tokens),
            *((f"saved_{name}", count) for name, count in tally.tokens_saved.items()),
        ):
            tokens.add_metric([kind], count)
        yield tokens
