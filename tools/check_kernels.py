"""What the CUDA compiler makes of every kernel: `make kernels`. For each architecture of a release it must build without a warning, keep
nothing in local memory, stay within the registers of docs/gpu/kernels.md, and use the instructions that its
speed rests on.

`--record` writes that page anew. Without a CUDA compiler nothing can be checked, and it says so.
"""

import argparse
import concurrent.futures
import dataclasses
import hashlib
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
SHOWN = "sm_90a"  # whose instructions are looked at
FLAGS = ["-std=c++20", "-O3", "--fmad=false", "-ftz=true", "--expt-relaxed-constexpr", "--Werror=all-warnings", "-Xcompiler=-Wall,-Wextra",
         "-Xptxas=-v", *(f"-gencode=arch=compute_{each},code=sm_{each}" for each in ARCHITECTURES), "-gencode=arch=compute_120,code=compute_120"]

FAMILIES = ["accept", "attention", "cycle", "early_stop", "epilogues", "processors", "report", "rows", "sampling", "skinny_gemm", "trace"]
"""A file each: one that is gone, or has no kernels any more, is a fault and not less to check."""

INSTRUCTIONS = {"skinny_gemm": ["HMMA", "LDGSTS.E"], "attention": ["HMMA", "LDSM", "LDG.E.128"]}
"""By family: in SASS. Tensor cores where products are made, loads of 16 bytes where memory is the limit."""

WAIT = "ACQBULK"
"""In every kernel: kernels overlap, so that each must wait for those before it (ptx.cuh)."""


@dataclasses.dataclass(frozen=True, slots=True)
class Usage:
    """Of one kernel on one architecture."""

    registers: int
    local_bytes: int


Found = dict[str, dict[str, dict[str, Usage]]]
"""family -> kernel -> architecture -> usage"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", action="store_true", help="write docs/gpu/kernels.md from what is found")
    options = parser.parse_args()
    if not shutil.which("nvcc"):
        print("not run: there is no CUDA compiler (nvcc) on this machine")
        return 0
    OBJECTS.mkdir(parents=True, exist_ok=True)
    sources = sorted(KERNELS.glob("*.cu"), key=lambda path: -path.stat().st_size)  # long ones first: none of them is waited for at the end
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        reports = dict(zip((source.stem for source in sources), pool.map(report_of, sources), strict=True))
    found = {family: usage_in(reports[family]) for family in sorted(reports)}
    wrong = absent(found)
    if options.record and not wrong:
        PAGE.write_text(page(found))
    wrong += too_much(found, recorded(PAGE.read_text() if PAGE.exists() else ""))
    wrong += missing_instructions(found)
    for each in wrong:
        print(f"wrong: {each}")
    print(f"{sum(map(len, found.values()))} kernels in {len(found)} files, {len(ARCHITECTURES)} architectures, {len(wrong)} faults")
    return 1 if wrong else 0


# ---------------------------------------------------------------------------------------------------- compile
def report_of(source: pathlib.Path) -> str:
    """What the compiler says of all kernels of a file. Compiled once for all architectures, and anew where anything that goes in has changed."""
    target, kept = OBJECTS / (source.stem + ".o"), OBJECTS / (source.stem + ".txt")
    digest = digest_of(source, FLAGS)
    if kept.exists() and target.exists():
        first, _, report = kept.read_text().partition("\n")
        if first == digest:
            return report
    done = run("nvcc", *FLAGS, "-I", ROOT / "csrc", "-c", source, "-o", target)
    report = run("c++filt", text=done)
    kept.write_text(f"{digest}\n{report}")
    return report


def digest_of(source: pathlib.Path, flags: list[str]) -> str:
    """Of the compiler, its flags, the file and every header that it could include."""
    headers = sorted(path for path in (ROOT / "csrc").rglob("*") if path.suffix in (".h", ".cuh"))
    sums = hashlib.sha256(repr((flags, run("nvcc", "--version"))).encode())
    for path in [source, *headers]:
        sums.update(path.read_bytes())
    return sums.hexdigest()


def usage_in(report: str) -> dict[str, dict[str, Usage]]:
    """kernel -> architecture -> usage, from what ptxas prints with -v."""
    kernels: dict[str, dict[str, Usage]] = {}
    for name, architecture, told in re.findall(r"Compiling entry function '(.+)' for 'sm_(\w+)'\n((?:(?!.*Compiling entry).*\n?)*)", report):
        local, registers = re.search(r"(\d+) bytes stack frame", told), re.search(r"Used (\d+) registers", told)
        if not local or not registers:
            sys.exit(f"expected registers and stack frame of {name} on sm_{architecture}, found: {told[:500]}")
        kernels.setdefault(shortened(name), {})[architecture] = Usage(int(registers[1]), int(local[1]))
    return kernels


def shortened(name: str) -> str:
    """The kernel and its template arguments."""
    text = re.sub(r"paceline::|cuda::|\(anonymous namespace\)::|^void ", "", name)
    return text[:text.rindex(">(") + 1] if ">(" in text else text.split("(")[0]


def cuobjdump() -> str:
    """A toolkit's, or that of the wheel that `make kernels` installs."""
    directories = [*os.environ["PATH"].split(os.pathsep), str(pathlib.Path(sysconfig.get_path("purelib")) / "nvidia/cu13/bin")]
    os.environ["PATH"] = os.pathsep.join(directories)  # it looks for nvdisasm there as well
    return shutil.which("cuobjdump") or sys.exit("there is no cuobjdump: make kernels installs it")


def run(*command: object, text: str | None = None) -> str:
    """Both its outputs: the compiler reports on the second."""
    done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, input=text)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout[-6000:]}")
    return done.stdout


# ---------------------------------------------------------------------------------------------------- judge
def absent(found: Found) -> list[str]:
    wrong = [f"{family}: expected kernels in {family}.cu, found none" for family in FAMILIES if not found.get(family)]
    wrong += [f"{family}: {family}.cu is not among FAMILIES" for family in found if family not in FAMILIES]
    for family, kernels in found.items():
        for name, by_architecture in kernels.items():
            if sorted(by_architecture) != sorted(ARCHITECTURES):
                wrong.append(f"{family}: {name}: expected for {', '.join(ARCHITECTURES)}, found for {', '.join(by_architecture)}")
    return wrong


def too_much(found: Found, limits: dict[tuple[str, str], int]) -> list[str]:
    """limits: (kernel, architecture) -> registers at most."""
    wrong = []
    for family, kernels in found.items():
        for name, by_architecture in kernels.items():
            for architecture, usage in by_architecture.items():
                where = f"{family}: {name} on sm_{architecture}"
                limit = limits.get((name, architecture))
                if usage.local_bytes:
                    wrong.append(f"{where} keeps {usage.local_bytes} bytes in local memory")
                if limit is None:
                    wrong.append(f"{where} is not in {PAGE.relative_to(ROOT)}: run with --record")
                elif usage.registers > limit:
                    wrong.append(f"{where} takes {usage.registers} registers, {limit} were recorded")
    return wrong


def missing_instructions(found: Found) -> list[str]:
    wrong = []
    for family in FAMILIES:
        if found.get(family):
            code = run(cuobjdump(), "-sass", "-arch", SHOWN, OBJECTS / (family + ".o"))
            wrong += [f"{family}: no {instruction} in its code" for instruction in INSTRUCTIONS.get(family, []) if instruction not in code]
            wrong += [f"{family}: {each.split()[0]} has no {WAIT}" for each in code.split("Function : ")[1:] if WAIT not in each]
    return wrong


# ---------------------------------------------------------------------------------------------------- the page
def recorded(text: str) -> dict[tuple[str, str], int]:
    """(kernel, architecture) -> registers at most, as page() wrote them."""
    header = re.search(r"^\| file \| kernel \|(.*)\|$", text, re.M)
    columns = [each.strip().removeprefix("sm_") for each in header[1].split("|")] if header else []
    rows = re.findall(r"^\| `[^`]+` \| `([^`]+)` \|(.*)\|$", text, re.M)
    return {(name, architecture): int(registers) for name, row in rows for architecture, registers in zip(columns, row.split("|"), strict=True)}


def page(found: Found) -> str:
    lines = ["# What the compiler makes of the kernels", "",
             "Registers of each kernel on each architecture of a release, as `python tools/check_kernels.py --record` found them; `make kernels`",
             "fails where one takes more, keeps anything in local memory, or lacks the instructions its speed",
             "rests on. Shared memory is given at launch.", "",
             "| file | kernel | " + " | ".join(f"sm_{each}" for each in ARCHITECTURES) + " |", "| --- | --- |" + " --- |" * len(ARCHITECTURES)]
    for family, kernels in found.items():
        for name, by_architecture in sorted(kernels.items()):
            numbers = " | ".join(str(by_architecture[each].registers) for each in ARCHITECTURES)
            lines.append(f"| `{family}.cu` | `{name}` | {numbers} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
