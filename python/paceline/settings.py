"""The arguments of Engine once they are resolved, and what is made of them."""

import dataclasses
from pathlib import Path
from typing import Any, Literal

from paceline import _core
from paceline.calibration import cost_file
from paceline.devices import processor
from paceline.kv_budget import available_memory
from paceline.loading import Checkpoint, core_config, load_cached_weights, load_weights, weights_key
from paceline.memory_plan import MemoryPlan, plan_memory
from paceline.tokenizer import Tokenizer

PREFILL_CHUNK = {"cpu": 256, "cuda": 64}  # rows of a prompt per pass: weights are read once per chunk; a product on CUDA has 64
PREFILL_CHUNK_BESIDE = 0  # of one while others decode. 0: as many as cost four plain passes


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """An engine's arguments with every "auto" and None resolved. Names as in Engine."""

    target: Checkpoint
    draft: Checkpoint | None
    drafter: Literal["model", "ngram", "chain"] | None
    """Who proposes; None: nobody."""
    tokenizer: Tokenizer | None
    dtype: str
    draft_dtype: str
    kv_dtype: str
    num_speculative_tokens: int
    policy: str
    verify_budget: int | None
    latency_target: float | None
    min_draft_confidence: float
    acceptance: str
    max_model_len: int
    max_num_seqs: int
    max_queue: int
    kv_cache_tokens: int
    prefix_cache_bytes: int | None
    trace_cycles: int
    weights_cache: Path | None
    cost_cache: Path | None
    vocab_size: int
    """Ids that exist: the target's tokenizer decides, and config.json without one."""
    notes: tuple[str, ...]
    profile_cycles: tuple[int, int]
    """Cycles that a profiler captures, counted from 1; (0, 0): none."""
    device: Literal["cpu", "cuda"]
    num_threads: int | None
    """Computing threads; None on device cuda, which has none."""
    backend: _core.Backend

    def load(self, checkpoint: Checkpoint, dtype: str) -> tuple[_core.Weights, str | None]:
        """(weights, note)."""
        if self.weights_cache is None:
            return load_weights(self.backend, checkpoint, dtype), None
        return load_cached_weights(self.weights_cache, self.backend, checkpoint, dtype)

    def cost_file(self) -> tuple[Path, dict[str, Any]] | None:
        """Where costs are kept, and what they are of."""
        if self.cost_cache is None:
            return None
        about = {"device": self.backend.description, "processor": f"{processor()}, {_core.usable_threads()} cores" if self.device == "cpu" else None,
                 "target": weights_key(self.target, self.dtype), "draft": weights_key(self.draft, self.draft_dtype) if self.draft else None,
                 "kv_dtype": self.kv_dtype, "max_num_seqs": self.max_num_seqs, "num_speculative_tokens": self.num_speculative_tokens}
        return cost_file(self.cost_cache, about), about

    def plan(self) -> MemoryPlan:
        """Of an engine that is not built yet."""
        draft = core_config(self.draft) if self.draft else None
        free = self.backend.free_bytes() if self.device == "cuda" else available_memory()
        return plan_memory(self.backend, core_config(self.target), self.dtype, draft, self.draft_dtype, self.for_core(), free)

    def check_room(self) -> None:
        """Before anything large is taken. A CPU's system promises more than it has, and ends whoever then uses it: no exception would come.

        Raises CapacityError.
        """
        plan = self.plan()
        taken = plan.total_bytes - (plan.weight_bytes if self.weights_cache else 0)  # mapped: what the system can take back
        if self.device == "cpu" and taken > plan.available_bytes:
            raise self._no_room("more than is available", plan)

    def no_room(self, error: Exception) -> _core.CapacityError:
        """How much an engine takes and what decides that, instead of the name of a call."""
        try:
            plan = self.plan()
        except (RuntimeError, MemoryError):  # no room even for that
            plan = None
        return self._no_room(str(error), plan)

    def _no_room(self, why: str, plan: MemoryPlan | None) -> _core.CapacityError:
        dtypes = f"dtype={self.dtype!r}" + (f", draft_dtype={self.draft_dtype!r}" if self.draft else "")
        return _core.CapacityError(
            f"[Engine] no memory on device {self.device} for kv_cache_tokens={self.kv_cache_tokens}, max_num_seqs={self.max_num_seqs}, "
            f"max_model_len={self.max_model_len}, {dtypes}: lower one of them, or take a smaller dtype ({why})"
            + (f"; {plan}" if plan else ""))

    def token_bytes(self) -> list[bytes]:
        """Empty without a tokenizer. Ids of the model that the tokenizer does not know cannot be chosen."""
        return self.tokenizer.token_bytes if self.tokenizer else []

    def warmup_drafts(self) -> int:
        return min(self.num_speculative_tokens, self.max_model_len - 1, self.kv_cache_tokens - 1)

    def for_core(self) -> _core.EngineOptions:
        return _core.EngineOptions(
            num_speculative_tokens=self.num_speculative_tokens, acceptance=self.acceptance, max_model_len=self.max_model_len,
            max_num_seqs=self.max_num_seqs, kv_dtype=self.kv_dtype, kv_cache_tokens=self.kv_cache_tokens,
            prefill_chunk=PREFILL_CHUNK[self.device],
            vocab_limit=self.vocab_size, token_bytes=self.token_bytes()[:self.vocab_size], debug_hash=False,
            profile_first=self.profile_cycles[0], profile_last=self.profile_cycles[1], cycles_in_flight=0,
            prefill_chunk_beside=PREFILL_CHUNK_BESIDE, trace_cycles=self.trace_cycles,
            prefix_cache_bytes=-1 if self.prefix_cache_bytes is None else self.prefix_cache_bytes,
            policy=self.policy, verify_budget=self.verify_budget or 0, latency_target=self.latency_target or 0.0,
            min_draft_confidence=self.min_draft_confidence,
            drafter=self.drafter or "model", draft_cost=0.0)

    def info(self) -> dict[str, Any]:
        return {
            "target": str(self.target.directory), "draft": str(self.draft.directory) if self.draft else None,
            "drafter": self.drafter,
            "architecture": self.target.architecture, "tokenizer": self.tokenizer.source if self.tokenizer else None, "dtype": self.dtype,
            "draft_dtype": self.draft_dtype if self.draft else None, "kv_dtype": self.kv_dtype,
            "num_speculative_tokens": self.num_speculative_tokens, "policy": self.policy, "verify_budget": self.verify_budget,
            "latency_target": self.latency_target, "min_draft_confidence": self.min_draft_confidence,
            "acceptance": self.acceptance, "max_model_len": self.max_model_len,
            "max_num_seqs": self.max_num_seqs, "max_queue": self.max_queue, "kv_cache_tokens": self.kv_cache_tokens,
            "prefix_cache_bytes": self.prefix_cache_bytes, "trace_cycles": self.trace_cycles, "vocab_size": self.vocab_size,
            "weights_cache": str(self.weights_cache) if self.weights_cache else None,
            "cost_cache": str(self.cost_cache) if self.cost_cache else None, "num_threads": self.num_threads,
            "eos_token_ids": self.target.eos_token_ids, "notes": self.notes}
