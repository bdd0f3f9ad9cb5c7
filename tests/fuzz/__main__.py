"""python -m tests.fuzz [--target NAME]... [--seconds N] [--seed S]: every target for N seconds, in a process of its own, as many at once as there are cores.

Findings are printed and kept in tests/fuzz/corpus/TARGET; the exit status is 1 when there is one. A process that ends by a signal is one."""

import argparse
import concurrent.futures
import os
import pathlib
import secrets
import subprocess
import sys
import tempfile

from tests.fuzz.run import LAST, findings, keep
from tests.fuzz.targets import TARGETS

LARGEST = 10  # findings of one kind are many: the first ones tell


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--target", action="append", choices=list(TARGETS), help="(default: all)")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, help="(default: a fresh one, printed)")
    parser.add_argument("--inside", metavar="DIR", help=argparse.SUPPRESS)
    given = parser.parse_args()
    seed = secrets.randbits(32) if given.seed is None else given.seed
    if given.inside:
        return _run(given.target[0], given.seconds, seed, pathlib.Path(given.inside))
    names = given.target or list(TARGETS)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as each:
        sound = each.map(lambda name: _in_a_process(name, given.seconds, seed), names)
    failed = [name for name, passed in zip(names, sound, strict=True) if not passed]
    print(f"fuzz: {len(failed)} of {len(names)} targets with findings" + (": " + ", ".join(failed) if failed else ""))
    return 1 if failed else 0


def _run(name: str, seconds: float, seed: int, scratch: pathlib.Path) -> int:
    found = 0
    for data, wrong in findings(TARGETS[name], seed, seconds=seconds, scratch=scratch):
        found += 1
        print(f"{name}: {wrong}: {keep(TARGETS[name], data)}", flush=True)
        if found == LARGEST:
            break
    return 1 if found else 0


def _in_a_process(name: str, seconds: float, seed: int) -> bool:
    with tempfile.TemporaryDirectory() as scratch:
        print(f"{name}: {seconds:g} s, seed {seed}", flush=True)
        command = [sys.executable, "-m", "tests.fuzz", "--inside", scratch, "--target", name, "--seconds", str(seconds), "--seed", str(seed)]
        try:
            code = subprocess.run(command, timeout=2 * seconds + 60).returncode
        except subprocess.TimeoutExpired:
            code = "no end"
        if code not in (0, 1):
            last = pathlib.Path(scratch, LAST)
            where = keep(TARGETS[name], last.read_bytes()) if last.exists() else "no input yet"
            print(f"{name}: ended with {code}: {where}", flush=True)
        return code == 0


if __name__ == "__main__":
    sys.exit(main())
