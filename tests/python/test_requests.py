"""Request, the primitive: whoever reads it, however, gets what `generate` gives, each token once."""

import asyncio
import gc
import threading
import time
import types
import weakref

import numpy as np
import paceline
import pytest
from paceline import Engine, Request, SamplingParams, demo_pair

PROMPT = "def main(argv=None):\n    "


@pytest.fixture(scope="module")
def engine():
    with Engine(*demo_pair(), num_speculative_tokens=4, max_num_seqs=3, num_threads=2) as engine:
        yield engine


@pytest.fixture(scope="module")
def whole(engine):
    return engine.generate(PROMPT, max_tokens=90, logprobs=1)


def told(result):
    return result.text, result.token_ids, result.logprobs, result.finish_reason, result.stop_reason


def joined(chunks):
    chunks = list(chunks)
    return ("".join(c.text for c in chunks), tuple(t for c in chunks for t in c.token_ids), tuple(e for c in chunks for e in c.logprobs),
            chunks[-1].finish_reason, chunks[-1].stop_reason)


async def collected(request):
    return [chunk async for chunk in request]


def test_every_way_of_reading_gives_the_same(engine, whole):
    def submitted():
        return engine.submit(PROMPT, max_tokens=90, logprobs=1)

    async def everything():
        return (
            told(await submitted()), joined(await collected(submitted())), told(await engine.generate_async(PROMPT, max_tokens=90, logprobs=1)),
            joined(await collected(engine.stream_async(PROMPT, max_tokens=90, logprobs=1))),
            *[told(each) for each in await engine.generate_batch_async([PROMPT, PROMPT], max_tokens=90, logprobs=1)])

    ways = [told(submitted().result()), joined(submitted()), *asyncio.run(everything())]
    assert ways == [told(whole)] * 8


def test_the_result_holds_what_was_iterated_over(engine, whole):
    request = engine.submit(PROMPT, max_tokens=90, logprobs=1)
    assert isinstance(request, Request) and not request.done()
    first = [next(request), next(request)]
    result = request.result()
    assert told(result) == told(whole) and result.token_ids[:len(first[0].token_ids)] == first[0].token_ids
    assert request.done() and list(request) == [] and told(request.result()) == told(whole)  # each chunk once, the result for ever
    assert result.stats.num_cycles == whole.stats.num_cycles and result.seed == request.result().seed


def test_a_batch_larger_than_the_queue_and_the_places(whole):
    with Engine(*demo_pair(), max_num_seqs=2, max_queue=1, warmup=False) as engine:
        results = engine.generate_batch([PROMPT] * 12, max_tokens=20)
        assert [r.token_ids for r in results] == [whole.token_ids[:20]] * 12


def test_a_full_queue_is_a_capacity_error():
    with Engine(*demo_pair(), max_num_seqs=1, max_queue=2) as engine:
        requests, refused = [engine.submit(PROMPT, max_tokens=400, ignore_eos=True)], None
        while refused is None:
            try:
                requests.append(engine.submit(PROMPT, max_tokens=400, ignore_eos=True))
            except paceline.CapacityError as error:
                refused = str(error)
            assert len(requests) <= 4
        assert "requests wait already and max_queue = 2: come back later, or raise max_queue in Engine(...)" in refused
        assert len(requests) >= 3  # one decodes, two wait
        for request in requests:
            request.cancel()
        assert {request.result().finish_reason for request in requests} <= {"cancelled", "length"}
        assert len(engine.generate(PROMPT, max_tokens=5).token_ids) == 5


def test_a_timeout_leaves_the_request_running(engine, whole):
    request = engine.submit(PROMPT, max_tokens=90, logprobs=1)
    with pytest.raises(TimeoutError, match=r"\[Request\] not done within 0.0 seconds"):
        while True:
            request.result(timeout=0)
            request = engine.submit(PROMPT, max_tokens=90, logprobs=1)  # it was done already: once more
    with pytest.raises(TimeoutError, match="not done within 0.0001 seconds"):
        engine.submit(PROMPT, max_tokens=400, ignore_eos=True).result(timeout=0.0001)
    assert told(request.result(timeout=60)) == told(whole)


def test_cancelling_keeps_what_is_there(engine):
    free = engine.generate(PROMPT, max_tokens=400, ignore_eos=True).token_ids
    request = engine.submit(PROMPT, max_tokens=400, ignore_eos=True)
    first = next(request)
    request.cancel()
    rest = list(request)
    got = first.token_ids + tuple(t for chunk in rest for t in chunk.token_ids)
    assert rest[-1].finish_reason == "cancelled" and got == free[:len(got)] and len(got) < 400
    result = request.result()
    assert (result.finish_reason, result.token_ids) == ("cancelled", got) and result.stats.num_tokens == len(got)
    request.cancel()  # nothing left to end


def until(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_dropping_a_request_cancels_it(engine):
    before = engine.stats().num_requests
    requests = [engine.submit(PROMPT, max_tokens=400, ignore_eos=True) for _ in range(9)]
    next(requests[0])
    del requests
    gc.collect()
    until(lambda: engine.stats().num_requests == before + 9)
    started = time.monotonic()
    engine.generate(PROMPT, max_tokens=1)
    assert time.monotonic() - started < 10


def test_a_slow_consumer_gets_larger_chunks_and_holds_nobody_up(engine):
    free = engine.generate(PROMPT, max_tokens=400, ignore_eos=True, num_speculative_tokens=0)
    slow = engine.submit(PROMPT, max_tokens=400, ignore_eos=True, num_speculative_tokens=0)  # 400 cycles
    assert engine.generate(PROMPT, max_tokens=400, ignore_eos=True).token_ids == free.token_ids
    until(slow.done)
    chunks = list(slow)
    assert len(chunks) == 64 and [c.num_cycles for c in chunks[:-1]] == [1] * 63 and sum(c.num_cycles for c in chunks) == 400
    assert "".join(c.text for c in chunks) == free.text and tuple(t for c in chunks for t in c.token_ids) == free.token_ids


def test_ready_says_whether_next_would_wait(engine):
    request = engine.submit(PROMPT, max_tokens=30)
    until(request.ready)
    seen = 0
    while not request.done() or request.ready():
        if request.ready():
            seen += len(next(request).token_ids)
    assert seen == 30 and not request.ready()


def test_threads_take_turns_at_one_request(engine, whole):
    request, results = engine.submit(PROMPT, max_tokens=90, logprobs=1), []
    threads = [threading.Thread(target=lambda: results.append(told(request.result()))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == [told(whole)] * 4


def test_coroutines_share_a_loop_and_leave_it_free(engine, whole):
    async def scene():
        ticks = 0

        async def clock():
            nonlocal ticks
            while True:
                await asyncio.sleep(0.001)
                ticks += 1

        ticking = asyncio.ensure_future(clock())
        results = await asyncio.gather(*[engine.generate_async(PROMPT, max_tokens=90, logprobs=1) for _ in range(8)])
        ticking.cancel()
        return results, ticks

    for _ in range(2):  # another loop, another bell
        results, ticks = asyncio.run(scene())
        assert [told(each) for each in results] == [told(whole)] * 8 and ticks > 5


def test_cancelling_a_task_cancels_its_request(engine):
    async def scene():
        before = engine.stats().num_requests
        task = asyncio.ensure_future(engine.generate_async(PROMPT, max_tokens=400, ignore_eos=True))
        batch = asyncio.ensure_future(engine.generate_batch_async([PROMPT] * 4, max_tokens=400, ignore_eos=True))
        await asyncio.sleep(0.01)
        for each in (task, batch):
            each.cancel()
            with pytest.raises(asyncio.CancelledError):
                await each
        while engine.stats().num_requests < before + 5:
            await asyncio.sleep(0.005)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(engine.generate_async(PROMPT, max_tokens=400, ignore_eos=True), 0.005)
        async for _ in engine.stream_async(PROMPT, max_tokens=400, ignore_eos=True):
            break  # dropped, and so cancelled
        while engine.stats().num_requests < before + 7:
            await asyncio.sleep(0.005)
        return await engine.generate_async(PROMPT, max_tokens=5)

    assert len(asyncio.run(asyncio.wait_for(scene(), 60)).token_ids) == 5


def test_one_reader_at_a_time(engine):
    async def scene():
        request = engine.submit(PROMPT, max_tokens=400, ignore_eos=True)
        first = asyncio.ensure_future(request._awaited())
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match=r"\[Request\] is being read by another coroutine"):
            await request
        await asyncio.wait([first])
        return first.result()

    assert len(asyncio.run(scene()).token_ids) == 400
    request = engine.submit(PROMPT, max_tokens=400, ignore_eos=True)
    reader = threading.Thread(target=request.result)
    reader.start()

    def is_read():
        if not request._consuming.acquire(blocking=False):
            return True
        request._consuming.release()
        return False

    until(is_read)

    async def intruder():
        await request

    with pytest.raises(RuntimeError, match="is being read by a thread"):
        asyncio.run(intruder())
    request.cancel()
    reader.join(20)


def test_two_loops_do_not_wait_for_one_request(engine):
    request, refused = engine.submit(PROMPT, max_tokens=400, ignore_eos=True), threading.Event()

    async def second():
        while True:
            try:
                return await request
            except RuntimeError as error:
                assert "is being read by another coroutine" in str(error)
                refused.set()
                return None

    async def first():
        waiting = asyncio.ensure_future(request._awaited())
        await asyncio.sleep(0)
        other = threading.Thread(target=lambda: asyncio.run(second()))
        other.start()
        other.join(20)
        return await waiting

    assert len(asyncio.run(asyncio.wait_for(first(), 60)).token_ids) == 400 and refused.is_set()


def test_an_end_that_comes_between_two_looks_is_not_missed(engine):
    class Late:
        """Its first look finds nothing, and the end comes right after it."""

        def __init__(self, submission):
            self.real, self.looks = submission, 0

        def take(self, whole, timeout, kept):
            self.looks += 1
            if self.looks > 1:
                return self.real.take(whole, timeout, kept)
            while not self.real.done():
                time.sleep(0.001)
            return None

        def __getattr__(self, name):
            return getattr(self.real, name)

    request = engine.submit(PROMPT, max_tokens=5)
    request._submission = Late(request._submission)
    with pytest.raises(TimeoutError):
        request.result(timeout=0)
    assert len(request.result().token_ids) == 5


class Interrupted:
    """Of a list of places, each the number of a call and whether it comes before or behind it, an interrupt at each."""

    def __init__(self, real, places):
        self.real, self.places, self.calls = real, places, 0

    def take(self, whole, timeout, kept):
        self.calls += 1
        if (self.calls, "before") in self.places:
            raise KeyboardInterrupt
        output = self.real.take(whole, timeout, kept)
        if (self.calls, "behind") in self.places:
            raise KeyboardInterrupt
        return output

    def __getattr__(self, name):
        return getattr(self.real, name)


def test_an_interrupt_between_the_core_and_the_reader_loses_and_repeats_nothing(engine, whole):
    request = engine.submit(PROMPT, max_tokens=90, logprobs=1)
    request._submission = Interrupted(request._submission, {(1, "behind"), (2, "before"), (4, "behind"), (5, "behind"), (9, "behind")})
    chunks, interrupts = [], 0
    while not chunks or chunks[-1].finish_reason is None:
        try:
            chunks.append(next(request))
        except KeyboardInterrupt:
            interrupts += 1
    assert interrupts == 5 and joined(chunks) == told(whole) == told(request.result())

    request = engine.submit(PROMPT, max_tokens=90, logprobs=1)
    request._submission = Interrupted(request._submission, {(2, "behind"), (3, "behind")})
    first = [next(request)]  # its end is what is lost twice
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            request.result()
    assert told(request.result()) == told(whole) and first[0].token_ids == whole.token_ids[:len(first[0].token_ids)]
    assert request.result().stats.num_cycles == whole.stats.num_cycles


def test_an_interrupt_while_text_is_made_of_an_output_changes_nothing(engine, monkeypatch):
    asked = dict(max_tokens=90, logprobs=1, stop=[letter + "~~" for letter in " _abcdeflmnorstu("])  # nearly always something is held back
    whole = engine.generate(PROMPT, **asked)
    request, calls = engine.submit(PROMPT, **asked), 0
    feed = request._decoder.feed

    def interrupted(token_ids):
        nonlocal calls
        calls += 1
        text = feed(token_ids)
        if calls % 3 == 1:
            raise KeyboardInterrupt
        return text

    monkeypatch.setattr(request._decoder, "feed", interrupted)
    chunks = []
    while not chunks or chunks[-1].finish_reason is None:
        try:
            chunks.append(next(request))
        except KeyboardInterrupt:
            pass
    assert calls > 3 and joined(chunks) == told(whole) == told(request.result())


def test_a_coroutine_does_not_wait_for_what_is_gone(engine):
    class Losing:
        """Has lost its last output."""

        def __init__(self, real):
            self.real = real

        def take(self, whole, timeout, kept):
            return None

        def drained(self, kept):
            return True

        def __getattr__(self, name):
            return getattr(self.real, name)

    request = engine.submit(PROMPT, max_tokens=5)
    until(request.done)
    request._submission = Losing(request._submission)
    for read in (lambda: asyncio.run(asyncio.wait_for(request._awaited(), 20)), request.result):
        with pytest.raises(RuntimeError, match=r"\[Request\] its last output is gone, and nobody has kept it"):
            read()


def test_a_request_keeps_its_engine(whole):
    stream = Engine(*demo_pair(), num_speculative_tokens=4, num_threads=2).stream(PROMPT, max_tokens=90, logprobs=1)
    gc.collect()
    kept = weakref.ref(stream._engine)
    assert joined(stream) == told(whole)
    gc.collect()
    assert kept() is None and told(stream.result()) == told(whole)


def test_the_tokens_before_a_numeric_error_are_given(engine, whole):
    class Failing:
        """Its second output is the model's error, with the tokens that came before it in the same cycle."""

        def __init__(self, real):
            self.real = real

        def take(self, whole, timeout, kept):
            output = self.real.take(whole, timeout, kept)
            if kept == 0 and not whole:
                return output
            fields = ("number", "token_ids", "logprobs", "top_logprobs", "cycles", "tau", "accepted", "verify_time", "sample_time", "stop_reason")
            core = types.SimpleNamespace(**dict.fromkeys(dir(paceline._core.RequestStats), 0))
            core.drafted_per_position = core.accepted_per_position = ()
            return types.SimpleNamespace(**{name: getattr(output, name) for name in fields}, finish_reason="error", stats=core,
                                         error="[generate] the target's logits hold NaN")

        def __getattr__(self, name):
            return getattr(self.real, name)

    def failing():
        request = engine.submit(PROMPT, max_tokens=90, logprobs=1)
        until(request.done)
        request._submission = Failing(request._submission)
        return request

    def read(request):
        chunks = []
        with pytest.raises(paceline.NumericError, match=r"\[submit\] the target's logits hold NaN"):
            for chunk in request:
                chunks.append(chunk)
        assert list(request) == []
        return chunks

    async def read_async(request):
        chunks = []
        with pytest.raises(paceline.NumericError, match="logits hold NaN"):
            async for chunk in request:
                chunks.append(chunk)
        return chunks

    for chunks in (read(failing()), asyncio.run(read_async(failing()))):
        tokens = tuple(token for chunk in chunks for token in chunk.token_ids)
        assert len(chunks) == 2 and len(chunks[1].token_ids) > 0 and tokens == whole.token_ids[:len(tokens)]
        assert [chunk.finish_reason for chunk in chunks] == [None, None]


def test_a_numeric_error_is_raised_where_it_is_read(tmp_path):
    from test_engine_api import overflowing
    with Engine(overflowing(tmp_path / "target")) as engine:
        request = engine.submit(PROMPT)
        for _ in range(2):
            with pytest.raises(paceline.NumericError, match="NaN or infinity"):
                request.result()

        async def scene():
            with pytest.raises(paceline.NumericError):
                await engine.submit(PROMPT)
            with pytest.raises(paceline.NumericError):
                await collected(engine.submit(PROMPT))
            return await engine.generate_batch_async([PROMPT, PROMPT])

        assert [each.finish_reason for each in asyncio.run(scene())] == ["error", "error"]


def test_requests_of_a_closed_engine_end_with_what_they_have(whole):
    engine = Engine(*demo_pair(), warmup=False)
    request = engine.submit(PROMPT, max_tokens=400, ignore_eos=True)
    waiting = engine.submit(PROMPT, max_tokens=400, ignore_eos=True)
    got = next(request).token_ids
    engine.close()
    with pytest.raises(RuntimeError, match="the engine is closed"):
        for chunk in request:
            got += chunk.token_ids
    assert got == whole.token_ids[:len(got)] and waiting.done()
    for call in (waiting.result, lambda: asyncio.run(waiting._awaited()), lambda: engine.submit(PROMPT), engine.stats):
        with pytest.raises(RuntimeError, match="the engine is closed"):
            call()
    waiting.cancel()


def test_prompts_are_copied(engine):
    ids = np.arange(1, 40, dtype=np.int64)
    want = engine.generate(ids.copy(), max_tokens=40).token_ids
    request = engine.submit(ids, SamplingParams(max_tokens=40))
    ids[:] = 0
    del ids
    assert request.result().token_ids == want


def test_an_engine_is_an_asynchronous_context():
    async def use():
        async with Engine(*demo_pair()) as engine:
            streamed = [token async for chunk in engine.stream_async(PROMPT, max_tokens=20) for token in chunk.token_ids]
            left = engine.submit(PROMPT)
        with pytest.raises(RuntimeError, match="the engine is closed"):
            engine.stats()
        with pytest.raises(RuntimeError, match="the engine is closed"):
            await left
        with pytest.raises(RuntimeError, match="the engine is closed"):
            async with engine:
                pass
        return streamed

    with Engine(*demo_pair()) as engine:
        assert asyncio.run(use()) == list(engine.generate(PROMPT, max_tokens=20).token_ids)
