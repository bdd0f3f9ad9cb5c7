"""Diagnosis on real engines: what it measures is what the engine does, and what it cannot tell it refuses."""

import json
import pathlib
import sys

import numpy as np
import pytest
from paceline import Engine, demo_pair
from paceline.cli import main
from paceline.diagnosis.measure import measure

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "bench"))

import planted_pair  # noqa: E402

PROMPTS = ["def add(a, b):", "class Queue:", "import os", "for i in range("]


def planted(folder, alpha):
    planted_pair.write_pair(folder, **planted_pair.PRESETS["tiny"], alpha=alpha)
    return folder / "target", folder / "draft"


def test_figures_are_those_of_the_engine():
    with Engine(*demo_pair(), num_speculative_tokens=4) as engine:
        found = engine.diagnose(PROMPTS, tau=2, max_tokens=40, repetitions=1)
        trace = engine.trace()
        counted = [engine.generate(prompt, max_tokens=40, num_speculative_tokens=tau, ignore_eos=True, seed=0).stats for tau in (1, 2, 4) for prompt in PROMPTS]
    assert set(found.measured) == {0, 1, 2, 4} and all(speed > 0 for speed in found.measured.values()) and found.tau == 2
    assert found.speedup == pytest.approx(found.measured[2] / found.measured[0])
    assert found.num_positions > 100 and {1, 2, 3, 5} <= set(found.pass_rows) and found.num_cycles <= len(np.unique(trace.cycle))
    for tau in (1, 2, 4):  # the re-parse of what all taus showed, against cycles that ran
        ran = [each for each in counted if len(each.acceptance_rate_per_position) == tau]
        per_cycle = sum(each.num_tokens for each in ran) / sum(each.num_cycles for each in ran)
        assert found.predictions[tau].tokens_per_cycle == pytest.approx(per_cycle, rel=0.12), tau


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_a_planted_acceptance_is_what_is_found(tmp_path, alpha):
    with Engine(*planted(tmp_path, alpha), num_speculative_tokens=4) as engine:
        found = engine.diagnose([[7], [99]], max_tokens=50, repetitions=1)
    assert found.agreement == alpha
    assert found.predictions[4].tokens_per_cycle == pytest.approx(1 + 4 * alpha, rel=0.03)  # the last cycle of a text is cut
    names = [cause.name for cause in found.causes]
    assert ("acceptance_too_low" in names or "mismatch" in names) == (alpha == 0.0), names


def test_a_chain_s_diagnosis_is_of_its_draft():
    with Engine(*demo_pair(), drafter="chain", num_speculative_tokens=4) as engine:
        engine.generate("a = [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,", max_tokens=60, ignore_eos=True, num_speculative_tokens=0)
        found = engine.diagnose(PROMPTS, max_tokens=40, repetitions=1)
        trace = engine.trace()
    assert (trace.source[trace.tau > 0] == trace.SOURCES.index("ngram")).any()
    assert found.cycle["draft"] > 0 and found.draft_to_target > 0.02


def test_what_proposes_from_the_text_is_not_diagnosed():
    with Engine(demo_pair()[0], "ngram") as engine, pytest.raises(ValueError, match=r'\[diagnose\] draft must be a checkpoint, got "ngram"'):
        engine.diagnose(PROMPTS)


def test_a_ring_that_is_too_small_is_said(tmp_path):
    with Engine(*demo_pair(), trace_cycles=20) as engine, pytest.raises(ValueError, match="trace_cycles must hold all cycles of a batch, got 20"):
        measure(engine, PROMPTS, [0], max_tokens=40, repetitions=1)


def test_the_command(capsys, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("def add(a, b):\nimport os\n")
    arguments = ["diagnose", "--prompts", str(prompts), "--max-tokens", "30", "--repetitions", "1", "--num-speculative-tokens", "2"]
    assert main([*arguments, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["tau"] == 2 and set(told["measured"]) == {"0", "1", "2", "4", "8"} and told["speedup"] > 0
    assert main(arguments) == 0
    page = capsys.readouterr().out
    assert "tau 2 decodes" in page and "Speedup by tau:" in page and "<- in use" in page
