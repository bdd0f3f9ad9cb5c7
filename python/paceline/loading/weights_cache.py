"""Packed weights kept in a file, so that the next start maps them instead of reading, checking and packing the checkpoint again.

    header     one line of JSON: format, key, bytes, block; padded with spaces to 256 bytes
    checksums  of every block of the weights, little-endian uint64, and a last one of header and checksums
    weights    at the next multiple of 4096, as the backend wants them

The key names everything the bytes depend on: version, dtype, config, and each tensor's file by path, size, time and inode as they were
when its header was read; nothing is written when that is no longer so after loading. A file appears whole or not at all (written beside,
flushed, renamed), and what is cut short, damaged or of another key when a start maps it is not used, but written anew. While it is mapped
it may be removed or replaced by another, which leaves the mapped bytes alone; shortening or overwriting it in place changes the weights
in use or ends the process with SIGBUS.
"""

import contextlib
import dataclasses
import hashlib
import json
import mmap
import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from paceline import _core
from paceline.loading.checkpoint import Checkpoint, core_config, load_weights
from paceline.loading.files import opened
from paceline.loading.safetensors import FileState

FORMAT = 1
HEADER = 256
BLOCK = 4 << 20
PART = ".packed.part"
"""How the name of a file ends that is still being written."""
DAY = 86_400


def default_directory() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "paceline"


def load_cached_weights(directory: Path, backend: _core.Backend, checkpoint: Checkpoint, dtype: str) -> tuple[_core.Weights, str | None]:
    """(weights, note): from the directory's file, or from the checkpoint and then into that file. Trouble with the file is a note."""
    key = weights_key(checkpoint, dtype)
    path = directory / f"{checkpoint.directory.name[:40]}-{dtype}-{key[:16]}.packed"
    packed, why = _mapped(path, key)
    if packed is not None:
        try:
            return _core.Weights(backend, core_config(checkpoint), dtype, str(path), packed), None
        except _core.ModelFileError:  # checked and of the right key, but of another size
            why = "does not fit"
    weights = load_weights(backend, checkpoint, dtype)
    found = f"{why} and " if why else ""
    try:
        changed = next((file for file, state in checkpoint.files.items() if _state(file) != state), None)
        if changed is not None:
            return weights, f"weights_cache: {path} {found}is not written: {changed} changed while it was read"
        _write(path, key, weights.packed())
    except OSError as error:
        return weights, f"weights_cache: {path} {found}cannot be written: {error.strerror}"
    return weights, why and f"weights_cache: {path} {why}; written anew"


def weights_key(checkpoint: Checkpoint, dtype: str) -> str:
    """Of all that packed weights depend on, the checkpoint's files by their state."""
    parts = [FORMAT, dtype, dataclasses.asdict(checkpoint.config)]
    parts += [[str(file.resolve()), *state] for file, state in sorted(checkpoint.files.items())]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _state(file: Path) -> FileState | None:
    try:
        return FileState.of(file.stat())
    except OSError:
        return None


def _header(key: str, nbytes: int) -> bytes:
    return json.dumps({"format": FORMAT, "key": key, "bytes": nbytes, "block": BLOCK}).encode().ljust(HEADER)


def _begin(nbytes: int) -> tuple[int, int]:
    """(blocks, where the weights begin)."""
    blocks = -(-nbytes // BLOCK)
    return blocks, -(-(HEADER + 8 * (blocks + 1)) // 4096) * 4096


def _checksums(data: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Of every block, by as many threads as there are cores."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        return np.fromiter(threads.map(_core.checksum, (data[at:at + BLOCK] for at in range(0, len(data), BLOCK))), np.uint64)


def _mapped(path: Path, key: str) -> tuple[NDArray[np.uint8] | None, str | None]:
    """(the weights, None); or (None, what is wrong with a file that is there). Every block is read and checked."""
    try:
        with opened(path, given=True) as (descriptor, _):
            data = np.frombuffer(mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ), np.uint8)
    except (_core.ModelFileError, ValueError):  # ValueError: an empty file
        return None, "cannot be mapped" if os.path.lexists(path) else None
    try:
        nbytes = json.loads(data[:HEADER].tobytes())["bytes"]
        if type(nbytes) is not int or nbytes < 0 or data[:HEADER].tobytes() != _header(key, nbytes):
            return None, "has another format or key"
        blocks, begin = _begin(nbytes)
    except (ValueError, KeyError, TypeError, RecursionError):
        return None, "has no header"
    if len(data) != begin + nbytes:
        return None, f"has {len(data)} bytes instead of {begin + nbytes}"
    table = data[HEADER:HEADER + 8 * (blocks + 1)].view("<u8")
    if _core.checksum(data[:HEADER + 8 * blocks]) != table[-1]:
        return None, "has a damaged table"
    wrong = np.flatnonzero(_checksums(data[begin:]) != table[:-1])
    return (None, f"is damaged in block {wrong[0]} of {blocks}") if len(wrong) else (data[begin:], None)


def _write(path: Path, key: str, packed: NDArray[np.uint8]) -> None:
    _, begin = _begin(len(packed))
    front = _header(key, len(packed)) + _checksums(packed).astype("<u8").tobytes()
    front += _core.checksum(np.frombuffer(front, np.uint8)).to_bytes(8, "little")
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path.parent)
    descriptor, name = tempfile.mkstemp(prefix=path.stem, suffix=PART, dir=path.parent)
    try:
        with open(descriptor, "wb") as file:
            file.write(front.ljust(begin, b"\0"))
            file.write(packed.data)
            file.flush()
            os.fsync(descriptor)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def _remove_leftovers(directory: Path) -> None:
    """Of writers that were killed: nobody has added to them for a day."""
    for part in directory.glob("*" + PART):
        with contextlib.suppress(OSError):  # somebody else's, or already gone
            if time.time() - part.stat().st_mtime > DAY:
                part.unlink()
