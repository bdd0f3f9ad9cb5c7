"""One request on its way through an engine: chunks while it runs, its result when it is done."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Generator, Iterator, Sequence
from typing import Any

from paceline import _core, checks
from paceline.called import named
from paceline.event_loop import bell_of_this_loop
from paceline.results import Chunk, GenerationResult, Stats, TokenLogprob, logprobs_of, stop_reason_of
from paceline.sampling_params import SamplingParams
from paceline.tokenizer import TextStream


class Request(Iterator[Chunk], AsyncIterator[Chunk]):
    """What `Engine.submit` gives. The engine works on it from now on, whoever waits or does not.

    Iterate over it, with `for` or `async for`: a chunk per cycle, or several cycles' in one for a consumer who is more than 64 behind.
    Or take everything at once: `request.result()` or `await request`. Each chunk comes once; the result holds all of them, those
    that were iterated over included. One consumer at a time: threads take turns, coroutines beside them are refused.

    Dropping the last reference cancels the request.
    """

    def __init__(self, submission: _core.Submission, prompt: Sequence[int], params: SamplingParams, token_bytes: Sequence[bytes],
                 method: str) -> None:
        self._method = method  # that made it: errors are said in its name
        self._submission = submission
        self._prompt = tuple(prompt)
        self._params = params
        self._decoder = TextStream(token_bytes, params._stop_bytes()) if token_bytes else None
        self._consuming = threading.Lock()
        self._awaited_for = False  # by a coroutine, of whatever loop
        self._last: _core.Output | None = None  # of all, once it has been taken
        self._text: list[str] = []
        self._token_ids: list[int] = []
        self._logprobs: list[TokenLogprob] = []

    def __repr__(self) -> str:
        state = f"ended by {self._last.finish_reason}" if self._last else "done" if self._submission.done() else "running or waiting"
        return f"Request({len(self._prompt)} prompt tokens, {len(self._token_ids)} tokens read, {state})"

    def cancel(self) -> None:
        """End it within a cycle, with what it has and finish_reason "cancelled"; nothing happens where it has ended. Returns at once."""
        self._submission.cancel()

    def done(self) -> bool:
        """Whether it has ended: nothing waits any more."""
        return self._submission.done()

    def ready(self) -> bool:
        """Whether there is something to take: `next` would not wait."""
        return self._submission.ready()

    def result(self, timeout: float | None = None) -> GenerationResult:
        """Everything, once it is done.

        timeout: seconds to wait at most, at least 0; None: for ever. Raises TimeoutError, and the request goes on (`asyncio.wait_for(request,
        ...)`, which cancels what it waits for, ends it); NumericError (the target gave NaN or
        an infinity, or the processors left no token); RuntimeError (the engine was closed); EngineDead.
        """
        return _unless_failed(self._whole_result(timeout))

    def __next__(self) -> Chunk:
        with self._consuming:
            output = None if self._last else self._submission.take(False, None)
            if output is None:
                raise StopIteration
            return self._chunk(output, self._take_in(output))

    async def __anext__(self) -> Chunk:
        taken = await self._take_async(False)
        if taken is None:
            raise StopAsyncIteration
        return self._chunk(*taken)

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
        if not self._consuming.acquire(timeout=-1 if timeout is None else min(timeout, threading.TIMEOUT_MAX)):
            raise TimeoutError(f"[Request] not done within {timeout} seconds: another thread is reading it")
        try:
            while self._last is None:
                output = self._submission.take(True, None if deadline is None else max(0.0, deadline - time.monotonic()))
                if output is None and self._submission.drained():
                    raise RuntimeError("[Request] an interrupt came between its last output and its reader: the output is lost")
                if output is None:
                    raise TimeoutError(f"[Request] not done within {timeout} seconds")
                self._take_in(output)
            return self._result()
        finally:
            self._consuming.release()

    async def _whole_result_async(self) -> GenerationResult:
        try:
            while await self._take_async(True) is not None:
                pass
        except asyncio.CancelledError:
            self.cancel()
            raise
        return self._result()

    async def _take_async(self, whole: bool) -> tuple[_core.Output, str] | None:
        """The next output and its text, or None after the last one."""
        bell = bell_of_this_loop()
        while True:
            if not self._consuming.acquire(blocking=False):
                raise RuntimeError("[Request] is being read by a thread: a coroutine must not wait for it")
            try:
                if self._awaited_for:
                    raise RuntimeError("[Request] is being read by another coroutine")
                if self._last is not None:
                    return None
                output = self._submission.take(whole, 0.0)
                if output is not None:
                    return output, self._take_in(output)
                self._awaited_for = True
            finally:
                self._consuming.release()
            try:
                await bell.wait(self._submission, whole)
            finally:
                self._awaited_for = False

    def _chunk(self, output: _core.Output, text: str) -> Chunk:
        if output.finish_reason == "error":
            raise _core.NumericError(named(self._method, output.error))
        return Chunk(
            text=text, token_ids=tuple(output.token_ids), logprobs=None if self._params.logprobs is None else logprobs_of(output),
            num_cycles=output.cycles, num_draft_tokens=output.tau, num_accepted_draft_tokens=output.accepted,
            verify_time=output.verify_time, sample_time=output.sample_time,
            finish_reason=output.finish_reason or None, stop_reason=stop_reason_of(output),
            stats=Stats._of(output.stats) if output.stats else None)

    def _take_in(self, output: _core.Output) -> str:
        """Its text, once: everything that was taken is remembered for the result."""
        text = ""
        if self._decoder:
            stop = output.stop_reason
            last = output.finish_reason != ""
            text = self._decoder.finish(output.token_ids, stop if isinstance(stop, bytes) else None) if last else self._decoder.feed(output.token_ids)
        self._text.append(text)
        self._token_ids += output.token_ids
        if self._params.logprobs is not None:
            self._logprobs += logprobs_of(output)
        if output.finish_reason:
            self._last = output
        return text

    def _result(self) -> GenerationResult:
        last = self._last
        assert last is not None and last.stats is not None and last.finish_reason != "" and self._params.seed is not None
        return GenerationResult(
            text="".join(self._text), token_ids=tuple(self._token_ids), prompt_token_ids=self._prompt,
            logprobs=None if self._params.logprobs is None else tuple(self._logprobs), finish_reason=last.finish_reason,
            stop_reason=stop_reason_of(last), seed=self._params.seed, stats=Stats._of(last.stats),
            error=named(self._method, last.error) or None)


def _unless_failed(result: GenerationResult) -> GenerationResult:
    if result.finish_reason == "error":
        raise _core.NumericError(result.error)
    return result
