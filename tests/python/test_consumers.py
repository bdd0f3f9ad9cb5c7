"""What the code of a consumer may do in the middle of an engine's work: between two chunks, in a task, or in an argument of its own making.
There are no callbacks; these are the places where somebody else's code runs. Each case is a process of its own, whose end within a minute
shows that nothing waits for ever."""

import subprocess
import sys

import pytest

BEGIN = """
import asyncio, gc, threading, time, paceline
OPTIONS = dict(max_tokens=200, ignore_eos=True)
engine = paceline.Engine(*paceline.demo_pair(), num_threads=2, max_num_seqs=3)
want, other = [engine.generate(prompt, **OPTIONS).token_ids for prompt in ("def f(", "class A:")]
beside = engine.submit("def f(", **OPTIONS)

def stream():
    return engine.stream("class A:", **OPTIONS)

def read(chunks):
    return tuple(token for chunk in chunks for token in chunk.token_ids)
"""
GOES_ON = """
assert beside.result().token_ids == want
assert engine.generate("def f(", **OPTIONS).token_ids == want
print("sound")
"""
CLOSED = """
for call in (beside.result, lambda: engine.generate("def f("), engine.stats):
    try:
        call()
        raise SystemExit("nothing is said of the close")
    except RuntimeError as error:
        assert "closed" in str(error), error
print("sound")
"""
CASES = {
    "raises": ("""
beside.result()
tokens, ended = engine.stats().num_tokens, engine.stats().num_requests
try:
    for chunk in stream():
        raise KeyError("mine")
except KeyError as error:
    assert error.args == ("mine",)
gc.collect()
deadline = time.monotonic() + 20
while engine.stats().num_requests == ended:
    assert time.monotonic() < deadline, "the request of whoever raised is not cancelled"
    time.sleep(0.005)
assert engine.stats().num_tokens < tokens + 200, "it ran to its end"
""", GOES_ON),
    "blocks": ("""
chunks = stream()
first = next(chunks)
assert beside.result().token_ids == want  # nobody waits for who does not read
time.sleep(0.3)
assert first.token_ids + read(chunks) == other
""", GOES_ON),
    "asks again": ("""
chunks, got = stream(), ()
for number, chunk in enumerate(chunks):
    got += chunk.token_ids
    if number < 3:
        assert engine.generate("def f(", **OPTIONS).token_ids == want
        assert len(engine.verify([1, 2], [3]).logprobs) == 2
        engine.stats(), engine.trace()
assert got == other
""", GOES_ON),
    "reads two in turns": ("""
one, two, got = stream(), stream(), [(), ()]
for first in one:
    second = next(two, None)
    got = [got[0] + first.token_ids, got[1] + (second.token_ids if second else ())]
got[1] += read(two)
assert got == [other, other]
""", GOES_ON),
    "drops the engine": ("""
chunks = stream()
first = next(chunks)
del engine
gc.collect()
assert first.token_ids + read(chunks) == other  # whoever reads keeps it
assert beside.result().token_ids == want
print("sound")
""", ""),
    "closes the engine": ("""
said = got = None
try:
    for number, chunk in enumerate(stream()):
        if number == 2:
            engine.close()
except RuntimeError as error:
    said = str(error)
assert said and "closed" in said, said
""", CLOSED),
    "closes it from another thread": ("""
chunks = stream()
next(chunks)
threading.Thread(target=engine.close).start()
try:
    read(chunks)  # all of it, or as much as there was
except RuntimeError as error:
    assert "closed" in str(error), error
engine.close()
""", CLOSED),
    "cancels itself": ("""
chunks = stream()
for chunk in chunks:
    chunks.cancel()
result = chunks.result()
assert result.finish_reason == "cancelled" and result.token_ids == other[:len(result.token_ids)], result.finish_reason
""", GOES_ON),
    "raises in a task": ("""
async def raises():
    async for chunk in engine.stream_async("class A:", **OPTIONS):
        raise KeyError("mine")
async def reads():
    return [token async for chunk in engine.stream_async("class A:", **OPTIONS) for token in chunk.token_ids]
async def both():
    return await asyncio.gather(raises(), reads(), return_exceptions=True)
error, got = asyncio.run(both())
assert isinstance(error, KeyError) and tuple(got) == other, error
""", GOES_ON),
    "an argument that raises": ("""
class Odd:
    def __index__(self): raise KeyError("mine")
    __float__ = __index__
before = engine.stats().num_requests
for call in (lambda: engine.submit([1, Odd()]), lambda: engine.generate([1], seed=Odd()), lambda: engine.generate([1], temperature=Odd())):
    try:
        call()
        raise SystemExit("it was not asked")
    except KeyError as error:
        assert error.args == ("mine",)
""", GOES_ON),
    "an argument that asks the engine": ("""
class Odd:
    def __index__(self):
        assert engine.generate("def f(", **OPTIONS).token_ids == want
        return 5
assert engine.generate([1, Odd()], max_tokens=4).token_ids == engine.generate([1, 5], max_tokens=4).token_ids
""", GOES_ON),
    "an argument that closes the engine": ("""
class Odd:
    def __index__(self):
        engine.close()
        return 5
try:
    engine.generate([1, Odd()])
    raise SystemExit("nothing is said of the close")
except RuntimeError as error:
    assert "closed" in str(error), error
""", CLOSED)}


@pytest.mark.parametrize("name", CASES)
def test_a_consumer_that(name):
    body, end = CASES[name]
    done = subprocess.run([sys.executable, "-c", BEGIN + body + end], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "sound\n"), done.stderr
