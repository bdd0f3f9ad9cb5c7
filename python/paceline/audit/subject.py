"""The pair under audit: engines of either rule, the draft's rows, and the operations themselves without models."""

import contextlib
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paceline import _core
from paceline.arguments import AcceptanceRule, prompt_ids
from paceline.audit.texts import TEXT_TOKENS
from paceline.commands.demo import PROMPTS
from paceline.devices import make_backend
from paceline.engine import Engine
from paceline.sampling_params import SamplingParams

RULES: tuple[AcceptanceRule, ...] = ("coupled", "rejection")


class Subject:
    """`engine` serves its own rule; what else is needed is built from the same arguments, and closed at the end."""

    def __init__(self, engine: Engine) -> None:
        self.tau = int(engine.info["num_speculative_tokens"])
        if not self.tau:
            raise ValueError("[audit] the engine must have a draft and num_speculative_tokens of at least 1: without them there is nothing to audit")
        if engine.info["drafter"] != "model":
            raise ValueError(f'[audit] drafter must be the draft model alone, got {engine.info["drafter"]!r}: the book draws every draft again from its row')
        self._own, self._arguments = engine, engine._arguments
        self._open = contextlib.ExitStack()
        self._engines: dict[str, Engine] = {str(engine.info["acceptance"]): engine}
        self.num_ids = int(engine.info["vocab_size"])
        self._drafts: Engine | None = None
        self._backend: _core.Backend | None = None

    def __enter__(self) -> "Subject":
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def engine(self, rule: AcceptanceRule) -> Engine:
        if rule not in self._engines:
            self._engines[rule] = self._open.enter_context(Engine(**self._arguments | {"acceptance": rule, "warmup": False}))
        return self._engines[rule]

    @property
    def drafts(self) -> Engine:
        """An engine whose target is the draft: rows are a function of their sequence, so its rows are those that drafts are drawn from."""
        if self._drafts is None:
            info, given = self._own.info, self._arguments
            self._drafts = self._open.enter_context(Engine(
                given["draft"], tokenizer=given["tokenizer"], device=given["device"], dtype=info["draft_dtype"], kv_dtype=info["kv_dtype"],
                max_num_seqs=64, kv_cache_tokens=info["kv_cache_tokens"], num_threads=given["num_threads"], warmup=False))
        return self._drafts

    @functools.cached_property
    def draft_vocabulary(self) -> int:
        """Columns of the draft's rows."""
        return int(self.drafts.verify([0], []).logprobs.shape[1])

    @property
    def longest(self) -> int:
        """Tokens of a text whose every row both models have."""
        return min(int(engine.info[name]) for engine in (self._own, self.drafts) for name in ("max_model_len", "kv_cache_tokens"))

    def prompts(self, given: Sequence[Any] | None) -> list[list[int]]:
        """Token ids, cut so that a text fits behind them."""
        if given is None and self._own._tokenizer is None:
            given = [np.random.default_rng(i).integers(0, self.num_ids, 8).tolist() for i in range(8)]
        room = max(1, self.longest - TEXT_TOKENS)
        ids = [prompt_ids(prompt, self._own._tokenizer)[-room:] for prompt in (PROMPTS if given is None else given)]
        if not ids or not all(ids):
            raise ValueError("[audit] prompts must be at least one, each of at least 1 token")
        return ids

    def replay(self, rule: AcceptanceRule, target: NDArray[np.float32], draft: NDArray[np.float32], params: SamplingParams, cycles: int,
               uniforms: NDArray[np.float64] | None = None) -> _core.Replay:
        """The engine's own cycle over these rows of logits (csrc/decode/replay.h), on a backend of the same kind."""
        if self._backend is None:
            _, self._backend = make_backend(self._arguments["device"], self._own.info["num_threads"] or 0, [])
        return _core.replay(self._backend, rule, target, draft, params._for_core([]), cycles, uniforms)

    def setup(self) -> dict[str, Any]:
        names = ("target", "draft", "device", "dtype", "draft_dtype", "kv_dtype", "num_speculative_tokens", "acceptance", "max_num_seqs", "vocab_size")
        return {name: self._own.info[name] for name in names} | {"draft_vocab_size": self.draft_vocabulary}
