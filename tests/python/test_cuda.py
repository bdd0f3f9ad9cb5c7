"""The CUDA engine from Python, on the host: its sources over stubs of the driver, the runtime and cuBLAS, built with the C++ tests.

Each case is a process of its own: what was once loaded stays loaded.
"""

import json
import os
import pathlib
import subprocess
import sys

import pytest

BUILD = pathlib.Path(__file__).resolve().parents[2] / "build/test"
STUB = {"LD_LIBRARY_PATH": str(BUILD / "stub_libraries"), "PACELINE_CUDA_PLUGIN": str(BUILD / "libpaceline_cuda_stub.so")}


def run(code, **environment):
    """What the code prints as JSON; an error's text where it raised one of ours."""
    wrapped = ("import json, paceline\ntry:\n" + "".join(f"    {line}\n" for line in code.splitlines())
               + "    print(json.dumps(said))\nexcept (RuntimeError, ValueError) as error:\n    print(json.dumps(f'{type(error).__name__}: {error}'))\n")
    done = subprocess.run([sys.executable, "-c", wrapped], capture_output=True, text=True, env=os.environ | environment, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


TEXTS = """
said = {}
for device in ("cuda", "cpu"):
    with paceline.Engine(*paceline.demo_pair(), device=device, dtype="bf16", max_model_len=128) as engine:
        said[device] = {"info": engine.info["device"], "tokens": [], "margins": []}
        for tau in (0, 3):
            result = engine.generate("import os", max_tokens=8, num_speculative_tokens=tau, logprobs=2)
            said[device]["tokens"].append(result.token_ids)
            said[device]["margins"].append([sorted((logprob for _, logprob in each.top), reverse=True) for each in result.logprobs])
        sampled = [engine.generate("class A:", max_tokens=6, temperature=0.8, seed=3, num_speculative_tokens=tau).token_ids for tau in (0, 3)]
        said[device]["sampled"] = sampled
"""


@pytest.mark.slow
def test_the_bundled_pair_on_cuda():
    said = run(TEXTS, **STUB)
    cuda, cpu = said["cuda"], said["cpu"]
    assert cuda["info"].startswith("cuda: stub") and not cpu["info"].startswith("cuda")
    assert cuda["tokens"][0] == cuda["tokens"][1]
    assert cuda["sampled"][0] == cuda["sampled"][1]
    for i, (here, there) in enumerate(zip(cuda["tokens"][0], cpu["tokens"][0], strict=True)):
        if here != there:  # engines add in different orders: they may part where the target hardly prefers one token
            best, second = cpu["margins"][0][i][:2]
            assert best - second < 0.05
            break


FORMATS = """
said = {}
for dtype, draft_dtype in (("bf16", "int4"), ("int8", "int4_g32"), ("int4", "int8")):
    with paceline.Engine(*paceline.demo_pair(), device="cuda", dtype=dtype, draft_dtype=draft_dtype, max_model_len=128) as engine:
        said[dtype] = [engine.generate("import os", max_tokens=6, num_speculative_tokens=tau).token_ids for tau in (0, 3)]
"""


@pytest.mark.slow
def test_integer_weights_on_cuda():
    for plain, speculative in run(FORMATS, **STUB).values():
        assert len(plain) == 6 and plain == speculative


ENGINE = 'said = paceline.Engine(paceline.demo_pair()[0], device={device!r}, max_model_len=64, warmup=False).info["notes"]'


@pytest.mark.parametrize("environment, reason", [
    ({}, "there is no NVIDIA driver"),
    (STUB | {"PACELINE_STUB_DRIVER": "12080 0 1"}, "the NVIDIA driver supports CUDA 12.8, 13.0 is needed"),
    (STUB | {"PACELINE_STUB_DRIVER": "13000 100 0"}, "the NVIDIA driver does not start: CUDA_ERROR_NO_DEVICE"),
    (STUB | {"PACELINE_STUB_DRIVER": "13000 0 0"}, "the NVIDIA driver shows no device"),
    (STUB | {"PACELINE_CUDA_PLUGIN": ""}, "the CUDA plugin is not installed: pip install 'paceline[cuda]'"),
    (STUB | {"PACELINE_CUDA_PLUGIN": "/nowhere/libpaceline_cuda.so"}, "the plugin cannot be loaded: /nowhere/libpaceline_cuda.so"),
    (STUB | {"PACELINE_CUDA_PLUGIN": str(BUILD / "stub_libraries/libcuda.so.1")}, "is not a Paceline plugin"),
])
def test_where_cuda_cannot_run_the_reason_is_given(environment, reason):
    assert reason in run(ENGINE.format(device="cuda"), **environment)
    assert any(note.startswith("device: cpu, since") and reason in note for note in run(ENGINE.format(device="auto"), **environment))
    assert reason in subprocess.run([sys.executable, "-m", "paceline", "doctor"], capture_output=True, text=True, check=True,
                                    env=os.environ | environment).stdout


def test_a_broken_package_with_a_plugin_is_a_reason(tmp_path):
    about = tmp_path / "broken-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[paceline.backends]\ncuda = broken_plugin:library_path\n")
    (tmp_path / "broken_plugin.py").write_text("raise OSError('half of it is here')\n")
    paths = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    said = run(ENGINE.format(device="auto"), **STUB | {"PACELINE_CUDA_PLUGIN": "", "PYTHONPATH": paths})
    assert said == ["device: cpu, since the package that brings the CUDA plugin (broken_plugin:library_path) is broken: "
                    "OSError: half of it is here"]


def test_what_the_cuda_engine_does_not_do_is_refused_by_name():
    engine = "said = paceline.Engine(paceline.demo_pair()[0], device='cuda', {})"
    assert "PACELINE_CUDA_MATMUL must be cublas or unset, got x" in run(engine.format(""), **STUB, PACELINE_CUDA_MATMUL="x")
    assert run(engine.format("weights_cache='x'"), **STUB) == "ValueError: [Engine] weights_cache must be None on device cuda, got 'x'"
    assert run(engine.format("num_threads=2"), **STUB) == "ValueError: [Engine] num_threads must be None on device cuda, got 2"


def test_auto_that_became_cuda_does_without_what_is_the_cpu_s(tmp_path):
    options = f"device='auto', max_model_len=64, num_threads=2, weights_cache={str(tmp_path / 'cache')!r}, warmup=False"
    device, cache, notes = run(f"info = paceline.Engine(paceline.demo_pair()[0], {options}).info\n"
                               "said = [info[name] for name in ('device', 'weights_cache', 'notes')]", **STUB)
    assert device.startswith("cuda: ") and cache is None and not (tmp_path / "cache").exists()
    assert notes == ["num_threads: no effect on device cuda", "weights_cache: not used on device cuda, weights are packed at every start"]


def test_a_device_that_is_full_says_what_to_lower():
    said = run("paceline.Engine(*paceline.demo_pair(), device='cuda', kv_cache_tokens=2**24, kv_dtype='fp32', max_num_seqs=2)", **STUB)
    assert said.startswith(
        "CapacityError: [Engine] no memory on device cuda for kv_cache_tokens=16777216, max_num_seqs=2, max_model_len=512, dtype='bf16', "
        "draft_dtype='bf16': lower one of them, or take a smaller dtype ([cuda] cudaMalloc: cudaErrorMemoryAllocation")


PROFILED = """
engine = paceline.Engine(*paceline.demo_pair(), device='cuda', max_model_len=128, num_speculative_tokens=2)
with engine.profile():
    engine.generate("import os", max_tokens=5)
said = True
"""


def test_a_profiler_hears_what_the_host_does(tmp_path):
    record = tmp_path / "record"
    run(PROFILED, **STUB, NVTX_INJECTION64_PATH=str(BUILD / "libnvtx_recorder.so"), NVTX_RECORD=str(record))
    lines = [line.split() for line in record.read_text().splitlines()]
    assert {line[1] for line in lines} == {"paceline"}
    assert {line[2] for line in lines if line[0] == "begin"} == {
        "load_weights", "graph_capture", "prefill", "launch", "collect", "draft", "verify"}
    assert {line[2] for line in lines if line[0] == "mark"} <= {"accept", "kv_rollback"}
    depth = 0
    for kind, *_ in lines:
        depth += {"begin": 1, "end": -1, "mark": 0}[kind]
        assert depth >= 0
    assert depth == 0
    assert sum(int(line[3]) + 1 for line in lines if line[2:3] == ["accept"]) >= 5  # each cycle emits what it accepts, and one more


def test_cycles_to_profile_are_checked():
    said = run(ENGINE.format(device="cpu"), PACELINE_PROFILE_CYCLES="7-3")
    assert "PACELINE_PROFILE_CYCLES must be A-B with 1 <= A <= B, got '7-3'" in said
