"""What requests leave for later ones, from the outside: the same answers, with less to read."""

import pytest
from paceline import Engine, demo_pair

OPENING = "class Stack:\n    def __init__(self):\n        self.items = []\n\n    def push(self, item):\n        self.items.append(item)\n\n"
TURNS = ["    def pop(self):\n", "\n\ndef test_pop():\n    stack = Stack()\n", "\nfor i in range(10):\n    "]


def conversation(engine, **sampling):
    """Results of turns, each of which begins with everything said before."""
    text, results = list(engine.generate(OPENING * 2, max_tokens=1).prompt_token_ids), []
    for number, turn in enumerate(TURNS):
        text += engine.generate(turn, max_tokens=1).prompt_token_ids
        results.append(engine.generate(text, max_tokens=50, logprobs=1, ignore_eos=True, seed=number, **sampling))
        text += results[-1].token_ids
    return results


@pytest.mark.parametrize("acceptance, sampling", [("coupled", {}), ("coupled", {"temperature": 0.9}), ("rejection", {"temperature": 0.9})])
def test_a_conversation_goes_on_where_it_was_and_says_the_same(acceptance, sampling):
    with Engine(*demo_pair(), acceptance=acceptance) as warm, Engine(*demo_pair(), acceptance=acceptance, prefix_cache_bytes=0) as cold:
        assert (warm.info["prefix_cache_bytes"], cold.info["prefix_cache_bytes"]) == (None, 0)
        here, there = conversation(warm, **sampling), conversation(cold, **sampling)
        assert [(r.token_ids, r.logprobs) for r in here] == [(r.token_ids, r.logprobs) for r in there]
        found, before = [r.stats.num_cached_prompt_tokens for r in here], [0, *(len(r.prompt_token_ids) + len(r.token_ids) - 1 for r in here)]
        assert found[1:] == [length // 64 * 64 for length in before[1:-1]] and found[-1] >= 128, "all whole pages of what was said before"
        assert all(r.stats.num_cached_prompt_tokens == 0 for r in there)
        assert (warm.stats().num_cached_prompt_tokens, cold.stats().num_cached_prompt_tokens) == (sum(found), 0)
        if acceptance == "rejection":  # the bits depend on the cycles
            assert [r.stats.num_accepted_draft_tokens for r in here] == [r.stats.num_accepted_draft_tokens for r in there]


def test_a_budget_too_small_for_a_page_keeps_none():
    with Engine(*demo_pair(), prefix_cache_bytes=1000) as engine:
        for _ in range(2):
            assert engine.generate(OPENING * 2, max_tokens=20).stats.num_cached_prompt_tokens == 0
    with Engine(*demo_pair()) as engine:
        first, second = (engine.generate(OPENING * 2, max_tokens=20) for _ in range(2))
        assert first.stats.num_cached_prompt_tokens == 0 < second.stats.num_cached_prompt_tokens == (len(first.prompt_token_ids) - 1) // 64 * 64
