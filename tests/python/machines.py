"""State machines are the same in every run, unless PACELINE_TEST_SEED gives a seed, as `make nightly` does; PACELINE_TEST_SCALE multiplies
their examples."""

import os

from hypothesis import seed

SEED = int(os.environ["PACELINE_TEST_SEED"]) if "PACELINE_TEST_SEED" in os.environ else None
SCALE = float(os.environ.get("PACELINE_TEST_SCALE", "1"))


def seeded(machine):
    return machine if SEED is None else seed(SEED)(machine)
