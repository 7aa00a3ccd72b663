"""One file a consumer: adding an exporter is adding a file here that defines `EXPORTER`, and nothing else."""

from __future__ import annotations

import importlib
import pkgutil

from engine.bundle import Exporter


def names() -> list[str]:
    """Return the names of the exporters without importing them."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def exporters() -> dict[str, Exporter]:
    """Return every exporter under the name of its module."""
    return {name: importlib.import_module(f"{__name__}.{name}").EXPORTER for name in names()}
