"""Who chooses tau: `policy=` and what belongs to it. The choice changes speed, never the text."""

import pytest
from paceline import Engine, demo_pair

PROMPTS = ["def add(a, b):", "The old man", "1, 2, 3, "]
POLICIES = [{"policy": "auto"}, {"policy": "latency", "latency_target": 0.02}, {"policy": "budget", "verify_budget": 5},
            {"policy": "auto", "min_draft_confidence": 0.5}, {"min_draft_confidence": 0.6}]


@pytest.fixture(scope="module")
def plain():
    with Engine(demo_pair()[0]) as engine:
        return {(prompt, t): engine.generate(prompt, max_tokens=80, temperature=t, seed=7) for prompt in PROMPTS for t in (0.0, 0.9)}


@pytest.mark.parametrize("how", POLICIES, ids=lambda how: "-".join(map(str, how.values())))
def test_the_text_is_plain_decoding_s(plain, how):
    with Engine(*demo_pair(), max_num_seqs=2, **how) as engine:
        assert {name: engine.info[name] for name in how} == how
        assert engine.info["num_speculative_tokens"] == (3 if engine.info["policy"] == "fixed" else 8)
        for t in (0.0, 0.9):
            for prompt, got in zip(PROMPTS, engine.generate_batch(PROMPTS, max_tokens=80, temperature=t, seed=7)):
                assert got.token_ids == plain[prompt, t].token_ids


def test_a_request_s_own_tau_goes_first():
    with Engine(*demo_pair(), policy="auto") as engine:
        result = engine.generate(PROMPTS[0], max_tokens=40, num_speculative_tokens=2)
        assert max(len(result.stats.acceptance_rate_per_position), 0) == 2


@pytest.mark.parametrize("given, said", [
    ({"policy": "best"}, "policy must be one of fixed, auto, budget, latency, got 'best'"),
    ({"policy": "budget"}, 'verify_budget must be given with policy="budget", got None'),
    ({"verify_budget": 4}, 'verify_budget must be None without policy="budget", got 4'),
    ({"policy": "budget", "verify_budget": 0}, "verify_budget must be in [1, 2147483647], got 0"),
    ({"policy": "latency"}, 'latency_target must be given with policy="latency", got None'),
    ({"policy": "auto", "latency_target": 1.0}, 'latency_target must be None without policy="latency", got 1.0'),
    ({"policy": "latency", "latency_target": 0}, "latency_target must be above 0 seconds and finite, got 0"),
    ({"policy": "latency", "latency_target": float("nan")}, "latency_target must be above 0 seconds and finite, got nan"),
    ({"policy": "latency", "latency_target": "1"}, "latency_target must be a number, got '1'"),
    ({"min_draft_confidence": 1.0}, "min_draft_confidence must be in [0, 1), got 1.0"),
    ({"min_draft_confidence": float("nan")}, "min_draft_confidence must be in [0, 1), got nan")])
def test_what_contradicts_itself_is_refused(given, said):
    with pytest.raises(ValueError) as error:
        Engine(*demo_pair(), **given)
    assert str(error.value) == f"[Engine] {said}"


@pytest.mark.parametrize("given", [{"policy": "auto"}, {"min_draft_confidence": 0.5}])
def test_without_a_draft_there_is_nothing_to_choose(given):
    (name, value), = given.items()
    with pytest.raises(ValueError, match=rf"^\[Engine\] {name} must be .* without a draft, got {value!r}$"):
        Engine(demo_pair()[0], **given)
