"""The compiled core. Private: paceline.Engine is the public face. Conversions only, no logic."""

from collections.abc import Sequence
from typing import Any, Literal, final

import numpy as np
from numpy.typing import NDArray

class ModelFileError(RuntimeError): ...
class CapacityError(RuntimeError): ...
class NumericError(RuntimeError): ...
class DeviceError(RuntimeError): ...
class EngineDead(RuntimeError): ...

TAU_REASONS: tuple[str, ...]
EXTRA_KINDS: tuple[str, ...]
DRAFT_SOURCES: tuple[str, ...]

def checksum(data: NDArray[np.uint8]) -> int: ...
def usable_threads() -> int: ...

@final
class Backend:
    def __init__(self, num_threads: int, level: str) -> None: ...
    @staticmethod
    def load(path: str, device: int) -> Backend: ...
    def free_bytes(self) -> int: ...
    def scratch_bytes(self) -> int: ...
    @property
    def description(self) -> str: ...

@final
class ModelConfig:
    def __init__(
        self,
        *,
        vocab_size: int,
        hidden_size: int,
        intermediate_size: int,
        num_layers: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        rms_norm_eps: float,
        max_position_embeddings: int,
        rope_frequencies: Sequence[float],
        rope_scale: float,
        qkv_bias: bool,
        output_bias: bool,
        qk_norm: bool,
        tie_word_embeddings: bool,
    ) -> None: ...

@final
class Weights:
    def __init__(self, backend: Backend, config: ModelConfig, dtype: str, path: str, packed: NDArray[np.uint8] | None = None) -> None: ...
    def expected(self) -> list[tuple[str, list[int]]]: ...
    def load(self, name: str, dtype: str, shape: Sequence[int], data: NDArray[np.uint8], first_row: int = 0) -> None: ...
    def finish(self) -> None: ...
    def packed(self) -> NDArray[np.uint8]: ...
    @property
    def nbytes(self) -> int: ...

@final
class EngineOptions:
    def __init__(
        self,
        *,
        num_speculative_tokens: int,
        acceptance: str,
        max_model_len: int,
        max_num_seqs: int,
        kv_dtype: str,
        kv_cache_tokens: int,
        prefill_chunk: int,
        vocab_limit: int,
        token_bytes: Sequence[bytes],
        debug_hash: bool,
        profile_first: int,
        profile_last: int,
        cycles_in_flight: int,
        prefill_chunk_beside: int,
        trace_cycles: int,
        prefix_cache_bytes: int,
        policy: str,
        verify_budget: int,
        latency_target: float,
        min_draft_confidence: float,
        drafter: str,
        draft_cost: float,
    ) -> None: ...

@final
class RequestParams:
    def __init__(
        self,
        *,
        max_tokens: int,
        min_tokens: int,
        temperature: float,
        top_p: float,
        top_k: int,
        min_p: float,
        repetition_penalty: float,
        presence_penalty: float,
        frequency_penalty: float,
        logit_bias: dict[int, float],
        seed: int,
        stop: Sequence[bytes],
        stop_token_ids: Sequence[int],
        logprobs: int,
        num_speculative_tokens: int,
    ) -> None: ...

@final
class RequestStats:
    num_requests: int
    num_cached_prompt_tokens: int
    num_cycles: int
    num_draft_tokens: int
    num_accepted_draft_tokens: int
    num_emitted_tokens: int
    num_draft_faults: int
    drafted_per_position: list[int]
    accepted_per_position: list[int]
    num_prefill_passes: int
    prefill_time: float
    time_to_first_token: float
    draft_time: float
    verify_time: float
    sample_time: float
    decode_time: float

@final
class Output:
    """What one cycle gave one request, or several cycles."""

    number: int
    token_ids: list[int]
    logprobs: list[float]
    top_logprobs: list[list[tuple[int, float]]]
    cycles: int
    tau: int
    accepted: int
    verify_time: float
    sample_time: float
    finish_reason: Literal["", "stop", "length", "cancelled", "error"]
    stop_reason: int | bytes | None
    error: str
    stats: RequestStats | None
    logits_hash: int
    target_kv_hashes: list[int]
    draft_kv_hashes: list[int]

@final
class Bell:
    """Rings when submissions have something new: `descriptor` becomes readable."""

    def __init__(self) -> None: ...
    @property
    def descriptor(self) -> int: ...
    def rung(self) -> list[int]:
        """Serials since the last call; empty although it rang: any."""

@final
class Submission:
    """A request of the engine thread. Dropping it cancels it.

    kept: the number of the newest output that its reader has, 0 before the first. An output that was taken and not kept is there still.
    """

    @property
    def serial(self) -> int: ...
    def take(self, whole: bool, timeout: float | None, kept: int) -> Output | None:
        """The next output, or all that are left in one once the last is there. None: not within `timeout` seconds, or nothing is left."""

    def ready(self, kept: int) -> bool: ...
    def done(self) -> bool: ...
    def drained(self, kept: int) -> bool:
        """Whether nothing is there to take, nor will be."""

    def cancel(self) -> None: ...
    def ring(self, bell: Bell, whole: bool, kept: int) -> None: ...

def interpreter_ends() -> None:
    """From now on calls of other threads that would fail stay where they are."""

@final
class MemoryUse:
    """Bytes."""

    weights: int
    draft_weights: int
    kv_cache: int
    workspace: int

def plan_memory(
    backend: Backend, target: ModelConfig, dtype: str, draft: ModelConfig | None, draft_dtype: str, options: EngineOptions
) -> MemoryUse: ...

@final
class Replay:
    """Cycles over given rows, one entry each."""

    @property
    def seed(self) -> NDArray[np.uint64]: ...
    @property
    def position(self) -> NDArray[np.int32]: ...
    @property
    def drafts(self) -> NDArray[np.int32]: ...
    @property
    def accepted(self) -> NDArray[np.int32]: ...
    @property
    def tokens(self) -> NDArray[np.int32]: ...

def replay(
    backend: Backend,
    acceptance: str,
    target_rows: NDArray[np.float32],
    draft_rows: NDArray[np.float32],
    params: RequestParams,
    cycles: int,
    uniforms: NDArray[np.float64] | None = None,
) -> Replay: ...

@final
class Engine:
    def __init__(self, backend: Backend, target: Weights, draft: Weights | None, options: EngineOptions, max_queue: int) -> None: ...
    def check(self, prompt: Sequence[int], params: RequestParams) -> None: ...
    def submit(self, wanted: Sequence[tuple[Sequence[int], RequestParams]]) -> list[Submission]: ...
    def stats(self) -> RequestStats: ...
    def trace(self) -> dict[str, NDArray[Any]]: ...
    def verify(self, prefix: Sequence[int], drafts: Sequence[int]) -> NDArray[np.float32]: ...
    def learn(self, cycles: Sequence[tuple[int, int, int, float, float, float]]) -> None: ...
    def profile(self, on: bool) -> None: ...
    def close(self) -> None: ...
    @property
    def target_vocab_size(self) -> int: ...
    @property
    def weight_bytes(self) -> int: ...
    @property
    def kv_bytes(self) -> int: ...
    @property
    def workspace_bytes(self) -> int: ...
