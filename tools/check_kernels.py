"""What the CUDA compiler makes of every kernel: `make kernels`. It must build without a warning for every architecture of a release,
spill nothing, stay within the registers recorded in docs/gpu/kernels.md, and use the instructions that its speed rests on.

`--record` writes that page anew. Without a CUDA compiler nothing can be checked, and it says so.
"""

import argparse
import concurrent.futures
import os
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig

ROOT = pathlib.Path(__file__).resolve().parents[1]
KERNELS = ROOT / "csrc/backend/cuda/kernels"
OBJECTS = ROOT / "build/kernels"
PAGE = ROOT / "docs/gpu/kernels.md"

ARCHITECTURES = ["80", "86", "89", "90a", "100", "110", "120"]
SHOWN = "sm_90a"  # whose registers and instructions are looked at
FLAGS = ["-std=c++20", "-O3", "--fmad=false", "-ftz=true", "--expt-relaxed-constexpr", "--Werror=all-warnings", "-Xcompiler=-Wall,-Wextra",
         *(f"-gencode=arch=compute_{each},code=sm_{each}" for each in ARCHITECTURES), "-gencode=arch=compute_120,code=compute_120"]

INSTRUCTIONS = {"skinny_gemm": ["HMMA", "LDGSTS.E"], "attention": ["LDG.E.128"]}
"""By family: in SASS. Tensor cores where products are made, loads of 16 bytes where memory is the limit."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", action="store_true", help="write docs/gpu/kernels.md from what is found")
    options = parser.parse_args()
    if not shutil.which("nvcc"):
        print("not run: there is no CUDA compiler (nvcc) on this machine")
        return 0
    OBJECTS.mkdir(parents=True, exist_ok=True)
    sources = sorted(KERNELS.glob("*.cu"))
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        found = {source.stem: each for source, each in zip(sources, pool.map(usage_of, sources), strict=True)}
    if options.record:
        PAGE.write_text(page(found))
    wrong = [*too_much(found, recorded()), *missing_instructions()]
    for each in wrong:
        print(f"wrong: {each}")
    print(f"{sum(map(len, found.values()))} kernels in {len(found)} files, {len(ARCHITECTURES)} architectures, {len(wrong)} faults")
    return 1 if wrong else 0


def usage_of(source: pathlib.Path) -> dict[str, tuple[int, int]]:
    """Kernel -> (registers, bytes of local memory) on SHOWN."""
    target = OBJECTS / (source.stem + ".o")
    if not target.exists() or target.stat().st_mtime < max(path.stat().st_mtime for path in (ROOT / "csrc").rglob("*.*")):
        run("nvcc", *FLAGS, "-I", ROOT / "csrc", "-c", source, "-o", target)
    text = run(cuobjdump(), "--dump-resource-usage", "-arch", SHOWN, target)
    usage = {}
    for name, registers, stack in re.findall(r"Function (\S+):\s+REG:(\d+) STACK:(\d+)", text):
        usage[demangled(name)] = (int(registers), int(stack))
    return usage


def cuobjdump() -> str:
    """A toolkit's, or that of the wheel that `make kernels` installs."""
    directories = [*os.environ["PATH"].split(os.pathsep), str(pathlib.Path(sysconfig.get_path("purelib")) / "nvidia/cu13/bin")]
    os.environ["PATH"] = os.pathsep.join(directories)  # it looks for nvdisasm there as well
    return shutil.which("cuobjdump") or sys.exit("there is no cuobjdump: make kernels installs it")


def demangled(name: str) -> str:
    """Short: the kernel and its template arguments."""
    text = run("c++filt", name).strip().replace("paceline::cuda::(anonymous namespace)::", "").replace("paceline::", "").replace("cuda::", "")
    return re.sub(r"^void ", "", text.split("(")[0]) if "<" not in text else re.sub(r"^void ", "", text[:text.rindex(">(") + 1] if ">(" in text else text)


def recorded() -> dict[str, int]:
    """Kernel -> registers at most."""
    rows = re.findall(r"^\| `[^`]+` \| `([^`]+)` \| (\d+) \|", PAGE.read_text() if PAGE.exists() else "", re.M)
    return {name: int(registers) for name, registers in rows}


def too_much(found: dict[str, dict[str, tuple[int, int]]], limits: dict[str, int]) -> list[str]:
    wrong = []
    for family, kernels in found.items():
        for name, (registers, stack) in kernels.items():
            if stack:
                wrong.append(f"{family}: {name} keeps {stack} bytes in local memory")
            if name not in limits:
                wrong.append(f"{family}: {name} is not in {PAGE.relative_to(ROOT)}: run with --record")
            elif registers > limits[name]:
                wrong.append(f"{family}: {name} takes {registers} registers, {limits[name]} were recorded")
    return wrong


def missing_instructions() -> list[str]:
    wrong = []
    for family, needed in INSTRUCTIONS.items():
        code = run(cuobjdump(), "-sass", "-arch", SHOWN, OBJECTS / (family + ".o"))
        wrong += [f"{family}: no {instruction} in its code" for instruction in needed if instruction not in code]
    return wrong


def page(found: dict[str, dict[str, tuple[int, int]]]) -> str:
    lines = ["# What the compiler makes of the kernels", "",
             f"Registers of each kernel on {SHOWN}, as `python tools/check_kernels.py --record` found them; `make kernels` fails where one takes",
             "more, spills, or lacks the instructions its speed rests on. Shared memory is given at launch.", "",
             "| file | kernel | registers |", "| --- | --- | --- |"]
    lines += [f"| `{family}.cu` | `{name}` | {registers} |" for family, kernels in found.items() for name, (registers, _) in sorted(kernels.items())]
    return "\n".join(lines) + "\n"


def run(*command: object) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
