"""Drafters without a model, from the outside: the same answers, and who gave them."""

import pytest
from paceline import Engine, demo_pair

PROMPT = "def first(items):\n    return items[0]\n\n\ndef second(items):\n    return items[1]\n\n\ndef third(items):\n    return"
OPTIONS = {"max_tokens": 80, "ignore_eos": True, "logprobs": 1, "seed": 7}
TARGET, DRAFT = demo_pair()


def ngram(**options):
    return Engine(TARGET, "ngram", **options)


def chain(**options):
    return Engine(TARGET, DRAFT, drafter="chain", **options)


@pytest.fixture(scope="module")
def plain():
    with Engine(TARGET) as engine:
        yield {temperature: engine.generate(PROMPT, temperature=temperature, **OPTIONS) for temperature in (0.0, 0.7)}


@pytest.mark.parametrize("make", [ngram, chain])
@pytest.mark.parametrize("acceptance, temperature", [("coupled", 0.0), ("coupled", 0.7), ("rejection", 0.0)])
@pytest.mark.parametrize("policy", [{}, {"policy": "auto"}, {"policy": "latency", "latency_target": 10.0}], ids=["fixed", "auto", "latency"])
def test_the_answers_are_those_of_plain_decoding(plain, make, acceptance, temperature, policy):
    with make(acceptance=acceptance, **policy) as engine:
        result = engine.generate(PROMPT, temperature=temperature, **OPTIONS)
        want = plain[temperature]
        assert (result.token_ids, result.logprobs, result.text) == (want.token_ids, want.logprobs, want.text)
        assert result.stats.num_accepted_draft_tokens <= result.stats.num_draft_tokens
        if not policy:  # a policy may find that drafts do not pay while others use the machine
            assert 0 < result.stats.num_accepted_draft_tokens and result.stats.num_cycles < want.stats.num_cycles


def test_a_policy_says_why_it_drafts_from_the_text(plain):
    with chain(policy="auto") as engine:
        for _ in range(4):
            engine.generate(PROMPT, **OPTIONS)
        trace = engine.trace()
    by_text = trace.where((trace.source == trace.SOURCES.index("ngram")) & (trace.tau > 0))
    assert len(by_text.tau) and set(by_text.reason) <= {trace.REASONS.index(reason) for reason in ("start", "best", "probe")}


def test_a_text_that_repeats_itself_costs_few_cycles():
    with ngram(num_speculative_tokens=15) as engine:
        words = engine.generate(PROMPT, max_tokens=1).prompt_token_ids
        again = engine.generate(words * 3, max_tokens=60, ignore_eos=True, logit_bias={words[0]: 100.0})
        assert again.token_ids == (words[0],) * 60 and again.stats.num_cycles < 12


def test_sampling_under_rejection_is_the_seeds_own():
    for make in (ngram, chain):
        with make(acceptance="rejection") as one, make(acceptance="rejection") as other:
            texts = [engine.generate(PROMPT, temperature=0.8, **OPTIONS).token_ids for engine in (one, other)]
            assert texts[0] == texts[1]


def test_info_says_who_drafts():
    for make, drafter, draft, tau in ((ngram, "ngram", None, 7), (chain, "chain", str(DRAFT), 3)):
        with make() as engine:
            assert (engine.info["drafter"], engine.info["draft"], engine.info["num_speculative_tokens"]) == (drafter, draft, tau)
    with Engine(TARGET, DRAFT) as engine:
        assert engine.info["drafter"] == "model"
    with Engine(TARGET) as engine:
        assert engine.info["drafter"] is None


def test_a_batch_beside_requests_without_drafts(plain):
    with ngram(max_num_seqs=3) as engine:
        requests = [engine.submit(PROMPT, temperature=0.0, num_speculative_tokens=tau, **OPTIONS) for tau in (None, 0, 2, None)]
        assert all(request.result().token_ids == plain[0.0].token_ids for request in requests)


def test_memory_for_the_text_is_planned():
    without, with_text = Engine.plan(TARGET, max_model_len=512), Engine.plan(TARGET, "ngram", num_speculative_tokens=0, max_model_len=512)
    assert 60 * 512 < with_text.workspace_bytes - without.workspace_bytes < 112 * 512 + 4096
    with ngram(num_speculative_tokens=0, max_model_len=512) as engine:
        assert engine.info["workspace_bytes"] >= with_text.workspace_bytes


@pytest.mark.parametrize("arguments, options, message", [
    ((TARGET,), {"drafter": "chain"}, 'drafter must be "auto" without the checkpoint of a draft'),
    ((TARGET, "ngram"), {"drafter": "chain"}, 'drafter must be "auto" without the checkpoint of a draft'),
    ((TARGET, DRAFT), {"drafter": "ngram"}, "drafter must be"),
    ((TARGET, "ngram"), {"draft_dtype": "int8"}, 'draft_dtype must be "auto" without a draft'),
    ((TARGET, "ngram"), {"num_speculative_tokens": 65}, "num_speculative_tokens must be"),
    ((TARGET, "./ngram"), {}, "draft must be a local directory"),
    ((TARGET, "ngram"), {"policy": "budget", "verify_budget": 4}, r'policy must be "fixed", "auto" or "latency" where the text drafts, got .budget.'),
    ((TARGET, DRAFT), {"drafter": "chain", "policy": "budget", "verify_budget": 4}, r'policy must be "fixed", "auto" or "latency" where the text drafts'),
])
def test_what_does_not_go_together_is_refused(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        Engine(*arguments, **options)
