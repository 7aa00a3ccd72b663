"""Bytes at addresses: what the kernels are written in. `build` replaces each of these by one or two instructions.

Nothing here checks an address. Buffers end in `PADDING` further bytes that may be read, so that 32 can be at once.
"""

from __future__ import annotations

import ctypes
from typing import Any

PADDING = 64
"""Bytes behind the end of every buffer that may be read or overwritten."""
WIDE = 32
"""Bytes that one wide instruction looks at."""
QUOTE, BACKSLASH, NEWLINE = ord('"'), ord("\\"), ord("\n")


def u64(value: int) -> Any:
    """Return a number for arithmetic that wraps; the kernels never mix it with plain numbers."""
    # Here: what only runs compiled does without NumPy.
    import numpy as np

    return np.uint64(value)


def load8(address: int) -> int:
    """Return one byte."""
    return int(ctypes.c_uint8.from_address(address).value)


def load32(address: int) -> int:
    """Return four bytes as a plain number."""
    return int(ctypes.c_uint32.from_address(address).value)


def word(address: int) -> int:
    """Return eight bytes as a signed plain number."""
    return int(ctypes.c_int64.from_address(address).value)


def load64(address: int) -> Any:
    """Return eight bytes as a u64."""
    return u64(ctypes.c_uint64.from_address(address).value)


def store8(address: int, value: int) -> int:
    """Write the low byte of a number."""
    ctypes.c_uint8.from_address(address).value = value & 0xFF
    return 0


def put_word(address: int, value: int) -> int:
    """Write a plain number into eight bytes."""
    ctypes.c_int64.from_address(address).value = value
    return 0


def store64(address: int, value: Any) -> int:
    """Write a u64."""
    ctypes.c_uint64.from_address(address).value = int(value)
    return 0


def copy_wide(target: int, source: int) -> int:
    """Copy 32 bytes."""
    ctypes.memmove(target, source, WIDE)
    return 0


def odd_bytes(address: int) -> int:
    """Return which of 32 bytes end or interrupt a JSON string of ASCII: bit n for byte n."""
    return _mask(address, lambda byte: byte < 0x20 or byte >= 0x80 or byte in (QUOTE, BACKSLASH))


def newlines(address: int) -> int:
    """Return which of 32 bytes are newlines."""
    return _mask(address, lambda byte: byte == NEWLINE)


def lowest(mask: int) -> int:
    """Return the number of the lowest bit that is set."""
    return (mask & -mask).bit_length() - 1


def high_product(one: Any, other: Any) -> Any:
    """Return the upper 64 bits of a product of two u64."""
    return u64(int(one) * int(other) >> 64)


def swap64(value: Any) -> Any:
    """Return a u64 with its bytes in the other order."""
    return u64(int.from_bytes(int(value).to_bytes(8), "little"))


def signed(value: Any) -> int:
    """Return the bits of a u64 as a plain number."""
    return int.from_bytes(int(value).to_bytes(8), signed=True)


def stripe(state: int, data: int, secret: int) -> int:
    """Mix 64 bytes of data into the eight words of a running XXH3."""
    for lane in range(8):
        value = int(load64(data + 8 * lane))
        keyed = value ^ int(load64(secret + 8 * lane))
        _add(state + 8 * (lane ^ 1), value)
        _add(state + 8 * lane, (keyed & 0xFFFFFFFF) * (keyed >> 32))
    return 0


def _add(address: int, value: int) -> None:
    store64(address, u64(int(load64(address)) + value & 0xFFFFFFFFFFFFFFFF))


def _mask(address: int, chosen: Any) -> int:
    return sum(1 << place for place in range(WIDE) if chosen(load8(address + place)))


def copy(target: int, source: int, length: int) -> int:
    """Copy bytes, and up to 31 of those behind them; return where the copy ends."""
    done = 0
    while done < length:
        copy_wide(target + done, source + done)
        done += WIDE
    return target + length
