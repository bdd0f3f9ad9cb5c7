"""What a request may ask for."""

import dataclasses
import functools
import secrets
from collections.abc import Mapping, Sequence

from paceline import _core, checks
from paceline.other_names import with_hints

MAX_TAU = 64
MAX_LOGPROBS = 32

_refuse = functools.partial(checks.refuse, "SamplingParams")
_integer = functools.partial(checks.integer, "SamplingParams")
_real = functools.partial(checks.real, "SamplingParams")
_items = functools.partial(checks.items, "SamplingParams", ordered=False)


@with_hints
@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How one request is decoded. Greedy by default, and never truncated by a default.

    Processors run in this order, for draft and target alike: min_tokens, logit_bias, repetition, frequency and presence
    penalty, temperature, top_k, top_p (of what top_k left), min_p. Types are checked here, ranges when the request is made;
    either way the error is a ValueError that names the parameter.

    Attributes:
        max_tokens: Tokens to emit at most, at least 1. Where the context ends first (the engine's max_model_len), so does the text,
            with finish_reason "length"; tokens within the context that kv_cache_tokens has no room for are a CapacityError. None: as
            many as either holds.
        min_tokens: EOS and stop ids are masked until that many tokens are out. Stop strings are not held back.
        temperature: In [0, inf). 0 takes the largest logit, ties to the lowest id.
        top_p: In (0, 1]; 1 = off.
        top_k: At least 0; 0 = off.
        min_p: In [0, 1], relative to the best token's probability; 0 = off.
        repetition_penalty: Positive; 1 = off. Applied once per distinct token of prompt and output.
        presence_penalty: Finite; 0 = off. Subtracted from the logit of every token of the output.
        frequency_penalty: Finite; 0 = off. Subtracted once per occurrence in the output.
        logit_bias: Finite values added to the logits of token ids, at most 1024.
        seed: In [0, 2^64). Noise is a function of (seed, position, token id). None: drawn, and reported in the result.
        stop: Strings that end the text, which is cut before them: at most 128, of 8192 bytes in all. Needs a tokenizer.
        stop_token_ids: Token ids that end the text, besides the model's EOS.
        ignore_eos: Go on past the model's EOS ids.
        logprobs: Raw log-probabilities (temperature 1, before any processor) per emitted token: None = none, 0 = the chosen token's, k
            <= 32 = and the k largest.
        num_speculative_tokens: Draft tokens per cycle, 0 to 64 and at most the engine's. None = the engine's own; 0 = plain decoding.
            Never changes the output.
    """

    max_tokens: int | None = None
    min_tokens: int = 0
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | None = None
    seed: int | None = None
    stop: str | Sequence[str] | None = None
    stop_token_ids: Sequence[int] | None = None
    ignore_eos: bool = False
    logprobs: int | None = None
    num_speculative_tokens: int | None = None

    def __post_init__(self) -> None:
        for name, least, most in (("max_tokens", 1, checks.INT32_MAX), ("logprobs", 0, MAX_LOGPROBS), ("num_speculative_tokens", 0, MAX_TAU)):
            if getattr(self, name) is not None:
                self._keep(name, _integer(name, getattr(self, name), least, most))
        for name in ("min_tokens", "top_k"):
            self._keep(name, _integer(name, getattr(self, name), 0))
        for name in ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"):
            self._keep(name, _real(name, getattr(self, name)))
        if self.seed is not None:
            self._keep("seed", _integer("seed", self.seed, 0, 2**64 - 1))
        if not isinstance(self.ignore_eos, bool):
            _refuse("ignore_eos", "a bool", self.ignore_eos)
        if self.logit_bias is not None:
            if not isinstance(self.logit_bias, Mapping):
                _refuse("logit_bias", "a mapping of token ids to numbers", self.logit_bias)
            self._keep("logit_bias", {_integer("logit_bias ids", i, 0): _real("logit_bias", b) for i, b in self.logit_bias.items()})
        if self.stop is not None:
            strings = (self.stop,) if isinstance(self.stop, str) else _items("stop", "a string or strings", self.stop)
            for text in strings:
                if not isinstance(text, str):
                    _refuse("stop", "a string or strings", text)
                checks.text("SamplingParams", "stop", text)
            self._keep("stop", strings)
        if self.stop_token_ids is not None:
            ids = _items("stop_token_ids", "token ids", self.stop_token_ids)
            self._keep("stop_token_ids", tuple(_integer("stop_token_ids", i, 0) for i in ids))

    def _keep(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _stop_bytes(self) -> tuple[bytes, ...]:
        return tuple(text.encode() for text in self.stop or ())

    def _drawn(self) -> "SamplingParams":
        """With a seed. 53 bits: every JSON reader keeps them."""
        return self if self.seed is not None else dataclasses.replace(self, seed=secrets.randbits(53))

    def _for_core(self, eos_token_ids: Sequence[int]) -> _core.RequestParams:
        """-1 stands for None there; the seed must be drawn."""
        assert self.seed is not None
        stops = dict.fromkeys([*(self.stop_token_ids or ()), *(() if self.ignore_eos else eos_token_ids)])
        return _core.RequestParams(
            max_tokens=-1 if self.max_tokens is None else self.max_tokens, min_tokens=self.min_tokens, temperature=self.temperature,
            top_p=self.top_p, top_k=self.top_k, min_p=self.min_p, repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty, frequency_penalty=self.frequency_penalty, logit_bias=dict(self.logit_bias or {}),
            seed=self.seed, stop=self._stop_bytes(), stop_token_ids=list(stops), logprobs=-1 if self.logprobs is None else self.logprobs,
            num_speculative_tokens=-1 if self.num_speculative_tokens is None else self.num_speculative_tokens)

