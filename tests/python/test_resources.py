"""What the system refuses: reads and writes that fail, files that vanish, limits of memory, descriptors, CPUs and threads.

Each case is a process of its own, since limits and the layer over its files are for good. PACELINE_TEST_SCALE multiplies the places tried.
"""

import json
import os
import pathlib
import subprocess
import sys

import paceline
import pytest

BUILD = pathlib.Path(__file__).resolve().parents[2] / "build/test"
SCALE = float(os.environ.get("PACELINE_TEST_SCALE", "1"))

START = """
import ctypes, json, os, pathlib, resource, shutil, sys, threading
import paceline
said = []
directory = pathlib.Path(sys.argv[1])

def attempt(**options):
    '''What an engine over the copied pair says, or what went wrong.'''
    try:
        with paceline.Engine(directory / "target", directory / "draft", max_model_len=64, warmup=False, **options) as engine:
            return list(engine.generate([1, 2, 3], max_tokens=6, ignore_eos=True).token_ids)
    except (paceline.ModelFileError, paceline.CapacityError, paceline.DeviceError, MemoryError, ValueError, RuntimeError, OSError) as error:
        return f"{type(error).__name__}: {error}"
"""
LAYER = START + """
layer = ctypes.CDLL(None)
layer.failing_files_arm.argtypes = [ctypes.c_char_p, ctypes.c_long, ctypes.c_int]
ONCE, EVER, SHORT, FULL = range(4)

def armed(where, n, mode, **options):
    layer.failing_files_arm(str(where).encode(), n, mode)
    result = attempt(**options)
    seen = layer.failing_files_seen()
    layer.failing_files_arm(b"", 0, ONCE)
    return result, seen
"""


@pytest.fixture
def pair(tmp_path):
    """The bundled pair, as files of this test's own."""
    for source in paceline.demo_pair():
        folder = tmp_path / "pair" / source.name
        folder.mkdir(parents=True)
        for file in source.iterdir():
            if file.is_file():
                (folder / file.name).write_bytes(file.read_bytes())
    return tmp_path / "pair"


def run(code, directory, *arguments, layer=False, limit=120):
    """What the code printed as JSON. A process that dies, or does not end, fails the test."""
    environment = os.environ | ({"LD_PRELOAD": str(BUILD / "libfailing_files.so")} if layer else {})
    done = subprocess.run([sys.executable, "-c", code + "\nprint(json.dumps(said))", str(directory), *map(str, arguments)],
                          capture_output=True, text=True, timeout=limit, env=environment)
    assert done.returncode == 0, f"status {done.returncode}: {done.stderr[-2000:]}"
    return json.loads(done.stdout.splitlines()[-1])


FAILING_READS = LAYER + """
whole, reads = armed(directory, 1 << 30, ONCE)
step = max(1, reads // int(sys.argv[2]))
for mode in (ONCE, EVER):
    for n in range(1, reads + 1, step):
        said.append((n, mode, *armed(directory, n, mode)))
said.append(("whole", whole, reads, attempt()))
"""


def test_a_read_that_fails_is_named(pair):
    *failures, (_, whole, reads, afterwards) = run(FAILING_READS, pair, int(20 * SCALE), layer=True)
    assert isinstance(whole, list) and len(whole) == 6 and reads > 20 and afterwards == whole  # as if nothing had been
    assert len(failures) >= 30
    for n, mode, result, seen in failures:
        assert seen >= n, f"read {n} was not made"
        assert isinstance(result, str) and result.startswith("ModelFileError") and str(pair) in result, f"read {n}, mode {mode}: {result}"


SHORT_READS = LAYER + """
said.append(attempt())
said.append(armed(directory, 1, SHORT))
"""


def test_short_reads_are_no_error(pair):
    whole, (result, seen) = run(SHORT_READS, pair, layer=True)
    assert isinstance(whole, list) and seen > 20
    assert result == whole


FULL_DISK = LAYER + """
cache = directory / "cache"
said.append(attempt(weights_cache=str(cache)))
shutil.rmtree(cache)
for n in (1, 2):
    result, seen = armed(cache, n, FULL, weights_cache=str(cache))
    said.append((n, result, seen, sorted(each.name for each in cache.iterdir()) if cache.exists() else [], attempt(weights_cache=str(cache))))
    shutil.rmtree(cache)
"""


def test_a_full_disk_costs_the_cache_only(pair):
    """Packed weights that cannot be written are a note; no half of a file stays."""
    whole, *attempts = run(FULL_DISK, pair, layer=True)
    assert isinstance(whole, list)
    for n, result, seen, left, afterwards in attempts:
        assert result == whole and seen >= n and afterwards == whole
        assert len(left) < n and all(name.endswith(".packed") for name in left), left  # what was written before is whole


VANISHING = START + """
import paceline.loading.checkpoint as checkpoint
victim, read = directory / sys.argv[2], checkpoint.os.preadv

def vanishing(*arguments):
    victim.unlink(missing_ok=True)
    checkpoint.os.preadv = read
    return read(*arguments)

checkpoint.os.preadv = vanishing
said.append(attempt())
said.append(attempt())
"""


@pytest.mark.parametrize("file", ["draft/model.safetensors", "draft/config.json", "target/tokenizer.json"])
def test_a_checkpoint_that_vanishes_is_named(pair, file):
    """While its tensors are read: whoever holds it open goes on, and the next start says what is missing."""
    first, second = run(VANISHING, pair, file)
    assert isinstance(first, list) or (first.startswith("ModelFileError") and str(pair) in first), first
    if file.endswith("tokenizer.json"):
        assert isinstance(second, list) or str(pair) in second, second
    else:
        assert second.startswith("ModelFileError") and file.split("/")[1] in second, second


ADDRESS_SPACE = START + """
said.append(attempt(num_threads=2))
with open("/proc/self/statm") as file:
    now = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + int(sys.argv[2]), resource.RLIM_INFINITY))
said.append(attempt(num_threads=2, kv_cache_tokens=200_000))
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
said.append(attempt(num_threads=2))
"""


@pytest.mark.parametrize("megabytes", [0, 1, 3, 8, 20, 50, 120, 400, 4000])
def test_any_limit_of_address_space_is_an_error_or_enough(pair, megabytes):
    whole, limited, afterwards = run(ADDRESS_SPACE, pair, megabytes << 20)
    assert isinstance(whole, list) and afterwards == whole
    assert limited == whole or (isinstance(limited, str) and limited.split(":")[0] in (
        "CapacityError", "MemoryError", "ModelFileError", "RuntimeError", "OSError")), limited
    if megabytes == 0:
        assert limited != whole
    if megabytes == 4000:
        assert limited == whole


DESCRIPTORS = START + """
said.append(attempt())
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
for spare in range(0, 8):
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + spare, hard))
    said.append(attempt())
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
said.append(attempt())
said.append(len(os.listdir("/proc/self/fd")))
attempt()
said.append(len(os.listdir("/proc/self/fd")))
"""


def test_descriptors_may_run_out(pair):
    whole, *limited, afterwards, before, after = run(DESCRIPTORS, pair)
    assert isinstance(whole, list) and afterwards == whole and before == after
    assert any(result != whole for result in limited) and limited[-1] == whole
    for result in limited:
        assert result == whole or result.split(":")[0] in ("ModelFileError", "OSError", "RuntimeError", "CapacityError"), result


CONTROL_GROUP = START + """
group = pathlib.Path(sys.argv[2])
said.append(attempt())
(group / "cgroup.procs").write_text(str(os.getpid()))  # what it holds by now is not counted
(group / sys.argv[3]).write_text(str(int(sys.argv[4]) << 20))
said.append(attempt(kv_cache_tokens=1_000_000))
said.append(attempt())
(group.parent / "cgroup.procs").write_text(str(os.getpid()))
said.append(attempt(kv_cache_tokens=1_000_000))
"""


@pytest.fixture
def control_group(request):
    """(a group for one process, its file of the limit) of either version: of memory, or of what the test names."""
    what, limits = getattr(request, "param", ("memory", ("memory.limit_in_bytes", "memory.max")))
    for parent, limit in zip((pathlib.Path("/sys/fs/cgroup", what), pathlib.Path("/sys/fs/cgroup")), limits, strict=True):
        group = parent / f"paceline-test-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            if (group / limit).exists():
                yield group, limit
                return
        finally:
            group.rmdir()
    pytest.skip(f"no control group of {what} can be made here")


@pytest.mark.parametrize("megabytes", [64, 200])
def test_a_control_group_s_memory_is_all_there_is(pair, control_group, megabytes):
    """More would end the process, so it is refused before it is taken; what fits runs."""
    group, limit = control_group
    whole, refused, small, free = run(CONTROL_GROUP, pair, group, limit, megabytes)
    assert isinstance(whole, list) and free == whole  # outside the group there is room
    assert isinstance(refused, str) and refused.startswith("CapacityError"), refused
    assert small == whole if megabytes == 200 else small == whole or small.startswith("CapacityError"), small


QUOTA = START + """
group = pathlib.Path(sys.argv[2])
said.append(paceline.Engine.plan(directory / "target").fits and len(os.sched_getaffinity(0)))
(group / "cgroup.procs").write_text(str(os.getpid()))
(group / sys.argv[3]).write_text("50000" if sys.argv[3].endswith("us") else "50000 100000")
with paceline.Engine(directory / "target", warmup=False) as engine:
    said.append([engine.info["num_threads"], list(engine.generate([1, 2, 3], max_tokens=4).token_ids)])
(group.parent / "cgroup.procs").write_text(str(os.getpid()))
with paceline.Engine(directory / "target", warmup=False) as engine:
    said.append([engine.info["num_threads"], list(engine.generate([1, 2, 3], max_tokens=4).token_ids)])
"""


@pytest.mark.parametrize("control_group", [("cpu", ("cpu.cfs_quota_us", "cpu.max"))], indirect=True, ids=["cpu"])
def test_a_control_group_s_quota_is_the_number_of_threads(pair, control_group):
    """Half a core: one thread, where more would be stopped in the middle of each pass."""
    cores, (few, text), (many, same) = run(QUOTA, pair, *control_group)
    assert (few, many) == (1, cores) and text == same


ONE_CPU = START + """
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
for threads in (None, 1, 4):
    said.append(attempt(num_threads=threads))
with paceline.Engine(directory / "target", warmup=False) as engine:
    said.append(engine.info["num_threads"])
said.append(len(os.sched_getaffinity(0)))
"""


def test_one_cpu_is_enough(pair):
    *texts, threads, cpus = run(ONE_CPU, pair)
    assert cpus == threads == 1 and all(text == texts[0] and isinstance(text, list) for text in texts), texts


NO_THREADS = START + """
said.append(attempt(num_threads=1))
if sys.argv[2] == "refused":  # pthread_create needs a stack of its own: no address space, no thread
    threading.stack_size(0)
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_STACK, (1 << 33, resource.RLIM_INFINITY))  # what a new thread asks for
    resource.setrlimit(resource.RLIMIT_AS, (now + (2 << 30), resource.RLIM_INFINITY))
said.append(attempt(num_threads=8))
resource.setrlimit(resource.RLIMIT_STACK, (8 << 20, resource.RLIM_INFINITY))
said.append(attempt(num_threads=2))
"""


@pytest.mark.parametrize("how", ["allowed", "refused"])
def test_threads_that_cannot_be_started(pair, how):
    """The pool says that it has no thread, or does without: it does not wait for one that will never come."""
    alone, eight, afterwards = run(NO_THREADS, pair, how)
    assert isinstance(alone, list) and afterwards == alone
    assert eight == alone or (how == "refused" and isinstance(eight, str)), eight
