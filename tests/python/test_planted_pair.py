"""The planted pair's dial is the acceptance that the engine measures, at every place in the cycle."""

import paceline
import planted_pair
import pytest

TAU = 4


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_measured_acceptance_is_the_dial(tmp_path, alpha, temperature):
    planted_pair.write_pair(tmp_path, alpha=alpha, **planted_pair.PRESETS["tiny"] | {"vocab": 4096})
    with paceline.Engine(tmp_path / "target", tmp_path / "draft", num_speculative_tokens=TAU, num_threads=1) as engine:
        stats = engine.generate([5, 9, 77], max_tokens=2000, ignore_eos=True, temperature=temperature, seed=3).stats
    rates = stats.acceptance_rate_per_position
    reached = 1.0  # share of cycles that judge the place
    for rate in rates:
        assert rate == pytest.approx(alpha * reached, abs=0.04)  # two standard deviations of the shortest run, 400 cycles
        reached = rate
    rejected = round(stats.num_cycles * (1 - rates[-1]))
    assert stats.num_accepted_draft_tokens / (stats.num_accepted_draft_tokens + rejected) == pytest.approx(alpha, abs=0.02)


def test_its_words_are_its_ids(tmp_path):
    planted_pair.write_pair(tmp_path, alpha=0.5, **planted_pair.PRESETS["tiny"] | {"vocab": 64})
    with paceline.Engine(tmp_path / "target", tmp_path / "draft") as engine:
        result = engine.generate("w17 w4 w63", max_tokens=5, ignore_eos=True)
    assert result.prompt_token_ids == (17, 4, 63)
    assert result.text.split() == [f"w{i}" for i in result.token_ids if i > 2]
