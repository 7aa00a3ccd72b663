"""The compiled kernel: its image in the cache, checked and mapped.

The image is made once for each version of the kernel and each kind of processor. One that is damaged is made again.
Where none can be had (another system than Linux on x86-64, no numba, a cache that must not hold programs) there is no
kernel, and the filter does the same in Python.
"""

from __future__ import annotations

import ctypes
import importlib.util
import mmap
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path

import xxhash

from engine.models import cache_folder
from engine.progress import note
from engine.room import address_of

CACHE = "POTSTILL_CACHE"
SWITCH = "POTSTILL_NATIVE"
"""Environment variable: `0` is never to use the kernel."""
HEADER_BYTES = 64
_MAGIC = b"potstill"

Run = Callable[[int, int], int]
"""Does a piece of work (`engine.native.kernel`) with the parameters at an address; lets other threads run."""


def load_kernel(*, build: bool) -> Run | None:
    """Return the kernel, or None; `build` says that it may be compiled now, which takes about ten seconds."""
    if os.environ.get(SWITCH) == "0" or platform.system() != "Linux" or platform.machine() != "x86_64":
        return None
    path = cache_folder() / "native" / f"{_key()}.image"
    found = _map(path)
    if found is None and build:
        if not _is_whole(path) and not _build(path):
            return None
        found = _map(path)
        if found is None:
            note(f"{path.parent} must not hold programs; the filter runs in Python until {CACHE} names another folder")
    return found


def pack_image(code: bytes, entry: int) -> bytes:
    """Return an image: what it is, its checksum, where the function begins, the code."""
    digest = xxhash.xxh3_128_digest(entry.to_bytes(8, "little") + code)
    return (_MAGIC + digest + entry.to_bytes(8, "little")).ljust(HEADER_BYTES, b"\0") + code


def _is_whole(path: Path) -> bool:
    """Say whether a file is an image as it was written, by this user."""
    try:
        data, owner = path.read_bytes(), path.stat().st_uid
    except OSError:
        return False
    code, entry = data[HEADER_BYTES:], int.from_bytes(data[24:32], "little")
    return owner == os.getuid() and data == pack_image(code, entry)


def _key() -> str:
    """Return a name for this kernel on this kind of processor."""
    digest = xxhash.xxh3_128()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("model name", "flags")):
            digest.update(line.encode())
        elif not line:
            break
    return digest.hexdigest()


def _map(path: Path) -> Run | None:
    if not _is_whole(path):
        return None
    try:
        with path.open("rb") as file:
            image = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_EXEC)
    except (OSError, ValueError):
        return None
    entry = int.from_bytes(image[24:32], "little")
    address = address_of(image) + HEADER_BYTES + entry
    kind = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
    function = kind(address)

    def run(work: int, q: int, _image: mmap.mmap = image) -> int:
        result = ctypes.c_int64()
        function(ctypes.addressof(result), None, work, q)
        return result.value

    return run


def _build(path: Path) -> bool:
    """Compile the kernel into a file and say whether it went well."""
    import subprocess
    import tempfile

    if importlib.util.find_spec("numba") is None:
        note("pip install 'potstill[fast]' lets the filter run compiled: two to three times as fast, same rows")
        return False
    note("compiling the filter's inner loop, once on this machine (about ten seconds) ...")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            made = Path(folder) / path.name
            command = [sys.executable, "-m", "engine.native.build", str(made)]
            root = str(Path(__file__).resolve().parents[2])
            done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
            if done.returncode == 0:
                made.replace(path)
                return True
            said = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
    except OSError as error:
        said = str(error)
    note(f"it cannot be compiled here ({said}); the filter does the same in Python, a few times slower")
    return False
