"""The replay part of the audit again and again, each time from a fresh seed: on a sound engine there must be no alarm.

    python tests/audit/alarms.py --runs 1000 [--seed N]

Rows are recorded from the bundled pair once; every run draws anew. What is counted as well is how often a first attempt failed (alpha 1e-7
per test), how the p values lie, and the longest run. Clean runs bound the rate of alarms by three over their number; the rate itself is
stated from alpha. Exit status 1 after an alarm.
"""

import argparse
import secrets
import sys
import time

import numpy as np
import paceline
from paceline.audit import end_to_end, replay
from paceline.audit.chi_square import ALPHA
from paceline.audit.subject import RULES, Subject


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--seed", type=int, help="instead of a fresh one")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no run after that long")
    options = parser.parse_args()
    seed = secrets.randbits(53) if options.seed is None else options.seed
    alarms, first_failures, p_values, wall, cpu = [], 0, [], [], []
    start = time.monotonic()
    with paceline.Engine(*paceline.demo_pair(), num_speculative_tokens=4, max_num_seqs=8) as engine, Subject(engine) as subject:
        prompts = subject.prompts(None)
        recorded = end_to_end.recorded([end_to_end.walk(subject, rule, prompts, 1200, seed) for rule in RULES])
        for run in range(options.runs):
            if time.monotonic() > start + 60 * options.minutes:
                break
            began = time.monotonic(), time.process_time()
            checks = replay.checks(subject.replay, recorded, RULES, (seed + 1000 * run) % 2**64)
            wall.append(time.monotonic() - began[0])
            cpu.append(time.process_time() - began[1])
            alarms += [(run, check) for check in checks if not check.passed]
            first_failures += sum(check.figures["first_p_value"] < ALPHA for check in checks if check.statistical)
            p_values += [check.figures["first_p_value"] for check in checks if check.statistical]
    low = [int((np.array(p_values) < level).sum()) for level in (1e-1, 1e-2, 1e-3)]
    print(f"seed {seed}: {len(wall)} runs of {len(p_values) // len(wall)} tests, {len(alarms)} alarms, {first_failures} first attempts below {ALPHA:g}")
    print(f"p below 0.1, 0.01, 0.001: {low} of {len(p_values)}; expected {[round(len(p_values) * level, 1) for level in (1e-1, 1e-2, 1e-3)]}")
    print(f"a run took {np.median(wall):.2f} s at the median, {max(wall):.2f} s at most; {np.median(cpu):.2f} s of CPU time")
    for run, check in alarms:
        print(f"ALARM in run {run}: {check}")
    return bool(alarms)


if __name__ == "__main__":
    sys.exit(main())
