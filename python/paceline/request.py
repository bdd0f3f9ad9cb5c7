"""One request on its way through an engine: chunks while it runs, its result when it is done."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence

from paceline import _core
from paceline.results import Chunk, GenerationResult, Stats, TokenLogprob, logprobs_of
from paceline.sampling_params import SamplingParams
from paceline.tokenizer import TextStream


class Request(Iterator[Chunk]):
    """An iterator of chunks, one per cycle that gave this request something. Closing or dropping it cancels the request."""

    def __init__(self, prompt: Sequence[int], params: SamplingParams, token_bytes: Sequence[bytes] | None,
                 advance: Callable[["Request"], None], drop: Callable[[int], None]) -> None:
        """advance: run the engine until `outputs` is not empty. drop: the engine may forget the request; called once, from any thread."""
        self.prompt = prompt
        self.params = params
        self.outputs: deque[_core.Output] = deque()
        self.id = 0  # the engine gives it
        self.ended = self.closed = False
        self._advance = advance
        self._drop = drop
        self._text = TextStream(token_bytes, params._stop_bytes()) if token_bytes else None

    def __next__(self) -> Chunk:
        if self.ended:
            raise StopIteration
        output = self._next_output()
        if output.finish_reason == "error":
            raise _core.NumericError(output.error)
        token_ids = tuple(output.token_ids)
        stop = output.stop_reason
        text = ""
        if self._text:
            text = self._text.finish(token_ids, _string_of(stop)) if self.ended else self._text.feed(token_ids)
        return Chunk(
            text=text, token_ids=token_ids, logprobs=None if self.params.logprobs is None else logprobs_of(output),
            num_draft_tokens=output.tau, num_accepted_draft_tokens=output.accepted,
            verify_time=output.verify_time, sample_time=output.sample_time,
            finish_reason=output.finish_reason or None, stop_reason=stop.decode() if isinstance(stop, bytes) else stop,
            stats=Stats._of(output.stats) if output.stats else None)

    def result(self) -> GenerationResult:
        """Everything at once; an error of the model is in the result, not raised."""
        token_ids: list[int] = []
        logprobs: list[TokenLogprob] = []
        while not self.ended:
            output = self._next_output()
            token_ids += output.token_ids
            if self.params.logprobs is not None:
                logprobs += logprobs_of(output)
        stop = output.stop_reason
        assert output.stats is not None and self.params.seed is not None and output.finish_reason != ""
        return GenerationResult(
            text=self._text.finish(token_ids, _string_of(stop)) if self._text else "", token_ids=tuple(token_ids),
            prompt_token_ids=tuple(self.prompt), logprobs=None if self.params.logprobs is None else tuple(logprobs),
            finish_reason=output.finish_reason, stop_reason=stop.decode() if isinstance(stop, bytes) else stop, seed=self.params.seed,
            stats=Stats._of(output.stats), error=output.error or None)

    def _next_output(self) -> _core.Output:
        if not self.outputs:
            self._advance(self)
        output = self.outputs.popleft()
        self.ended = output.finish_reason != ""
        return output

    def close(self) -> None:
        """Cancel what is left of it."""
        if not self.closed:
            self.ended = self.closed = True
            self._drop(self.id)

    def __del__(self) -> None:
        self.close()


def _string_of(stop: int | bytes | None) -> bytes | None:
    return stop if isinstance(stop, bytes) else None
