"""One request on its way through an engine: chunks while it runs, its result when it is done."""

import asyncio
import contextlib
import dataclasses
import itertools
import threading
import time
from collections.abc import AsyncIterator, Generator, Iterator, Sequence
from typing import Any, NoReturn

from paceline import _core, checks
from paceline.called import named
from paceline.event_loop import bell_of_this_loop
from paceline.results import Chunk, GenerationResult, Stats, TokenLogprob, stop_reason_of
from paceline.sampling_params import SamplingParams
from paceline.tokenizer import TextStream


@dataclasses.dataclass(frozen=True, slots=True)
class _Kept:
    """What came of one output."""

    number: int
    chunk: Chunk | None
    """None: the model's error, behind the chunk of the tokens that came with it."""
    decoder: tuple[bytes, tuple[bytes, int]] | None
    """What the text stream holds back behind it."""
    end: _core.Output | None
    """Itself, where it is the last of all."""


class Request(Iterator[Chunk], AsyncIterator[Chunk]):
    """What `Engine.submit` gives. The engine works on it from now on, whoever waits or does not.

    Iterate over it, with `for` or `async for`: a chunk per cycle, or several cycles' in one for a consumer who is more than 64 behind.
    Or take everything at once: `request.result()` or `await request`. Each chunk comes once; the result holds all of them, those
    that were iterated over included. One consumer at a time: threads take turns, coroutines beside them are refused. Whoever catches a
    KeyboardInterrupt may go on: nothing is lost.

    Dropping the last reference cancels the request. Until it has been read to its end it keeps its engine.
    """

    def __init__(self, submission: _core.Submission, prompt: Sequence[int], params: SamplingParams, token_bytes: Sequence[bytes],
                 method: str, engine: object) -> None:
        self._method = method  # that made it: errors are said in its name
        self._submission = submission
        self._prompt = tuple(prompt)
        self._params = params
        self._decoder = TextStream(token_bytes, params._stop_bytes()) if token_bytes else None
        self._fresh = self._decoder.state() if self._decoder else None
        self._engine: object = engine
        self._consuming = threading.RLock()  # of whoever reads; released without having it, it says so
        self._awaited_for = False  # by a coroutine, of whatever loop
        self._kept: list[_Kept] = []  # all that was taken
        self._given = 0  # of them, to whoever iterates

    def __repr__(self) -> str:
        end = self._end()
        state = f"ended by {end.finish_reason}" if end else "done" if self._submission.done() else "running or waiting"
        read = sum(len(chunk.token_ids) for chunk in self._chunks())
        return f"Request({len(self._prompt)} prompt tokens, {read} tokens read, {state})"

    def cancel(self) -> None:
        """End it within a cycle, with what it has and finish_reason "cancelled"; nothing happens where it has ended. Returns at once."""
        self._submission.cancel()

    def done(self) -> bool:
        """Whether it has ended: nothing waits any more."""
        return self._submission.done()

    def ready(self) -> bool:
        """Whether there is something to take: `next` would not wait."""
        return self._submission.ready(self._number()) or self._given < len(self._kept)

    def result(self, timeout: float | None = None) -> GenerationResult:
        """Everything, once it is done.

        timeout: seconds to wait at most, at least 0; None: for ever. Raises TimeoutError, and the request goes on (`asyncio.wait_for(request,
        ...)`, which cancels what it waits for, ends it); NumericError (the target gave NaN or
        an infinity, or the processors left no token); RuntimeError (the engine was closed); EngineDead.
        """
        return _unless_failed(self._whole_result(timeout))

    def __next__(self) -> Chunk:
        """Raises what `result` raises, after the chunks that came before."""
        at = None
        try:
            with self._consuming:
                while self._given == len(self._kept):
                    output = None if self._end() else self._submission.take(False, None, self._number())
                    if output is None:
                        raise StopIteration
                    self._keep(output)
                at = self._given
                self._given = at + 1
                return self._kept[at].chunk or self._raised()
        except _core.NumericError:
            raise
        except BaseException:  # an interrupt on the way out: whoever catches it and goes on gets this one next
            with self._consuming:
                if at is not None and self._given == at + 1:
                    self._given = at
            raise

    async def __anext__(self) -> Chunk:
        at = await self._take_async(False)
        if at is None:
            raise StopAsyncIteration
        return self._kept[at].chunk or self._raised()

    def __await__(self) -> Generator[Any, None, GenerationResult]:
        """The result. Cancelling who awaits it cancels the request."""
        return self._awaited().__await__()

    async def _awaited(self) -> GenerationResult:
        return _unless_failed(await self._whole_result_async())

    def _whole_result(self, timeout: float | None = None) -> GenerationResult:
        """As `result`, but an error of the model is in the result."""
        if timeout is not None:
            timeout = checks.real("Request", "timeout", timeout)
            if not timeout >= 0:
                checks.refuse("Request", "timeout", "at least 0 or None", timeout)
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            if not self._consuming.acquire(timeout=-1 if timeout is None else min(timeout, threading.TIMEOUT_MAX)):
                raise TimeoutError(f"[Request] not done within {timeout} seconds: another thread is reading it")
            while not self._end():
                output = self._submission.take(True, None if deadline is None else max(0.0, deadline - time.monotonic()), self._number())
                if output is None:
                    self._refuse_to_wait_for_nothing()
                    raise TimeoutError(f"[Request] not done within {timeout} seconds")
                self._keep(output)
            self._given = len(self._kept)
            return self._result()
        finally:
            try:
                self._consuming.release()
            except RuntimeError:
                pass  # never had it: an interrupt or the timeout came first

    async def _whole_result_async(self) -> GenerationResult:
        try:
            while await self._take_async(True) is not None:
                pass
        except asyncio.CancelledError:
            self.cancel()
            raise
        return self._result()

    async def _take_async(self, whole: bool) -> int | None:
        """The index of the next that was kept, or None after the last one."""
        bell = bell_of_this_loop()
        while True:
            waits = False
            try:
                with self._alone():
                    if self._given == len(self._kept) and not self._end():
                        output = self._submission.take(whole, 0.0, self._number())
                        if output is not None:
                            self._keep(output)
                    if self._given < len(self._kept):
                        self._given += 1
                        return self._given - 1
                    if self._end():
                        return None
                    self._refuse_to_wait_for_nothing()
                    waits = self._awaited_for = True
                await bell.wait(self._submission, whole, self._number())
            finally:
                if waits:
                    self._awaited_for = False

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """A coroutine's turn: it does not wait for it."""
        if not self._consuming.acquire(blocking=False):
            raise RuntimeError("[Request] is being read by a thread: a coroutine must not wait for it")
        try:
            if self._awaited_for:
                raise RuntimeError("[Request] is being read by another coroutine")
            yield
        finally:
            self._consuming.release()

    def _refuse_to_wait_for_nothing(self) -> None:
        if self._submission.drained(self._number()):
            raise RuntimeError("[Request] its last output is gone, and nobody has kept it")

    def _keep(self, output: _core.Output) -> None:
        """Takes an output in, in one step at the end: an interrupt before that leaves everything as it was, the core gives the output again."""
        if output.number <= self._number():
            return
        text, state, is_last, failed = "", None, output.finish_reason != "", output.finish_reason == "error"
        before = self._kept[-1].decoder if self._kept else self._fresh
        if self._decoder and before:
            self._decoder.go_back(before)
            stop = output.stop_reason
            text = self._decoder.finish(output.token_ids, stop if isinstance(stop, bytes) else None) if is_last else self._decoder.feed(output.token_ids)
            state = self._decoder.state()
        chunk = Chunk._of(output, text, self._params.logprobs is not None)
        if not failed:
            self._kept.append(_Kept(output.number, chunk, state, output if is_last else None))
        elif chunk.token_ids or text:
            self._kept.extend((_Kept(output.number, chunk, state, None), _Kept(output.number, None, state, output)))
        else:
            self._kept.append(_Kept(output.number, None, state, output))
        if is_last:
            self._engine = None

    def _number(self) -> int:
        return self._kept[-1].number if self._kept else 0

    def _end(self) -> _core.Output | None:
        """The last output of all, once it has been taken."""
        return self._kept[-1].end if self._kept else None

    def _chunks(self) -> list[Chunk]:
        return [each.chunk for each in self._kept if each.chunk]

    def _raised(self) -> NoReturn:
        end = self._end()
        raise _core.NumericError(named(self._method, end.error if end else ""))

    def _result(self) -> GenerationResult:
        last, chunks = self._end(), self._chunks()
        assert last is not None and last.stats is not None and last.finish_reason != "" and self._params.seed is not None
        logprobs: tuple[TokenLogprob, ...] = tuple(itertools.chain.from_iterable(chunk.logprobs or () for chunk in chunks))
        return GenerationResult(
            text="".join(chunk.text for chunk in chunks), token_ids=tuple(itertools.chain.from_iterable(chunk.token_ids for chunk in chunks)),
            prompt_token_ids=self._prompt, logprobs=None if self._params.logprobs is None else logprobs, finish_reason=last.finish_reason,
            stop_reason=stop_reason_of(last), seed=self._params.seed, stats=Stats._of(last.stats),
            error=named(self._method, last.error) or None)


def _unless_failed(result: GenerationResult) -> GenerationResult:
    if result.finish_reason == "error":
        raise _core.NumericError(result.error)
    return result
