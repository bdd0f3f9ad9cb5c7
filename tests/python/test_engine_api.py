"""Engine from the outside, on the bundled pair: what a caller gets for what it asks, and what it is told when it errs."""

import json
import os
import resource
import shutil
import struct
import threading

import numpy as np
import paceline
import pytest
from paceline import Engine, SamplingParams, demo_pair

PROMPT = "def main(argv=None):\n    "


@pytest.fixture(scope="module")
def engine():
    with Engine(*demo_pair(), num_speculative_tokens=4, max_num_seqs=3, num_threads=2) as engine:
        yield engine


@pytest.mark.parametrize("acceptance", ["coupled", "rejection"])
@pytest.mark.parametrize("tau", [1, 4])
def test_greedy_output_does_not_depend_on_speculation(acceptance, tau):
    with Engine(*demo_pair(), num_speculative_tokens=tau, acceptance=acceptance) as engine:
        plain = engine.generate(PROMPT, max_tokens=100, logprobs=2, num_speculative_tokens=0)
        speculative = engine.generate(PROMPT, max_tokens=100, logprobs=2)
    assert (speculative.token_ids, speculative.logprobs, speculative.text) == (plain.token_ids, plain.logprobs, plain.text)
    assert plain.stats.num_draft_tokens == 0 and speculative.stats.num_accepted_draft_tokens > 10


@pytest.mark.parametrize("sampling", [
    {"temperature": 0.8}, {"temperature": 1.0, "top_p": 0.9, "top_k": 50}, {"temperature": 1.3, "min_p": 0.05, "repetition_penalty": 1.1},
    {"temperature": 1.0, "frequency_penalty": 0.3, "presence_penalty": 0.2, "logit_bias": {5: 2.0, 9: -4.0}, "min_tokens": 40}])
def test_seeded_output_does_not_depend_on_speculation(engine, sampling):
    plain = engine.generate(PROMPT, max_tokens=80, logprobs=0, seed=7, num_speculative_tokens=0, **sampling)
    speculative = engine.generate(PROMPT, max_tokens=80, logprobs=0, seed=7, **sampling)
    assert (speculative.token_ids, speculative.logprobs) == (plain.token_ids, plain.logprobs)


def test_the_result_says_what_was_done(engine):
    result = engine.generate(PROMPT, max_tokens=30, temperature=1.0, logprobs=3)
    assert (len(result.token_ids), result.finish_reason, result.stop_reason, result.error) == (30, "length", None, None)
    again = engine.generate(list(result.prompt_token_ids), max_tokens=30, temperature=1.0, seed=result.seed)
    assert (again.token_ids, again.logprobs) == (result.token_ids, None)
    assert engine.generate(PROMPT, max_tokens=30, temperature=1.0).seed != result.seed
    for token, entry in zip(result.token_ids, result.logprobs, strict=True):
        best = [logprob for _, logprob in entry.top]
        assert entry.token_id == token and len(best) == 3 and best == sorted(best, reverse=True) and entry.logprob <= best[0] <= 0
        assert dict(entry.top).get(token, entry.logprob) == entry.logprob
    stats = result.stats
    assert stats.num_tokens == 30 == stats.num_cycles + stats.num_accepted_draft_tokens
    assert sum(stats.drafted_per_position) == stats.num_draft_tokens and sum(stats.accepted_per_position) == stats.num_accepted_draft_tokens
    assert 1 <= stats.mean_acceptance_length <= 5 and 0 < stats.verify_time and 0 < stats.sample_time and 0 < stats.draft_time
    assert 0 < stats.prefill_time and 0 < stats.time_to_first_token and stats.decode_tokens_per_second > 0


def test_logprobs_are_the_rows_of_verify(engine):
    result = engine.generate(PROMPT, max_tokens=12, temperature=1.0, seed=3, logprobs=0)
    rows = engine.verify(result.prompt_token_ids, result.token_ids[:-1]).logprobs
    assert rows.shape == (12, 2048) and rows.dtype == np.float32
    assert [entry.logprob for entry in result.logprobs] == [float(row[t]) for row, t in zip(rows, result.token_ids, strict=True)]
    assert np.exp(rows.astype(float)).sum(axis=1) == pytest.approx(1, abs=1e-5)


def test_a_batch_is_its_requests(engine):
    prompts = ["import ", "class A:\n", "x = [", "for i in", "try:\n"]
    params = [SamplingParams(max_tokens=20 + 9 * i, temperature=i % 2, seed=i) for i in range(5)]
    batch = engine.generate_batch(prompts, params)
    alone = [engine.generate(prompt, each) for prompt, each in zip(prompts, params, strict=True)]
    assert [r.token_ids for r in batch] == [r.token_ids for r in alone]
    assert [len(r.token_ids) for r in engine.generate_batch(np.array([[1, 2], [3, 4]]), max_tokens=3)] == [3, 3]
    assert engine.generate_batch([]) == []


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.0, "seed": 5, "logprobs": 1}, {"stop": [" = ", "\n\n"]}])
def test_a_stream_is_the_result_in_pieces(engine, sampling):
    result = engine.generate(PROMPT, max_tokens=90, **sampling)
    chunks = list(engine.stream(PROMPT, max_tokens=90, **sampling))
    assert "".join(chunk.text for chunk in chunks) == result.text
    assert tuple(token for chunk in chunks for token in chunk.token_ids) == result.token_ids
    if sampling.get("logprobs"):
        assert tuple(entry for chunk in chunks for entry in chunk.logprobs) == result.logprobs
    assert len(chunks) == result.stats.num_cycles
    assert all(chunk.finish_reason is None and chunk.stats is None for chunk in chunks[:-1])
    last = chunks[-1]
    assert (last.finish_reason, last.stop_reason, last.stats.num_tokens) == (result.finish_reason, result.stop_reason, len(result.token_ids))
    assert sum(chunk.num_accepted_draft_tokens for chunk in chunks) == result.stats.num_accepted_draft_tokens
    for part in ("verify_time", "sample_time"):
        assert all(getattr(chunk, part) > 0 for chunk in chunks)
        assert sum(getattr(chunk, part) for chunk in chunks) == pytest.approx(getattr(last.stats, part))


def test_a_stop_string_ends_the_text_before_it(engine):
    free = engine.generate(PROMPT, max_tokens=60)
    stop = free.text[20:25]
    for tau in (0, 4):
        result = engine.generate(PROMPT, max_tokens=60, stop=stop, num_speculative_tokens=tau)
        assert (result.text, result.finish_reason, result.stop_reason) == (free.text[:free.text.index(stop)], "stop", stop)
        assert result.token_ids == free.token_ids[:len(result.token_ids)]


def test_stop_ids_and_eos(engine):
    free = engine.generate(PROMPT, max_tokens=60).token_ids
    stop = free[17]
    result = engine.generate(PROMPT, max_tokens=60, stop_token_ids=[stop])
    assert (result.token_ids, result.finish_reason, result.stop_reason) == (free[:free.index(stop) + 1], "stop", stop)
    assert engine.info["eos_token_ids"] == (0,)
    to_eos = {"logit_bias": {0: 100.0}, "max_tokens": 9}
    ended = engine.generate(PROMPT, **to_eos)
    assert (ended.token_ids, ended.text, ended.stop_reason) == ((0,), "", 0)
    assert engine.generate(PROMPT, ignore_eos=True, **to_eos).token_ids == (0,) * 9
    assert engine.generate(PROMPT, min_tokens=4, **to_eos).token_ids.index(0) == 4


def test_without_a_limit_the_context_is_the_limit(engine):
    result = engine.generate(PROMPT, ignore_eos=True)
    assert len(result.prompt_token_ids) + len(result.token_ids) == engine.info["max_model_len"] == 512
    assert result.finish_reason == "length"
    assert engine.generate(PROMPT, ignore_eos=True, max_tokens=5000).token_ids == result.token_ids


def test_a_dropped_stream_is_cancelled():
    with Engine(*demo_pair()) as engine:
        stream = engine.stream(PROMPT, ignore_eos=True)
        emitted = sum(len(next(stream).token_ids) for _ in range(3))
        del stream
        assert len(engine.generate(PROMPT, max_tokens=5).token_ids) == 5  # there is one place: it would wait for the other's end
        assert engine.stats().num_requests == 2 and emitted + 5 <= engine.stats().num_tokens < 300  # of 512: the engine does not wait for its reader


def test_threads_share_an_engine(engine):
    params = [SamplingParams(max_tokens=40, temperature=1.0, seed=i) for i in range(6)]
    alone, shared = [engine.generate(PROMPT, each).token_ids for each in params], [None] * 6

    def work(i):
        shared[i] = engine.generate(PROMPT, params[i]).token_ids if i % 2 else tuple(
            token for chunk in engine.stream(PROMPT, params[i]) for token in chunk.token_ids)
    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert shared == alone


def test_an_engine_shows_what_it_is(engine):
    shown = repr(engine)
    assert shown.startswith(f"Engine(target={engine.info['target']!r}, draft=") and "num_speculative_tokens=4" in shown


def test_stats_add_up():
    with Engine(*demo_pair(), max_num_seqs=2) as engine:
        assert engine.stats().mean_acceptance_length == engine.stats().decode_tokens_per_second == 0
        results = engine.generate_batch(["a", "import os", "def f("], max_tokens=25)
        total = engine.stats()
    assert (total.num_requests, total.num_tokens) == (3, 75)
    assert total.num_cycles == sum(r.stats.num_cycles for r in results)
    assert total.accepted_per_position == tuple(map(sum, zip(*(r.stats.accepted_per_position for r in results), strict=True)))
    assert total.time_to_first_token == pytest.approx(sum(r.stats.time_to_first_token for r in results) / 3)


@pytest.mark.parametrize("options, message", [
    ({"temperature": -0.1}, r"\[generate\] temperature must be in \[0, inf\), got -0.1"),
    ({"temperature": float("nan")}, "temperature must be in"), ({"temperature": "hot"}, "temperature must be a number, got 'hot'"),
    ({"top_p": 1.5}, r"\[generate\] top_p must be in \(0, 1\], got 1.5"), ({"top_p": 0}, "top_p must be"), ({"min_p": 2}, "min_p must be"),
    ({"top_k": 1.5}, r"\[generate\] top_k must be an int, got 1.5"), ({"top_k": -1}, "top_k must be in"), ({"top_k": True}, "top_k must be an int"),
    ({"max_tokens": 0}, "max_tokens must be"), ({"max_tokens": -1}, "max_tokens must be"), ({"max_tokens": 2**31}, "max_tokens must be"),
    ({"min_tokens": 9, "max_tokens": 3}, "min_tokens must be at most max_tokens"), ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"presence_penalty": float("inf")}, "presence_penalty must be finite"), ({"seed": -1}, "seed must be"), ({"seed": 2**64}, "seed must be"),
    ({"logprobs": 33}, r"logprobs must be in \[0, 32\], got 33"), ({"logprobs": -1}, r"logprobs must be in \[0, 32\], got -1"),
    ({"stop": "a\udc80"}, r"\[generate\] stop must be valid Unicode text, got a lone surrogate at index 1"), ({"stop": ""}, "stop strings must not be empty"),
    ({"stop": [b"x"]}, "stop must be a string"), ({"top_p": 1.0000001}, r"in \(0, 1\], got 1.0000001$"), ({"stop_token_ids": [2048]}, r"stop_token_ids must be in \[0, 2048\)"),
    ({"logit_bias": {2048: 1.0}}, "logit_bias ids must be"), ({"logit_bias": {1: float("nan")}}, "logit_bias values"),
    ({"logit_bias": [1]}, "logit_bias must be a mapping"), ({"ignore_eos": 1}, "ignore_eos must be a bool"),
    ({"num_speculative_tokens": 5}, r"num_speculative_tokens must be in \[0, 4\], got 5: raise it in Engine"),
    ({"num_speculative_tokens": -1}, r"num_speculative_tokens must be in \[0, 64\], got -1"),
    ({"num_speculative_tokens": 65}, r"num_speculative_tokens must be in \[0, 64\], got 65")])
def test_a_bad_parameter_is_named(engine, options, message):
    with pytest.raises(ValueError, match=message):
        engine.generate(PROMPT, **options)
    with pytest.raises(ValueError, match=message.replace("generate", "stream")):
        engine.stream(PROMPT, **options)  # at once, not at the first chunk


@pytest.mark.parametrize("prompt, message", [
    ("", "prompt must have at least 1 token"), ([], "prompt must have at least 1 token"), ([1, 2048], r"must be in \[0, 2048\), got 2048"),
    ([-1], "must be in"), ([2**40], "must be in"), ([1.5], "must be an int, got 1.5"), (7, "prompt must be text, token ids or messages, got 7"),
    ([1] * 512, "prompt must be shorter than max_model_len = 512"), (b"bytes", "prompt must be text, token ids or messages, got b'bytes'"),
    ({1, 2}, "prompt must be text, token ids or messages, got {1, 2}"), (frozenset([1]), "prompt must be text, token ids or messages, got frozenset"),
    (["a", "b"], "prompt must be text, token ids or messages, got several texts: generate_batch takes several prompts"),
    ("ab\ud800c", r"\[generate\] prompt must be valid Unicode text, got a lone surrogate at index 2")])
def test_a_bad_prompt_is_named(engine, prompt, message):
    with pytest.raises(ValueError, match=message):
        engine.generate(prompt)


@pytest.mark.parametrize("prompts, options, message", [
    (["a", [1, 2048]], {}, "prompts[1]: prompt token ids must be in [0, 2048), got 2048"),
    (["a", "\ud800"], {}, "prompts[1]: prompt must be valid Unicode text, got a lone surrogate at index 0"),
    (["a", "b"], {"top_p": 2.0}, "prompts[0]: top_p must be in (0, 1], got 2"), (["a", "b"], {"top_k": "x"}, "prompts[0]: top_k must be an int, got 'x'"),
    (["a", "b", ""], {}, "prompts[2]: prompt must have at least 1 token, got 0"),
    ("text", {}, "prompts must be several prompts, got 'text'"), (7, {}, "prompts must be several prompts, got 7"),
    (["a", "b"], {"sampling_params": [SamplingParams()]}, "sampling_params must be one for all or one per prompt, 2, got 1"),
    (["a", "b"], {"sampling_params": [SamplingParams(), {}]}, "prompts[1]: sampling_params must be a SamplingParams, got {}"),
    (["a", "b"], {"sampling_params": 3}, "sampling_params must be a SamplingParams or one per prompt, got 3")])
def test_a_batch_with_a_bad_argument_runs_nothing(prompts, options, message):
    with Engine(*demo_pair(), warmup=False) as engine:
        with pytest.raises(ValueError) as error:
            engine.generate_batch(prompts, **options)
        assert str(error.value) == f"[generate_batch] {message}"
        assert len(engine.generate("a", max_tokens=2).token_ids) == 2
        assert engine.stats().num_requests == 1  # of the batch nothing had been begun


def test_a_batch_names_the_prompt_that_cannot_fit():
    with Engine(*demo_pair(), kv_cache_tokens=64, warmup=False) as engine:
        with pytest.raises(paceline.CapacityError, match=r"\[generate_batch\] prompts\[1\]: prompt of 64 tokens and one more do not fit"):
            engine.generate_batch([[1], [1] * 64])


def test_an_unknown_override_is_a_type_error(engine):
    with pytest.raises(TypeError, match="temprature"):
        engine.generate(PROMPT, temprature=1.0)


@pytest.mark.parametrize("options, kind, message", [
    ({"device": "tpu"}, ValueError, "device must be one of"), ({"device": "cuda"}, RuntimeError, 'device="cuda" cannot run: there is no NVIDIA driver'),
    ({"dtype": "int3"}, ValueError, "dtype must be one of"), ({"kv_dtype": "fp8"}, ValueError, "kv_dtype must be one of"),
    ({"num_speculative_tokens": 65}, ValueError, r"num_speculative_tokens must be in \[0, 64\]"),
    ({"acceptance": "typical"}, ValueError, "acceptance must be one of coupled, rejection, got 'typical'"),
    ({"max_model_len": 513}, ValueError, "max_model_len must be at most the target's context of 512"),
    ({"max_num_seqs": 0}, ValueError, "max_num_seqs must be in"), ({"num_threads": 0}, ValueError, "num_threads must be in"),
    ({"max_num_seqs": 200, "num_speculative_tokens": 3}, ValueError, r"max_num_seqs \* \(num_speculative_tokens \+ 1\) must be at most 512"),
    ({"kv_cache_tokens": 2**24 + 1}, ValueError, r"kv_cache_tokens must be in \[2, 16777216\], got 16777217"),
    ({"kv_cache_tokens": 2**31 - 1}, ValueError, r"kv_cache_tokens must be in \[2, 16777216\], got 2147483647"),
    ({"kv_cache_tokens": 1}, ValueError, "kv_cache_tokens must be in"), ({"tokenizer": "nowhere"}, paceline.ModelFileError, "nowhere")])
def test_a_bad_engine_argument_is_named(options, kind, message):
    with pytest.raises(kind, match=message):
        Engine(*demo_pair(), **options)


def test_speculation_needs_a_draft():
    with pytest.raises(ValueError, match="num_speculative_tokens must be 0 without a draft, got 2"):
        Engine(demo_pair()[0], num_speculative_tokens=2)
    with Engine(demo_pair()[0]) as engine:
        with pytest.raises(ValueError, match=r"\[generate\] num_speculative_tokens must be 0 without a draft, got 2"):
            engine.generate("a", num_speculative_tokens=2)
        assert engine.info["num_speculative_tokens"] == 0 and len(engine.generate("a", max_tokens=3).token_ids) == 3


def test_an_engine_that_has_no_room_says_what_to_lower():
    """Before it takes anything: a system that promises more than it has would end the process, once the memory is used."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(paceline.CapacityError) as error:
        Engine(*demo_pair(), kv_cache_tokens=2**24, kv_dtype="fp32")
    assert str(error.value).startswith(
        "[Engine] no memory on device cpu for kv_cache_tokens=16777216, max_num_seqs=1, max_model_len=512, dtype='bf16', draft_dtype='bf16': "
        "lower one of them, or take a smaller dtype (more than is available); weights ")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kilobytes, of 120 GB


def test_what_cannot_fit_names_the_parameter():
    with Engine(*demo_pair(), kv_cache_tokens=64) as engine:
        for prompt, options, said in (([1] * 9, {"max_tokens": 200}, "9 tokens and max_tokens = 200"), ([1] * 64, {}, "64 tokens and one more")):
            with pytest.raises(paceline.CapacityError) as error:
                engine.generate(prompt, **options)
            assert str(error.value) == f"[generate] prompt of {said} do not fit into kv_cache_tokens = 64: raise kv_cache_tokens in Engine(...)"
        with pytest.raises(paceline.CapacityError, match="max_tokens = 5000 do not fit"):  # the context would hold 512 of them
            engine.generate(PROMPT, max_tokens=5000)
        assert engine.generate([1] * 9, ignore_eos=True).finish_reason == "length"
        assert len(engine.generate(PROMPT, max_tokens=20).token_ids) == 20


def test_text_that_cannot_fit_is_refused_unread(monkeypatch):
    with Engine(*demo_pair()) as engine:
        limit = 8 * 512 * engine._tokenizer.longest_token
        with pytest.raises(ValueError, match="prompt must be shorter than max_model_len = 512"):
            engine.generate("a " * (limit // 2))
        monkeypatch.setattr(type(engine._tokenizer), "encode", None)  # it would take seconds
        for prompt in ("a" * (limit + 1), "hello " * 10**7):
            with pytest.raises(ValueError, match=rf"^\[generate\] prompt must be at most {limit} characters, .* of max_model_len = 512, got {len(prompt)}$"):
                engine.generate(prompt)


def test_an_answer_that_memory_does_not_hold_is_refused(engine, monkeypatch):
    monkeypatch.setattr("paceline.engine.available_memory", lambda: 100_000)
    with pytest.raises(paceline.CapacityError, match=r"^\[verify\] 20 rows are 0.000 GB, 0.000 GB are available: ask for fewer at a time"):
        engine.verify([1], [2] * 19)
    assert engine.verify([1], [2]).logprobs.shape == (2, 2048)


def test_an_interrupt_while_costs_are_kept_does_not_keep_an_engine_open(monkeypatch, tmp_path):
    def interrupted(*_):
        raise KeyboardInterrupt

    engine = Engine(*demo_pair(), policy="auto", cost_cache=tmp_path)
    engine.generate(PROMPT, max_tokens=60, ignore_eos=True)
    monkeypatch.setattr("paceline.engine.kinds_of_cycles", interrupted)
    with pytest.raises(KeyboardInterrupt):
        engine.close()
    with pytest.raises(RuntimeError, match="closed"):
        engine.generate(PROMPT)


def test_a_closed_engine_says_so():
    engine = Engine(*demo_pair())
    stream = engine.stream(PROMPT)
    next(stream)
    engine.close()
    engine.close()
    for call in (lambda: list(stream), lambda: engine.generate(PROMPT), lambda: engine.verify([1], [2])):
        with pytest.raises(RuntimeError, match="the engine is closed"):
            call()


def test_a_closed_engine_keeps_no_backend():
    def threads():
        return len(os.listdir("/proc/self/task"))

    before = threads()
    engine = Engine(*demo_pair(), num_threads=3)
    assert threads() == before + 3  # the engine's own, which is the first of the three, and two workers
    engine.close()
    assert threads() == before
    del engine


def without_tokenizer(source, directory):
    shutil.copytree(source, directory, ignore=shutil.ignore_patterns("tokenizer.json"))
    return directory


def test_token_ids_need_no_tokenizer(tmp_path):
    with Engine(without_tokenizer(demo_pair()[0], tmp_path / "target")) as engine:
        assert (len(engine.generate([1, 2], max_tokens=4).token_ids), engine.generate([1, 2], max_tokens=4).text) == (4, "")
        with pytest.raises(ValueError, match="no tokenizer"):
            engine.generate("text")
        with pytest.raises(ValueError, match="stop strings need a tokenizer"):
            engine.generate([1], stop="x")


def test_a_draft_of_another_tokenizer_is_refused(tmp_path):
    draft = without_tokenizer(demo_pair()[1], tmp_path / "draft")
    words = json.loads((demo_pair()[1] / "tokenizer.json").read_text())
    vocab = words["model"]["vocab"]
    vocab["!"], vocab["#"] = vocab["#"], vocab["!"]
    (draft / "tokenizer.json").write_text(json.dumps(words))
    with pytest.raises(ValueError, match="draft must have the target's tokenizer, got another: 2 of its"):
        Engine(demo_pair()[0], draft)


def test_an_eos_that_does_not_exist_is_refused(tmp_path):
    target = shutil.copytree(demo_pair()[0], tmp_path / "target")
    (target / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 2048]}))
    with pytest.raises(paceline.ModelFileError, match="eos_token_id must be in .0, 2048., the ids that exist, found 2048"):
        Engine(target)


def overflowing(directory):
    """The bundled target whose final norm makes every logit infinite or NaN. All its weights are finite."""
    target = shutil.copytree(demo_pair()[0], directory)
    data = bytearray((target / "model.safetensors").read_bytes())
    size = struct.unpack("<Q", data[:8])[0]
    begin, end = json.loads(data[8:8 + size])["model.norm.weight"]["data_offsets"]
    data[8 + size + begin:8 + size + end] = struct.pack("<H", 0x7F7F) * ((end - begin) // 2)
    (target / "model.safetensors").write_bytes(data)
    return target


def test_a_row_that_is_not_finite_ends_its_request(tmp_path):
    with Engine(overflowing(tmp_path / "target")) as engine:
        with pytest.raises(paceline.NumericError, match="NaN or infinity"):
            engine.generate(PROMPT)
        with pytest.raises(paceline.NumericError, match="NaN or infinity"):
            list(engine.stream(PROMPT))
        assert [(r.finish_reason, "NaN" in r.error) for r in engine.generate_batch([PROMPT, PROMPT])] == [("error", True)] * 2
