"""What the engine is for, in one screen: the same text, plain and speculative, and how fast each came."""

import argparse
import json
import statistics

from paceline.bundled import demo_pair
from paceline.engine import Engine
from paceline.results import GenerationResult

PROMPTS = (
    "def read(self, size=-1):\n    if self.closed:",
    "class TestCounter(unittest.TestCase):\n    def test_update(self):",
    "import os\nimport sys\n\n\ndef walk(top, topdown=True):",
    "def main(argv=None):\n    parser = argparse.ArgumentParser(",
    "def parse_header(line):",
    "class Queue:\n    def __init__(self, maxsize=0):",
    "def quote(s):\n    \"\"\"Return",
    "    def __init__(self, name, value=None):\n        self.name = name",
)
MAX_TOKENS = 160
REPETITIONS = 5


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("demo", help="generate from the bundled pair, plain and speculative, and compare")
    parser.set_defaults(run=lambda parsed: run_demo(json_output=parsed.json))
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout instead of text")


def run_demo(*, json_output: bool) -> None:
    """Print the first prompt's text, plain and speculative tokens per second, tokens per cycle, and whether the outputs are identical."""
    with Engine(*demo_pair()) as engine:
        runs = _interleaved(engine)
    plain, speculative = runs
    identical = all(a.token_ids == b.token_ids for a, b in zip(plain, speculative, strict=True))
    speeds = [_speed(each) for each in runs]
    figures = {
        "text": PROMPTS[0] + speculative[0].text, "plain_tokens_per_second": speeds[0], "speculative_tokens_per_second": speeds[1],
        "ratio": speeds[1] / speeds[0], "mean_acceptance_length": statistics.mean(r.stats.mean_acceptance_length for r in speculative),
        "num_speculative_tokens": engine.info["num_speculative_tokens"], "identical": identical, "device": engine.info["device"]}
    if json_output:
        print(json.dumps(figures))
        return
    print(figures["text"])
    print(f"\n{len(PROMPTS)} prompts of {MAX_TOKENS} tokens, greedy, {REPETITIONS} interleaved repetitions, medians; {figures['device']}")
    print(f"  plain         {speeds[0]:7.0f} tokens/s")
    print(f"  speculative   {speeds[1]:7.0f} tokens/s, {figures['ratio']:.2f} times plain, tau = {figures['num_speculative_tokens']}")
    print(f"  mean acceptance length  {figures['mean_acceptance_length']:.2f} tokens per cycle")
    print(f"  outputs identical       {'yes' if identical else 'NO'}")


def _interleaved(engine: Engine) -> tuple[list[GenerationResult], list[GenerationResult]]:
    """Plain and speculative in turn, so that whatever else the machine does meets both."""
    plain, speculative = [], []
    for _ in range(REPETITIONS):
        for prompt in PROMPTS:
            plain.append(engine.generate(prompt, max_tokens=MAX_TOKENS, ignore_eos=True, num_speculative_tokens=0))
            speculative.append(engine.generate(prompt, max_tokens=MAX_TOKENS, ignore_eos=True))
    return plain, speculative


def _speed(results: list[GenerationResult]) -> float:
    """Tokens per second over all prompts, each at the median of its repetitions."""
    seconds = [statistics.median(r.stats.decode_time for r in results[i::len(PROMPTS)]) for i in range(len(PROMPTS))]
    return (MAX_TOKENS - 1) * len(PROMPTS) / sum(seconds)
