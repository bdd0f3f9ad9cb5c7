"""Plant every fault of faults.toml in a copy of the engine, one at a time, and see the audit find it and name it: `make audit-mutants`.

A build of the Python module per fault, in build/audit, with the package beside it; neither the tree nor what is installed is touched.
The sound engine goes first and must pass. Exit status 1 if any fault is not found, or not by its name and by the part that should.
"""

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time
import tomllib

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/cpp"))
import mutants  # noqa: E402

PLACE = ROOT / "build/audit"
SOURCE, BUILD, PACKAGE = PLACE / "source", PLACE / "source/build/module", PLACE / "package"
TOKENS = 6_000  # from end to end: faults are not subtle
# A failure need not repeat with four times the tokens: that guards sound engines against chance.
AUDIT = "import sys; from paceline.audit import run; run.REPEAT = 1; from paceline.cli import main; sys.exit(main(sys.argv[1:]))"


def refresh():
    """Bring changed files over, and only those: ninja goes by their times."""
    for path in [ROOT / "CMakeLists.txt", *(p for d in ("cmake", "csrc") for p in (ROOT / d).rglob("*") if p.is_file())]:
        copy = SOURCE / path.relative_to(ROOT)
        if not copy.exists() or copy.read_bytes() != path.read_bytes():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
    shutil.rmtree(PACKAGE, ignore_errors=True)
    shutil.copytree(ROOT / "python/paceline", PACKAGE / "paceline", ignore=shutil.ignore_patterns("__pycache__"))


def configure():
    mutants.run(SOURCE, "cmake", "-S", SOURCE, "-B", BUILD, "-G", "Ninja", "-DPACELINE_PYTHON=ON", "-DPACELINE_TESTS=OFF", "-DPACELINE_CUDA=OFF",
                f"-DCMAKE_CXX_FLAGS={mutants.WARNINGS}", f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11_directory()}")


def pybind11_directory():
    import pybind11
    return pybind11.get_cmake_dir()


def build():
    """None, or what the compiler said."""
    said = mutants.run(SOURCE, "cmake", "--build", BUILD, "--target", "_core", check=False)
    if said is None:
        (module,) = BUILD.glob("_core*.so")
        shutil.copyfile(module, PACKAGE / "paceline" / module.name)
    return said


def audit(seed):
    """(exit status, report)."""
    command = [sys.executable, "-c", AUDIT, "audit", "--tokens", str(TOKENS), "--seed", str(seed), "--json", "--num-threads", "1"]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(PACKAGE)}, cwd=PLACE, capture_output=True, text=True, timeout=1800)
    try:
        return done.returncode, json.loads(done.stdout)
    except ValueError:
        raise SystemExit(f"{' '.join(command)}: status {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-3000:]}") from None


def complaint(fault, part, status, report):
    """Why this is not what should have come out; None if it is."""
    failed = [check for check in report["checks"] if not check["passed"]]
    if status != 1 or report["passed"]:
        return "not found"
    if fault not in report["faults"]:
        return f"not named; failed: {', '.join(check['name'] for check in failed)}; named: {report['faults']}"
    if part not in {check["part"] for check in failed if fault in check["faults"]}:
        return f"not named by the part {part}"
    if len(report["faults"]) > 1:
        return f"named others as well: {report['faults']}"
    return None


def fate(entry, seed):
    """What to print, and whether it is as it should be."""
    fault, part = entry.pop("fault"), entry.pop("part")
    mutant = mutants.Mutant(**entry, test="")
    path = SOURCE / mutant.file
    original = path.read_text()
    path.write_text(mutant.planted(original))
    try:
        said = build()
        if said is not None:
            return f"BROKEN   {mutant.name}\n{said}", False
        status, report = audit(seed)
    finally:
        path.write_text(original)
    why = complaint(fault, part, status, report)
    by = [check["name"] for check in report["checks"] if fault in check["faults"]]
    return f"{'MISSED ' if why else 'found  '}  {mutant.name}: {why or fault}\n         by {'; '.join(by)}", why is None


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", help="of the names of those to plant (default all)")
    parser.add_argument("--seed", type=int, default=1, help="of the audits (default 1)")
    options = parser.parse_args()
    entries = tomllib.loads((ROOT / "tests/audit/faults.toml").read_text())["mutant"]
    chosen = [entry for entry in entries if not options.parts or any(part in entry["name"] for part in options.parts)]
    start = time.monotonic()
    refresh()
    configure()
    if said := build():
        raise SystemExit(said)
    status, report = audit(options.seed)
    if status or not report["passed"] or report["faults"]:
        raise SystemExit(f"the sound engine fails: {[check['found'] for check in report['checks'] if not check['passed']]}")
    print(f"sound engine: {len(report['checks'])} checks passed", flush=True)
    good = 0
    for entry in chosen:
        said, right = fate(dict(entry), options.seed)
        good += right
        print(said, flush=True)
    build()
    print(f"{good} of {len(chosen)} faults found and named, {time.monotonic() - start:.0f} s")
    return good != len(chosen)


if __name__ == "__main__":
    sys.exit(main())
