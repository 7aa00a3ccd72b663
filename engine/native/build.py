"""Compile the kernel with numba: `python -m engine.native.build FILE` writes an image that `load` can map.

An image is position-independent machine code whose few references to its own constants are resolved here, so that
loading it takes no linker, no LLVM and no numba. Runs in a process of its own: the hundred megabytes that the
compiler needs go with it.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from typing import Any, NamedTuple

from engine.native import commit, hash128, kernel, lines, memory, phrases, table, text, values
from engine.native.load import pack_image

_MODULES = (text, values, hash128, phrases, table, lines, commit)
ALLOCATED, WRITABLE = 2, 1
ABSENT, NOBITS = 0, 8
RELOCATIONS = 4
RELATIVE = (2, 4)
"""ELF's R_X86_64_PC32 and PLT32: a distance of 32 bits."""
ALIGNED = 64


class NotLinkedError(Exception):
    """The object code holds something that this small linker does not know."""


def compile_object() -> tuple[bytes, str]:
    """Return the kernel as object code for this processor, and the name of its function."""
    import llvmlite.binding as llvm
    import numba
    from numba.extending import register_jitable

    from engine.native.instructions import teach

    teach()
    register_jitable(memory.copy)
    for module in _MODULES:
        for value in list(vars(module).values()):
            if callable(value) and getattr(value, "__module__", "") == module.__name__:
                register_jitable(value)
    options: dict[str, Any] = {"error_model": "numpy", "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    compiled = numba.njit("int64(int64,int64)", **options)(kernel.run)
    (result,) = compiled.overloads.values()
    symbol = str(result.fndesc.llvm_func_name)
    module = llvm.parse_assembly(next(iter(compiled.inspect_llvm().values())))
    target = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(),
        features=llvm.get_host_cpu_features().flatten(),
        opt=3,
        reloc="pic",
        codemodel="small",
    )
    return target.emit_object(module), symbol


class _Section(NamedTuple):
    name: int
    kind: int
    flags: int
    address: int
    offset: int
    size: int
    link: int
    info: int
    align: int
    entry: int


def link(code: bytes, symbol: str) -> tuple[bytes, int]:
    """Return the sections of an object file as one image, and where in it the symbol is.

    Raises: NotLinkedError where it refers to anything outside itself or is not ELF for x86-64.
    """
    if code[:6] != b"\x7fELF\x02\x01" or struct.unpack_from("<H", code, 18) != (62,):
        raise NotLinkedError("not an object for 64-bit x86")
    (start,) = struct.unpack_from("<Q", code, 40)
    size, count = struct.unpack_from("<HH", code, 58)
    sections = [_Section(*struct.unpack_from("<IIQQQQIIQQ", code, start + size * number)) for number in range(count)]
    image, places = bytearray(), dict[int, int]()
    for number, section in enumerate(sections):
        if section.flags & ALLOCATED and not section.flags & WRITABLE and section.kind != NOBITS and section.size:
            image += bytes(-len(image) % ALIGNED)
            places[number] = len(image)
            image += code[section.offset : section.offset + section.size]
    symbols = next(section for section in sections if section.kind == 2)
    names = sections[symbols.link]

    def read_symbol(number: int) -> tuple[str, int, int]:
        name, _, _, section, value, _ = struct.unpack_from("<IBBHQQ", code, symbols.offset + 24 * number)
        at = names.offset + name
        return code[at : code.index(b"\0", at)].decode(), section, value

    for section in sections:
        if section.kind != RELOCATIONS or section.info not in places:
            continue
        for number in range(section.size // 24):
            offset, info, addend = struct.unpack_from("<QQq", code, section.offset + 24 * number)
            name, held_by, value = read_symbol(info >> 32)
            if info & 0xFFFFFFFF not in RELATIVE or held_by not in places:
                raise NotLinkedError(f"a reference of type {info & 0xFFFFFFFF} to {name or held_by}")
            at = places[section.info] + offset
            struct.pack_into("<i", image, at, places[held_by] + value + addend - at)
    for number in range(symbols.size // 24):
        name, held_by, value = read_symbol(number)
        if name == symbol and held_by in places:
            return bytes(image), places[held_by] + value
    raise NotLinkedError(f"{symbol} is not in it")


def main(arguments: list[str]) -> None:
    """Write the image."""
    code, entry = link(*compile_object())
    Path(arguments[0]).write_bytes(pack_image(code, entry))


if __name__ == "__main__":
    main(sys.argv[1:])
