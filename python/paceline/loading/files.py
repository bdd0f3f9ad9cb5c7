"""Files of a model directory: regular ones, of a bounded size, that lie in it. Nobody waits for a FIFO or reads a device."""

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from paceline._core import ModelFileError


@contextlib.contextmanager
def opened(path: Path, *, given: bool = False) -> Iterator[tuple[int, os.stat_result]]:
    """(descriptor, status) of a regular file. given: the caller named this very file, so a link may lead anywhere.

    Raises ModelFileError, also for what goes wrong with the descriptor inside."""
    try:
        if not given:
            _refuse_way_out(path)
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a FIFO must not block
    except FileNotFoundError as error:
        raise ModelFileError(f"{path}: expected a regular file, found {'a link to nothing' if path.is_symlink() else 'nothing'}") from error
    except (OSError, ValueError) as error:
        raise ModelFileError(f"{path}: cannot be read: {_reason(error)}") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ModelFileError(f"{path}: expected a regular file, found something else")
        yield descriptor, status
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read: {_reason(error)}") from error
    finally:
        os.close(descriptor)


def read_bytes(path: Path, most: int, *, given: bool = False) -> bytes:
    """A regular file of at most `most` bytes, whatever its size becomes meanwhile."""
    with opened(path, given=given) as (descriptor, status):
        if status.st_size > most:
            raise ModelFileError(f"{path}: expected at most {most} bytes, found {status.st_size}")
        with open(descriptor, "rb", closefd=False) as file:
            data = file.read(most + 1)
    if len(data) > most:
        raise ModelFileError(f"{path}: expected at most {most} bytes, found more")
    return data


def _refuse_way_out(path: Path) -> None:
    """A link may stay in the directory, or lead from a snapshot of the Hugging Face cache into its blobs, which is how that cache
    keeps every file: snapshots/REVISION/NAME -> ../../blobs/HASH."""
    if not path.is_symlink():
        return
    directory, target = path.parent.resolve(), Path(os.path.realpath(path))
    blobs = directory.parent.parent / "blobs" if directory.parent.name == "snapshots" else directory
    if target.parent not in (directory, blobs):
        raise ModelFileError(f"{path}: expected a file of its directory, found a link out of it, to {target}")


def _reason(error: OSError | ValueError) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)
