"""The long runs of tests/soak in short, and that they would see what they look for."""

import dataclasses
import json
import random

import lengths
import pytest
import soak
import workload


def run(capsys, *arguments):
    status = soak.main([*map(str, arguments)])
    return status, json.loads(capsys.readouterr().out.rsplit("}", 1)[0] + "}")


@pytest.mark.slow
def test_random_batches_cancels_prefixes_and_taus_change_no_token(capsys):
    status, report = run(capsys, "differential", "--tokens", 12_000, "--items", 60)
    assert (status, report["wrong"]) == (0, 0) and report["tokens"] >= 12_000
    assert report["cancelled"] > 5 and report["cached_prompt_tokens"] > 1000  # or it would not be what its name says


@pytest.mark.slow
def test_short_requests_of_every_fate_leave_nothing_behind(capsys):
    """So few requests that caches still fill: what may grow is bounded loosely here, by 1 byte per request in the long run."""
    status, report = run(capsys, "endurance", "--requests", 4000, "--items", 60, "--bytes-per-request", 400)
    assert (status, report["wrong"]) == (0, 0), report["mistakes"]
    assert report["cancelled"] > 100 and report["refused"] > 50


@pytest.fixture
def few_items(monkeypatch):
    def fault(change):
        real = workload.items(20, 60, 1)
        monkeypatch.setattr(soak, "items", lambda *_: [change(item) for item in real])
    return fault


def test_one_wrong_token_is_seen(capsys, few_items):
    few_items(lambda item: dataclasses.replace(item, token_ids=item.token_ids[:-1] + (item.token_ids[-1] + 1,)))
    status, report = run(capsys, "differential", "--tokens", 20_000)
    assert status == 1 and "tokens" in report["mistakes"][0]


def test_one_wrong_logprob_is_seen(capsys, few_items):
    few_items(lambda item: dataclasses.replace(item, logprobs=item.logprobs and (item.logprobs[0],) * len(item.logprobs)))
    status, report = run(capsys, "differential", "--tokens", 20_000)
    assert status == 1 and report["mistakes"][0].endswith("logprobs")


@pytest.mark.slow
def test_a_leak_is_seen(capsys, monkeypatch):
    real, kept = soak.one_request, []

    async def leaking(*arguments, **options):
        kept.append(bytearray(40_000))  # more than what other tests have left in the heap
        await real(*arguments, **options)

    monkeypatch.setattr(soak, "one_request", leaking)
    status, report = run(capsys, "endurance", "--requests", 4000, "--items", 60, "--bytes-per-request", 400)
    assert status == 1 and "memory grows by" in " ".join(report["mistakes"])


def test_slopes_and_trends():
    choose = random.Random(1)
    xs = list(range(0, 4000, 100))
    flat = [5e6 + choose.gauss(0, 1000) for _ in xs]
    growth, least = soak.slope(xs, flat)
    assert abs(growth) < 1 and least < 0.5 and abs(soak.trend(flat)) < 3.72
    growth, least = soak.slope(xs, [y + 10 * x for x, y in zip(xs, flat, strict=True)])
    assert 9 < growth < 11 and least > 8 and soak.trend([y + 10 * x for x, y in zip(xs, flat, strict=True)]) > 3.72


def test_a_cliff_is_seen():
    choose = random.Random(2)
    rising = [1 + 0.0005 * i + choose.uniform(0, 0.05) for i in range(900)]
    assert lengths.largest_jump(rising)[0] < 1.05
    ratio, at = lengths.largest_jump([each * (1.25 if i >= 512 else 1) for i, each in enumerate(rising)])
    assert at == 512 and 1.2 < ratio < 1.3
    assert lengths.mistakes_in({"plain": (ratio, 1.2), "drafts": (1.1, 1.2)}) == [f"plain: {ratio:.2f}, at most 1.2"]
