"""Runs a target: mutations of its corpus, each timed and weighed; what breaks a promise is a finding, and becomes a file of the corpus."""

import contextlib
import gc
import hashlib
import os
import pathlib
import shutil
import tempfile
import time
from collections.abc import Iterator

from tests.fuzz.mutate import Mutator
from tests.fuzz.targets import DATA, Finding, Target

os.environ["RUST_BACKTRACE"] = "0"  # the tokenizers library panics now and then; naming its frames would take all the time and memory
SECONDS_PER_64_KB = 1.0
MEMORY, MEMORY_PER_BYTE = 16 << 20, 4
LAST = "last input"


@contextlib.contextmanager
def directory() -> Iterator[pathlib.Path]:
    """In memory where the system has that: some thousand small files a second."""
    folder = tempfile.mkdtemp(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
    try:
        yield pathlib.Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def findings(target: Target, seed: int, *, cases: int | None = None, seconds: float = 1e9, scratch: pathlib.Path | None = None,
             corpus: list[bytes] | None = None) -> Iterator[tuple[bytes, str]]:
    """(input, what is wrong) of the corpus itself, then of `cases` mutations or `seconds` of them. scratch: a directory in which the input
    under way is kept, for whoever has to explain the end of this process."""
    known = target.corpus() if corpus is None else corpus
    mutator, until, done = Mutator(seed, known, target.words), time.monotonic() + seconds, 0
    while (done < len(known) + cases if cases is not None else True) and time.monotonic() < until:
        data = known[done] if done < len(known) else mutator.next()
        done += 1
        if scratch:
            (scratch / LAST).write_bytes(data)
        wrong = judged(target, data)
        if wrong:
            yield data, wrong


def judged(target: Target, data: bytes) -> str | None:
    """What is wrong, if anything."""
    with directory() as folder:
        before, start = _reset_peak(), time.thread_time()
        wrong = _promises(target, data, folder)
        seconds, peak = time.thread_time() - start, _peak()
    if wrong is None and seconds > SECONDS_PER_64_KB * max(1.0, len(data) / 65536):
        wrong = f"{seconds:.2f} s for {len(data)} bytes"
    if wrong is None and peak - before > MEMORY + MEMORY_PER_BYTE * len(data):
        wrong = f"{(peak - before) >> 20} MB for {len(data)} bytes"
    return wrong


def _promises(target: Target, data: bytes, folder: pathlib.Path) -> str | None:
    try:
        target.run(data, folder)
    except target.promised as error:
        return None if len(str(error)) < 2000 else f"a message of {len(str(error))} characters"
    except Finding as error:
        return str(error)
    except Exception as error:
        return f"raised {type(error).__name__}: {error}"[:300]
    return None


def _reset_peak() -> int:
    """Bytes in use; the largest number of them is counted anew from here."""
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        gc.collect()  # the peak of the whole process is all there is then
        return max(_peak(), _status("VmRSS"))
    return _status("VmRSS")


def _peak() -> int:
    return _status("VmHWM")


def _status(field: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(field + ":"))


def keep(target: Target, data: bytes) -> pathlib.Path:
    """As a file of the corpus, from now on judged first in every run."""
    path = DATA / target.name / f"found-{hashlib.sha256(data).hexdigest()[:12]}"
    path.write_bytes(data)
    return path
