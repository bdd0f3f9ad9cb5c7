"""The header of a safetensors file, read strictly by us and then by the safetensors library: both must accept it.

Layout: 8 bytes of header length (little endian), the header as JSON, then the tensors' bytes without holes. The library alone
lets duplicate keys, ranks of 20 and absurd empty shapes through; we add those checks and it adds a second opinion.
"""

import dataclasses
import math
import os
import struct
from pathlib import Path
from typing import Any, NamedTuple

import safetensors

from paceline._core import ModelFileError
from paceline.loading.files import opened
from paceline.loading.reads import read_exactly
from paceline.loading.strict_json import parse_object, shown

MAX_HEADER = 16 << 20
MAX_TENSORS = 65_536
MAX_RANK = 8
ITEM_SIZES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "F8_E8M0": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2, "U32": 4, "I32": 4, "F32": 4,
    "U64": 8, "I64": 8, "F64": 8}


OTHER_FORMATS = {b"GGUF": "GGUF", b"PK\3\4": "a zip archive, as PyTorch writes", b"\x80": "a pickle", b"\x89HDF": "HDF5"}
"""First bytes of what checkpoints also come as. None of it is ever read."""


class FileState(NamedTuple):
    """What tells that a file is no longer the one that was read."""

    size: int
    mtime_ns: int
    inode: int

    @classmethod
    def of(cls, status: os.stat_result) -> "FileState":
        return cls(status.st_size, status.st_mtime_ns, status.st_ino)


@dataclasses.dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor lies."""

    file: Path
    state: FileState
    """The file's, when its header was read."""
    dtype: str
    """As the file spells it."""
    shape: tuple[int, ...]
    begin: int
    """Byte offset in the file."""
    nbytes: int


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Every tensor of the file. Raises ModelFileError."""
    with opened(path) as (descriptor, status):
        header = _header(path, descriptor, status.st_size)
        tensors = _parse(path, header, FileState.of(status))
    _ask_the_library(path, header, status.st_size, tensors)
    return tensors


def _header(path: Path, descriptor: int, file_size: int) -> bytes:
    """Its length and its first byte are looked at before it is given room."""
    if file_size < 8:
        raise ModelFileError(f"{path}: expected at least 8 bytes, found {file_size}")
    front = read_exactly(descriptor, 9, 0)
    (size,) = struct.unpack("<Q", front[:8].ljust(8, b"\0"))
    if not 2 <= size <= min(MAX_HEADER, file_size - 8):
        raise ModelFileError(f"{path}: expected a header of 2 to {min(MAX_HEADER, file_size - 8)} bytes, found a length of {size}{_other(front)}")
    if front[8:] != b"{":
        raise ModelFileError(f"{path}: expected a header that starts with {{, found {front[8:]!r}{_other(front)}")
    header = read_exactly(descriptor, size, 8)
    if len(header) != size:
        raise ModelFileError(f"{path}: expected a header of {size} bytes, found {len(header)}: the file has become shorter")
    return header


def _other(front: bytes) -> str:
    return next((f": this is {name}" for magic, name in OTHER_FORMATS.items() if front.startswith(magic)), "")


def _parse(path: Path, header: bytes, state: FileState) -> dict[str, StoredTensor]:
    several = header.count(b'"data_offsets"')  # a tensor each, before time is spent on them
    if several > MAX_TENSORS:
        raise ModelFileError(f"{path}: expected at most {MAX_TENSORS} tensors, found {several}")
    entries = parse_object(header, str(path))
    _check_metadata(path, entries.pop("__metadata__", {}))
    if len(entries) > MAX_TENSORS:
        raise ModelFileError(f"{path}: expected at most {MAX_TENSORS} tensors, found {len(entries)}")
    start = 8 + len(header)
    tensors = {name: _tensor(path, name, entry, start, state) for name, entry in entries.items()}
    _check_coverage(path, tensors, start, state.size)
    return tensors


def _ask_the_library(path: Path, header: bytes, file_size: int, tensors: dict[str, StoredTensor]) -> None:
    """A second opinion. The library maps what it opens, and touching a file that has become shorter ends the process (SIGBUS): so it is
    shown the header that we have read, in front of a hole as long as the tensors, in memory that nobody else can shorten."""
    descriptor = os.memfd_create("header")
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(struct.pack("<Q", len(header)) + header)
        os.ftruncate(descriptor, file_size)
        with safetensors.safe_open(f"/proc/self/fd/{descriptor}", framework="np") as opinion:
            names = set(opinion.keys())
    except Exception as error:
        raise ModelFileError(f"{path}: the safetensors library refuses it: {shown(error)}") from error
    finally:
        os.close(descriptor)
    if names != tensors.keys():
        odd = sorted(map(shown, names ^ tensors.keys()))[:3]
        raise ModelFileError(f"{path}: expected the tensors that the safetensors library sees, found a difference: {odd}")


def _check_metadata(path: Path, metadata: object) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ModelFileError(f"{path}: expected __metadata__ to map strings to strings, found something else")


def _tensor(path: Path, name: str, entry: Any, start: int, state: FileState) -> StoredTensor:
    def refuse(expected: str, found: object) -> ModelFileError:
        return ModelFileError(f"{path}: tensor {shown(name)}: expected {expected}, found {shown(found)}")

    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise refuse("dtype, shape and data_offsets", entry)
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_SIZES:
        raise refuse("a known dtype", dtype)
    if not isinstance(shape, list) or len(shape) > MAX_RANK or not all(_is_int(d, 1, 2**40) for d in shape):
        raise refuse(f"a shape of at most {MAX_RANK} positive sizes", shape)
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_int(o, 0, state.size) for o in offsets):
        raise refuse("two data_offsets inside the file", offsets)
    nbytes = math.prod(shape) * ITEM_SIZES[dtype]
    if offsets[1] - offsets[0] != nbytes:
        raise refuse(f"data_offsets of {nbytes} bytes for {dtype} {shape}", offsets)
    return StoredTensor(path, state, dtype, tuple(shape), start + offsets[0], nbytes)


def _is_int(value: object, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most


def _check_coverage(path: Path, tensors: dict[str, StoredTensor], start: int, file_size: int) -> None:
    end = start
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].begin):
        if tensor.begin != end:
            raise ModelFileError(f"{path}: tensor {shown(name)}: expected to begin where the one before ends, {end - start}, found {tensor.begin - start}")
        end += tensor.nbytes
    if end != file_size:
        raise ModelFileError(f"{path}: expected {end} bytes in all, found {file_size}")
