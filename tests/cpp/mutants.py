"""Plant every known bug, one at a time, and see its test fail: `make mutants`.

tests/cpp/mutants.toml lists them: a name, the file, the text that is replaced (it must be there exactly once) and the text that
replaces it, the test program that must fail, and how many texts its statistics need (PACELINE_LAW_N) where that matters.
The sources are copied to build/mutants, once per worker; the tree itself is never touched. Exit status 1 if a mutant survives,
if one does not compile, or if a test fails without any. The others are still planted after such a one.

With --minutes M no more are planted M minutes after the start; which ones came first hangs on what is in the sources, so that every change
meets others. What they need is built, and its sound test run, only when its first mutant comes.
"""

import argparse
import collections
import concurrent.futures
import dataclasses
import hashlib
import os
import pathlib
import queue
import random
import shutil
import subprocess
import sys
import time
import tomllib

ROOT = pathlib.Path(__file__).resolve().parents[2]
SECONDS = 300  # a mutant that hangs is found as well
WARNINGS = " ".join(f"-Wno-error=unused-{what}" for what in ("variable", "parameter", "but-set-variable", "function"))  # a bug may leave some


@dataclasses.dataclass(frozen=True)
class Mutant:
    name: str
    file: str
    old: str
    new: str
    test: str  # settings of the environment if any, program, and a part of the test's name
    texts: int = 20000

    def planted(self, source):
        if source.count(self.old) != 1:
            raise SystemExit(f"{self.name}: expected its text once in {self.file}, found it {source.count(self.old)} times")
        return source.replace(self.old, self.new)


class Worker:
    """A copy of the sources with its own build. `sound`: the (test, texts) that passed without a mutant, of all workers.

    What is sound was compiled before, by `make test` or by another worker, from the same place relative to the build and, but for WARNINGS, with
    the same flags: a compiler cache has it.
    """

    def __init__(self, index, sound):
        self.source, self.build, self.sound = ROOT / f"build/mutants/{index}", ROOT / f"build/mutants/{index}/build/test", sound
        self.refresh()
        run(self.source, "cmake", "-S", self.source, "-B", self.build, "-G", "Ninja", "-DPACELINE_TESTS=ON", "-DPACELINE_PYTHON=OFF", "-DPACELINE_CUDA=OFF",
            f"-DCMAKE_CXX_FLAGS={WARNINGS}")

    def refresh(self):
        """Bring changed files over, and only those: ninja goes by their times."""
        for path in [ROOT / "CMakeLists.txt", *(p for d in ("cmake", "csrc", "tests") for p in (ROOT / d).rglob("*") if p.is_file())]:
            copy = self.source / path.relative_to(ROOT)
            if not copy.exists() or copy.read_bytes() != path.read_bytes():
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy)

    def test(self, test, texts):
        """(passed, the last failure it printed)."""
        try:
            settings, program, *arguments = parts_of(test)
            done = subprocess.run([self.build / program, *arguments], capture_output=True, text=True, timeout=SECONDS,
                                  env=os.environ | {"PACELINE_LAW_N": str(texts)} | settings)
        except subprocess.TimeoutExpired:
            return False, "it hangs"
        said = [line for line in done.stdout.splitlines() if line.startswith("FAIL")] or [f"exit status {done.returncode}"]
        return done.returncode == 0, said[-1]

    def fate(self, mutant):
        """("killed", "SURVIVES", "BROKEN": it does not compile, or "UNSOUND": its test fails without it; what was said)."""
        build = "cmake", "--build", self.build, "--target", parts_of(mutant.test)[1]
        test = mutant.test, mutant.texts
        if test not in self.sound:
            run(self.source, *build)
            passed, said = self.test(*test)
            if not passed:
                return "UNSOUND", said
            self.sound.add(test)
        path = self.source / mutant.file
        original = path.read_text()
        path.write_text(mutant.planted(original))
        try:
            built = run(self.source, *build, check=False)
            if built is not None:
                return "BROKEN", built
            passed, said = self.test(mutant.test, mutant.texts)
        finally:
            path.write_text(original)
        return ("SURVIVES", "") if passed else ("killed", said[:110])


def parts_of(test):
    """[settings, program, arguments...]."""
    words = test.split()
    return [dict(word.split("=") for word in words if "=" in word), *(word for word in words if "=" not in word)]


def run(source, *command, check=True):
    """A step of the build of `source`. None if it succeeds, else what it printed."""
    settings = os.environ | {"CCACHE_BASEDIR": str(source), "CCACHE_IGNOREOPTIONS": WARNINGS}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=settings)
    if done.returncode == 0:
        return None
    if check:
        raise SystemExit(f"{' '.join(map(str, command))}:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return done.stdout[-3000:] + done.stderr[-3000:]


def shuffled(mutants):
    """By the sources: the same ones give the same order."""
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sorted((ROOT / "csrc").rglob("*")) if path.is_file()))
    return random.Random(digest.digest()).sample(mutants, len(mutants))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", help="of the names of those to plant (default all)")
    parser.add_argument("--minutes", type=float, help="plant no more that long after the start")
    options = parser.parse_args()
    mutants = [Mutant(**entry) for entry in tomllib.loads((ROOT / "tests/cpp/mutants.toml").read_text())["mutant"]]
    chosen = [m for m in mutants if not options.parts or any(part in m.name for part in options.parts)]
    # All of them file by file, which compiles least.
    chosen = sorted(chosen, key=lambda mutant: (mutant.file, mutant.test)) if options.minutes is None else shuffled(chosen)
    for mutant in chosen:
        mutant.planted((ROOT / mutant.file).read_text())  # all texts are there, before anything is built
    start = time.monotonic()
    end = start + 60 * options.minutes if options.minutes is not None else float("inf")
    workers, sound = queue.SimpleQueue(), set()
    for index in range(min(len(chosen), os.cpu_count() or 1)):
        workers.put(Worker(index, sound))
    print(f"{len(chosen)} mutants", flush=True)

    def fate_of(mutant):
        worker = workers.get()
        try:
            return worker.fate(mutant) if time.monotonic() < end else ("not planted", "")
        finally:
            workers.put(worker)

    fates = collections.Counter()
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for mutant, (fate, said) in zip(chosen, pool.map(fate_of, chosen), strict=True):
            fates[fate] += 1
            if fate != "not planted":
                print(f"{fate:8}  {mutant.name:60} {mutant.test:45} {said}", flush=True)
    late = f", {fates['not planted']} not planted: their time was over" if fates["not planted"] else ""
    bad = fates["SURVIVES"] + fates["BROKEN"] + fates["UNSOUND"]
    print(f"{fates['killed']} killed, {fates['SURVIVES']} survived, {fates['BROKEN']} broken, {fates['UNSOUND']} with a test that fails without"
          f"{late}, {time.monotonic() - start:.0f} s")
    return bad > 0 or not fates["killed"]


if __name__ == "__main__":
    sys.exit(main())
