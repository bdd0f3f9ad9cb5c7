"""What the engine gives back."""

import dataclasses
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from paceline import _core

FinishReason = Literal["stop", "length", "cancelled", "error"]


@dataclasses.dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Raw log-probability of an emitted token: log-softmax of the target's logits, temperature 1, before any processor."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]
    """(token id, logprob) of the k most probable tokens, best first, ties to the lowest id; k as asked for."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """What speculation did and what it cost. Times are in seconds."""

    num_requests: int
    num_cached_prompt_tokens: int
    """Tokens of prompts that the target did not read, since it had read them for earlier requests (the prefix cache)."""
    num_cycles: int
    num_tokens: int
    """Tokens emitted."""
    num_draft_tokens: int
    num_accepted_draft_tokens: int
    num_draft_faults: int
    """Cycles that drafted less because a row of the draft's logits held NaN or infinity, or left no token to choose. It costs speed only;
    such a row of the target ends its request with a NumericError."""
    drafted_per_position: tuple[int, ...]
    """How many cycles drafted a token at each place of the cycle."""
    accepted_per_position: tuple[int, ...]
    num_prefill_passes: int
    """That fed prompts, to the target or to the draft; one that feeds several requests counts for each."""
    prefill_time: float
    time_to_first_token: float
    """From the request to its first token, waiting included; the mean when there are several requests."""
    draft_time: float
    verify_time: float
    """The target's passes. A cycle that serves several requests counts for each of them."""
    sample_time: float
    """Choosing tokens from the target's rows and judging the drafts; for the draft's own tokens that is part of draft_time."""
    decode_time: float
    """From the first token to the last."""

    @property
    def mean_acceptance_length(self) -> float:
        """Tokens per cycle: the accepted drafts and the target's own. 0 before the first cycle."""
        return 1 + self.num_accepted_draft_tokens / self.num_cycles if self.num_cycles else 0.0

    @property
    def acceptance_rate_per_position(self) -> tuple[float, ...]:
        """For each place of the cycle, the share of cycles drafting that far whose draft there was accepted."""
        return tuple(a / d if d else 0.0 for a, d in zip(self.accepted_per_position, self.drafted_per_position, strict=True))

    @property
    def decode_tokens_per_second(self) -> float:
        """Tokens after the first one, per second of decoding; 0 when there are none."""
        return max(0, self.num_tokens - self.num_requests) / self.decode_time if self.decode_time else 0.0

    @classmethod
    def _of(cls, core: _core.RequestStats) -> "Stats":
        return cls(
            num_requests=core.num_requests, num_cached_prompt_tokens=core.num_cached_prompt_tokens, num_cycles=core.num_cycles,
            num_tokens=core.num_emitted_tokens, num_draft_tokens=core.num_draft_tokens, num_accepted_draft_tokens=core.num_accepted_draft_tokens,
            num_draft_faults=core.num_draft_faults, drafted_per_position=tuple(core.drafted_per_position),
            accepted_per_position=tuple(core.accepted_per_position), num_prefill_passes=core.num_prefill_passes, prefill_time=core.prefill_time,
            time_to_first_token=core.time_to_first_token / max(1, core.num_requests), draft_time=core.draft_time, verify_time=core.verify_time,
            sample_time=core.sample_time, decode_time=core.decode_time)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """What a cycle gave a request, or several cycles where the consumer is far behind. The texts of all chunks joined are the text of the
    result."""

    text: str
    """Whole characters only; what may still become a stop string is held back."""
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] | None
    """One per token, when asked for."""
    num_cycles: int
    """1; more for a consumer who was 64 chunks behind; 0 for the end of a cancelled request."""
    num_draft_tokens: int
    num_accepted_draft_tokens: int
    verify_time: float
    """Seconds of the target's pass in this cycle, over num_draft_tokens + 1 rows of this request and whatever else shared it."""
    sample_time: float
    """Seconds of choosing and judging in this cycle."""
    finish_reason: FinishReason | None
    """None while the stream goes on."""
    stop_reason: int | str | None
    """The stop id or stop string that ended it."""
    stats: Stats | None
    """Of the whole request, with the last chunk."""

    @classmethod
    def _of(cls, output: _core.Output, text: str, with_logprobs: bool) -> "Chunk":
        """Of an output. One that ends in the model's error does not end the stream: the error comes behind it."""
        failed = output.finish_reason == "error"
        return cls(
            text=text, token_ids=tuple(output.token_ids), logprobs=logprobs_of(output) if with_logprobs else None,
            num_cycles=output.cycles, num_draft_tokens=output.tau, num_accepted_draft_tokens=output.accepted,
            verify_time=output.verify_time, sample_time=output.sample_time,
            finish_reason=None if output.finish_reason == "" or output.finish_reason == "error" else output.finish_reason,
            stop_reason=stop_reason_of(output), stats=Stats._of(output.stats) if output.stats and not failed else None)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GenerationResult:
    text: str
    """What follows the prompt, cut before a stop string; special tokens leave no text. Empty without a tokenizer."""
    token_ids: tuple[int, ...]
    """Every emitted token, a stop id or the end of a stop string included."""
    prompt_token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] | None
    finish_reason: FinishReason
    stop_reason: int | str | None
    seed: int
    """The seed in use: given again, it gives these very tokens."""
    stats: Stats
    error: str | None = None
    """finish_reason "error" only, which `generate` and `stream` raise as NumericError."""


@dataclasses.dataclass(frozen=True, slots=True)
class Verification:
    logprobs: NDArray[np.float32]
    """[drafts + 1, vocab_size] log-softmax of the raw logits. Row t is conditioned on the prefix and the first t drafts."""


def logprobs_of(output: _core.Output) -> tuple[TokenLogprob, ...]:
    return tuple(
        TokenLogprob(token, logprob, tuple(top))
        for token, logprob, top in zip(output.token_ids, output.logprobs, output.top_logprobs, strict=True))


def stop_reason_of(output: _core.Output) -> int | str | None:
    stop = output.stop_reason
    return stop.decode() if isinstance(stop, bytes) else stop
