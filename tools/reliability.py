"""The rows of tests/reliability.toml, proved by name: `make reliability`.

    python tools/reliability.py               run every test that a row names, once; print row, test, result
    python tools/reliability.py --check       run nothing: say what names a test, a part or a planted bug that does not exist
    python tools/reliability.py --write       run nothing: bring docs/reliability.md up to date, with the last results

A test that does not exist is "missing", one that is skipped "not run"; neither passes. What `make nightly` and the GPU gate run is not
run here: their last result counts, with its date, but for rows that need a GPU. Exit status 1 if a row has no test or if any of its tests has not
passed.
"""

import argparse
import datetime
import fnmatch
import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

from reliability_registry import ROOT, bugs, is_pytest, named_tests, rows, rules, tiers  # noqa: E402
from reliability_runs import case_names, cpp_results, planted_names, pytest_nodes, pytest_results  # noqa: E402
from reliability_table import page  # noqa: E402

KEPT = ROOT / "build/reliability.json"   # results of this machine: {test: [result, date]}
WRITTEN = ROOT / "docs/reliability.json"  # those that the page shows
PASSED, FAILED, MISSING, NOT_RUN = "passed", "failed", "missing", "not run"


def load(path):
    return json.loads(path.read_text()) if path.exists() else {}


def record(results, path=KEPT):
    """Add results of today: {test: result}."""
    today = datetime.date.today().isoformat()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(load(path) | {test: [result, today] for test, result in results.items()}, indent=0, sort_keys=True) + "\n")


def missing(nodes):
    """{test: why} of all tests that rows name and nobody has; nodes: pytest's."""
    from nightly import PARTS  # the parts of make nightly
    gate = {"correctness", "kernels", "cycle", "peers"}
    why = {}
    for test in named_tests(rows()):
        kind, _, rest = test.partition(" ")
        if is_pytest(test):
            found = any(fnmatch.fnmatchcase(node.split("[")[0], test) for node in nodes)
        elif kind == "nightly":
            found = rest in PARTS
        elif kind == "gate":
            found = rest.split(" ")[0] in gate  # the cell: tests/python/test_reliability.py
        else:
            found = bool(case_names(test))
        if not found:
            why[test] = "no such test"
    return why


def wrong_bugs():
    """What bugs and rules name and nobody plants."""
    known = planted_names()
    return [f"{entry.get('bug', entry.get('rule'))}: no planted bug {name!r}" for entry in [*bugs(), *rules()] for name in entry["planted"]
            if name not in known] + [f"{entry.get('bug', entry.get('rule'))}: nothing is planted" for entry in [*bugs(), *rules()]
                                     if not entry["planted"]]


def run(chosen):
    """{test: result} of the chosen rows; what runs elsewhere keeps the last one."""
    named = named_tests(chosen)
    nodes = pytest_nodes()
    results = {test: MISSING for test in missing(nodes) if test in named}
    here = [test for test in named if test not in results and not test.startswith(("nightly ", "gate "))]
    results |= pytest_results([test for test in here if is_pytest(test)], nodes)
    results |= cpp_results([test for test in here if not is_pytest(test)])
    return results


def holds(row, results, kept):
    """Of what ran here and what did elsewhere. A row that needs a GPU holds by what runs without one."""
    here = [test for test in row["tests"] if row["tier"] != "gpu" or test in results]
    return bool(row["tests"]) and all(results.get(test, kept.get(test, [NOT_RUN])[0]) == PASSED for test in here)


def show(chosen, results, kept):
    bad = 0
    for row in chosen:
        for test in row["tests"]:
            result, when = results.get(test), ""
            if result is None:  # runs elsewhere, and counts as it ended there
                result, when = kept.get(test, [NOT_RUN, "never"])
            if row["tier"] != "gpu" or test in results:
                bad += result != PASSED
            print(f"{row['id']:5} {test:100} {result} {when}".rstrip())
        if not row["tests"]:
            bad += 1
            print(f"{row['id']:5} has no test")
    return bad


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", help="rows to run, such as NU1 or KV (default all)")
    parser.add_argument("--check", action="store_true", help="run nothing, say what does not exist")
    parser.add_argument("--write", action="store_true", help="run nothing, write docs/reliability.md")
    options = parser.parse_args()
    chosen = [row for row in rows() if not options.rows or any(row["id"].startswith(each) for each in options.rows)]
    if options.write:
        WRITTEN.write_text(json.dumps(dict(sorted((load(WRITTEN) | load(KEPT)).items())), indent=0) + "\n")
        file = ROOT / "docs/reliability.md"
        file.write_text(page(file.read_text(), rows(), bugs(), rules(), load(WRITTEN)))
        return 0
    mistakes = wrong_bugs()
    mistakes += [f"{row['id']}: tier must be one of {', '.join(tiers)}, got {row['tier']!r}" for row in chosen if row["tier"] not in tiers]
    if options.check:
        mistakes += [f"{test}: {why}" for test, why in missing(pytest_nodes()).items()]
        print("\n".join(mistakes) or "all there")
        return bool(mistakes)
    results = run(chosen)
    record(results)
    kept = load(WRITTEN) | load(KEPT)
    bad = show(chosen, results, kept)
    print("\n".join(mistakes), end="\n" if mistakes else "")
    counts = {result: list(results.values()).count(result) for result in (PASSED, FAILED, MISSING, NOT_RUN)}
    held = sum(holds(row, results, kept) for row in chosen)
    print(f"{held} of {len(chosen)} rows hold; tests: {', '.join(f'{n} {result}' for result, n in counts.items())}")
    return bool(bad or mistakes)


if __name__ == "__main__":
    sys.exit(main())
