"""How a shared library is built to fail closed: an ELF file is read and what it lacks is named. `python tools/hardening.py FILE...`"""

import dataclasses
import pathlib
import struct
import sys

ENTRY_POINTS = {"PyInit__core", "paceline_backend_plugin"}
"""All that our libraries show to the processes they are loaded into."""

PT_DYNAMIC, PT_GNU_STACK, PT_GNU_RELRO = 2, 0x6474E551, 0x6474E552
DT_FLAGS, DT_FLAGS_1, SHT_DYNSYM = 30, 0x6FFFFFFB, 11
DF_BIND_NOW, DF_1_NOW, EXECUTABLE = 8, 1, 1


@dataclasses.dataclass(frozen=True, slots=True)
class Library:
    executable_stack: bool
    relro: bool
    bind_now: bool
    defined: frozenset[str]
    """Names in the dynamic symbol table that others can link to."""
    undefined: frozenset[str]


def read_library(path: pathlib.Path) -> Library:
    """A 64-bit little-endian ELF library."""
    data = path.read_bytes()
    if data[:6] != b"\x7fELF\x02\x01":
        raise ValueError(f"{path}: expected a 64-bit little-endian ELF file")
    offset, size, count = struct.unpack_from("<Q", data, 32)[0], *struct.unpack_from("<HH", data, 54)
    segments = [struct.unpack_from("<IIQQQQQQ", data, offset + i * size) for i in range(count)]

    dynamic = next(s for s in segments if s[0] == PT_DYNAMIC)
    entries = dict(struct.iter_unpack("<QQ", data[dynamic[2]:dynamic[2] + dynamic[5] // 16 * 16]))
    offset, size, count = struct.unpack_from("<Q", data, 40)[0], *struct.unpack_from("<HH", data, 58)
    sections = [struct.unpack_from("<IIQQQQIIQQ", data, offset + i * size) for i in range(count)]
    symbols = next(s for s in sections if s[1] == SHT_DYNSYM)
    names = sections[symbols[6]][4]
    found: dict[bool, set[str]] = {True: set(), False: set()}
    for name, info, _, section, _, _ in struct.iter_unpack("<IBBHQQ", data[symbols[4]:symbols[4] + symbols[5]]):
        if info >> 4 in (1, 2):  # global or weak
            found[section != 0].add(data[names + name:data.index(b"\0", names + name)].decode())
    return Library(
        executable_stack=any(s[1] & EXECUTABLE for s in segments if s[0] == PT_GNU_STACK) or not any(s[0] == PT_GNU_STACK for s in segments),
        relro=any(s[0] == PT_GNU_RELRO for s in segments),
        bind_now=bool(entries.get(DT_FLAGS, 0) & DF_BIND_NOW or entries.get(DT_FLAGS_1, 0) & DF_1_NOW),
        defined=frozenset(found[True]), undefined=frozenset(found[False]))


def lacks(path: pathlib.Path) -> list[str]:
    """What should be otherwise; empty when all is well."""
    library = read_library(path)
    shown = library.defined - ENTRY_POINTS
    return [text for text, wrong in (
        ("its stack may be executed", library.executable_stack), ("no part of it becomes read-only (RELRO)", not library.relro),
        ("its symbols are bound while it runs", not library.bind_now), ("no function has a stack protector", "__stack_chk_fail" not in library.undefined),
        (f"it shows {', '.join(sorted(shown)[:3])}", bool(shown)), ("it shows no entry point", not library.defined & ENTRY_POINTS)) if wrong]


if __name__ == "__main__":
    wrong = {path: lacks(pathlib.Path(path)) for path in sys.argv[1:]}
    for path, texts in wrong.items():
        print(f"{path}: {'; '.join(texts) or 'hardened'}")
    sys.exit(any(wrong.values()))
