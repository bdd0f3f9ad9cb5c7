"""tests/reliability.toml and tests/known_bugs.toml as they are."""

import functools
import pathlib
import tomllib

ROOT = pathlib.Path(__file__).resolve().parents[1]
tiers = ("test", "ci", "nightly", "gpu")


@functools.cache
def registry(name):
    return tomllib.loads((ROOT / "tests" / name).read_text())


def rows():
    """Each: id, fault, promise, tier, tests."""
    return registry("reliability.toml")["row"]


def bugs():
    """Each: bug, planted (names)."""
    return registry("known_bugs.toml")["bug"]


def rules():
    """Each: rule, kept (where), planted (names)."""
    return registry("known_bugs.toml")["rule"]


def named_tests(some):
    """In the order of the rows, each once."""
    return list(dict.fromkeys(test for row in some for test in row["tests"]))


def is_pytest(test):
    return test.startswith("tests/python/")
