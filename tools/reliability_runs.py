"""Running tests by their names: C++ programs by case, pytest by node, each once."""

import concurrent.futures
import functools
import fnmatch
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import tomllib
import xml.etree.ElementTree

from reliability_registry import ROOT

BUILD = ROOT / "build/test"
LIMIT = 1200  # seconds of a program


# ---------------------------------------------------------------------------------------------------- C++
def parts_of(test):
    """(settings, program, case or "")."""
    words = test.split()
    settings = tuple(word for word in words if "=" in word)
    program, *case = [word for word in words if "=" not in word]
    return settings, program, " ".join(case)


def source_of(program):
    return ROOT / (f"tests/simt/{program.removeprefix('simt_')}.cc" if program.startswith("simt_") else f"tests/cpp/{program}.cc")


@functools.cache
def cases_of(program):
    """Its cases, from the source: nothing has to be built to know them."""
    source = source_of(program)
    return re.findall(r"^TEST\((\w+)\)", source.read_text(), re.M) if source.exists() else []


def case_names(test):
    """The cases a test stands for: one, or all of its program; none if there is no such."""
    _, program, case = parts_of(test)
    return [name for name in cases_of(program) if case in ("", name)]


def run_program(settings, program, cases):
    """{case: passed}. A case without a line of its own did not run to its end."""
    said = ""
    try:
        done = subprocess.run([BUILD / program, *cases], capture_output=True, text=True, errors="replace", timeout=LIMIT,
                              env=os.environ | dict(each.split("=", 1) for each in settings))
        said = done.stdout
    except subprocess.TimeoutExpired as error:
        said = (error.stdout or b"").decode(errors="replace") if isinstance(error.stdout, bytes) else error.stdout or ""
    except OSError as error:
        print(f"{program}: {error}", file=sys.stderr)
    passed = {line.split()[1] for line in said.splitlines() if line.startswith("ok ")}
    for line in said.splitlines():
        if line.startswith("FAIL"):
            print(f"{program}: {line}", file=sys.stderr)
    return {case: case in passed for case in cases}


def cpp_results(tests):
    """{test: "passed" or "failed"}: each program once for all its cases and settings."""
    wanted = {}
    for test in tests:
        settings, program, _ = parts_of(test)
        wanted.setdefault((settings, program), {}).update(dict.fromkeys(case_names(test)))
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        runs = dict(zip(wanted, pool.map(lambda each: run_program(*each, list(wanted[each])), wanted), strict=True))
    return {test: "passed" if all(runs[parts_of(test)[:2]][case] for case in case_names(test)) else "failed" for test in tests}


# ---------------------------------------------------------------------------------------------------- pytest
def pytest(*arguments):
    return subprocess.run([sys.executable, "-m", "pytest", "-q", *map(str, arguments)], cwd=ROOT, capture_output=True, text=True)


def pytest_nodes():
    """The nodes of every test there is, files that cannot be imported apart."""
    done = pytest("--collect-only", "--continue-on-collection-errors", "-p", "no:cacheprovider")
    for line in done.stdout.splitlines():
        if line.startswith("ERROR"):
            print(line, file=sys.stderr)
    return [line for line in done.stdout.splitlines() if "::" in line and not line.startswith("ERROR")]


def pytest_results(tests, nodes):
    """{test: "passed", "failed" or "not run"}: all in one run. Skipped is not run."""
    stands_for = {test: [node for node in nodes if fnmatch.fnmatchcase(node.split("[")[0], test)] for test in tests}
    if not stands_for:
        return {}
    functions = sorted({node.split("[")[0] for some in stands_for.values() for node in some})
    with tempfile.TemporaryDirectory() as folder:
        report = pathlib.Path(folder) / "report.xml"
        done = pytest("--junitxml", report, *functions)
        if not report.exists():
            print(done.stdout[-3000:], done.stderr[-3000:], file=sys.stderr)
            return dict.fromkeys(tests, "failed")
        outcomes = outcomes_of(report)
    for node, outcome in outcomes.items():
        if outcome == "failed":
            print(f"FAIL  {node}", file=sys.stderr)

    def result(test):
        found = {outcomes.get(node.split("[")[0]) for node in stands_for[test]}
        return "failed" if "failed" in found else "passed" if found == {"passed"} else "not run"

    return {test: result(test) for test in tests}


def outcomes_of(report):
    """{file::function: the worst of its parameters}."""
    worst = ["passed", "not run", "failed"]
    outcomes = {}
    for case in xml.etree.ElementTree.parse(report).iter("testcase"):
        kinds = {child.tag for child in case}
        outcome = "failed" if kinds & {"failure", "error"} else "not run" if "skipped" in kinds else "passed"
        name = f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name', '').split('[')[0]}"
        outcomes[name] = max(outcomes.get(name, "passed"), outcome, key=worst.index)
    return outcomes


# ---------------------------------------------------------------------------------------------------- planted bugs
@functools.cache
def planted_names():
    """Of tests/cpp/mutants.toml, and the faults that state machines in Python plant."""
    mutants = tomllib.loads((ROOT / "tests/cpp/mutants.toml").read_text())["mutant"]
    faults = re.findall(r'fault == "([^"]+)"|fault != "([^"]+)"', (ROOT / "tests/python/test_cache_machine.py").read_text())
    return {mutant["name"] for mutant in mutants} | {name for pair in faults for name in pair if name}
