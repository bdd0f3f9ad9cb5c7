"""Includes run one way: python/ -> async -> engine -> decode -> model -> backend.h -> core, with math beside core."""

import pathlib
import re
import shutil

import pytest

CSRC = pathlib.Path(__file__).resolve().parents[2] / "csrc"

# Longest prefix wins. A layer may include itself and everything below it, and nothing else.
BELOW_BACKEND = ("core/", "math/", "backend/backend.h")
MAY_INCLUDE = {
    "core/": ("core/",),
    "math/": ("math/",),
    "backend/backend.h": ("core/", "math/"),
    "backend/planning": BELOW_BACKEND,
    "backend/plugin": (*BELOW_BACKEND, "backend/plugin.h"),
    "backend/cpu/": (*BELOW_BACKEND, "backend/cpu/"),
    "backend/cuda/": (*BELOW_BACKEND, "backend/plugin.h", "backend/cuda/"),
    "model/": (*BELOW_BACKEND, "model/"),
    "decode/": (*BELOW_BACKEND, "model/", "decode/"),
    "engine.": (*BELOW_BACKEND, "model/", "decode/", "engine.h"),
    "async/": (*BELOW_BACKEND, "model/", "decode/", "engine.h", "async/"),
    "memory_plan.": (*BELOW_BACKEND, "backend/planning_backend.h", "model/", "decode/", "engine.h", "memory_plan.h"),
    "python/": (*BELOW_BACKEND, "model/", "decode/", "engine.h", "async/", "memory_plan.h", "python/"),
}

# Kernels are compiled once per instruction level. A template or inline function of the standard library would be emitted by
# each level under one name, the linker would keep any of them, and a machine without AVX-512 could meet AVX-512 code.
KERNELS = "backend/cpu/kernels/"
PLAIN_HEADERS = {"cstddef", "cstdint", "cstring", "cmath", "cfloat", "climits", "limits", "type_traits", "immintrin.h"}


def includes_of(path):
    """([our headers], [system headers]) that a source file names."""
    text = path.read_text()
    return re.findall(r'^\s*#\s*include\s*"([^"]+)"', text, re.M), re.findall(r"^\s*#\s*include\s*<([^>]+)>", text, re.M)


def violations(root):
    """Every include that breaks the arrows, as text."""
    found = []
    for path in sorted(p for p in root.rglob("*") if p.suffix in {".h", ".cc", ".cu", ".cuh"}):
        name = path.relative_to(root).as_posix()
        layer = max((prefix for prefix in MAY_INCLUDE if name.startswith(prefix)), key=len, default=None)
        if layer is None:
            found.append(f"{name}: belongs to no layer")
            continue
        ours, _ = includes_of(path)
        for header in ours:
            if not (root / header).is_file():
                found.append(f"{name}: {header} does not exist (paths start at csrc)")
            elif not header.startswith(MAY_INCLUDE[layer]):
                found.append(f"{name}: must not include {header}")
        if name.startswith(KERNELS):
            found += [f"{name}: must not reach <{header}> through {via}" for via, header in kernel_violations(root, path)]
    return found


def kernel_violations(root, path):
    """(our file, system header) for each header outside PLAIN_HEADERS that a kernel file sees, directly or through ours."""
    found, seen, pending = [], set(), [path]
    while pending:
        current = pending.pop()
        if current in seen or not current.is_file():
            continue
        seen.add(current)
        ours, system = includes_of(current)
        found += [(current.relative_to(root).as_posix(), header) for header in system if header not in PLAIN_HEADERS]
        pending += [root / header for header in ours]
    return found


def test_includes_run_one_way():
    assert violations(CSRC) == []


@pytest.mark.parametrize("file, header, complaint", [
    ("core/tensor.h", '"math/noise.h"', "core/tensor.h: must not include math/noise.h"),
    ("math/noise.h", '"core/error.h"', "math/noise.h: must not include core/error.h"),
    ("backend/backend.h", '"model/config.h"', "backend/backend.h: must not include model/config.h"),
    ("backend/cpu/cpu_cycle.cc", '"decode/cycle.h"', "backend/cpu/cpu_cycle.cc: must not include decode/cycle.h"),
    ("model/weights.cc", '"decode/request.h"', "model/weights.cc: must not include decode/request.h"),
    ("decode/scheduler.cc", '"backend/cpu/cpu_backend.h"', "decode/scheduler.cc: must not include backend/cpu/cpu_backend.h"),
    ("decode/cycle.cc", '"engine.h"', "decode/cycle.cc: must not include engine.h"),
    ("model/pages.cc", '"config.h"', "model/pages.cc: config.h does not exist (paths start at csrc)"),
    ("backend/cpu/kernels/sampling.cc", "<algorithm>",
     "backend/cpu/kernels/sampling.cc: must not reach <algorithm> through backend/cpu/kernels/sampling.cc"),
    ("math/platform.h", "<vector>", "backend/cpu/kernels/sampling.cc: must not reach <vector> through math/platform.h"),
])
def test_a_planted_include_is_found(tmp_path, file, header, complaint):
    shutil.copytree(CSRC, tmp_path / "csrc")
    planted = tmp_path / "csrc" / file
    planted.write_text(planted.read_text() + f"\n#include {header}\n")
    assert complaint in violations(tmp_path / "csrc")
