"""The engine as Python sees it: two checkpoints in, text out."""

import contextlib
import dataclasses
import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Literal

import tokenizers

from paceline import _core, checks
from paceline.arguments import AcceptanceRule, Dtype, KvDtype, PathLike, Prompt, prompt_ids, resolve
from paceline.devices import Device
from paceline.request import Request
from paceline.results import Chunk, GenerationResult, Stats, Verification
from paceline.sampling_params import SamplingParams


class Engine:
    """Exact speculative decoding with a target and, optionally, a draft.

    The draft never changes what comes out, only how fast: greedy output, seeded output and logprobs are bitwise those of the
    target alone (under ``acceptance="rejection"`` sampled output follows the same law instead).

    Any number of threads may use one engine; their requests share its cycles.
    """

    def __init__(self, target: PathLike, draft: PathLike | None = None, *, tokenizer: PathLike | tokenizers.Tokenizer | None = None,
                 device: Device = "auto", dtype: Dtype | Literal["auto"] = "auto", draft_dtype: Dtype | Literal["auto"] = "auto",
                 kv_dtype: KvDtype | Literal["auto"] = "auto", num_speculative_tokens: int | Literal["auto"] = "auto",
                 acceptance: AcceptanceRule = "coupled",
                 max_model_len: int | None = None, max_num_seqs: int = 1, kv_cache_tokens: int | None = None,
                 prefix_cache_bytes: int | None = None,
                 num_threads: int | None = None, weights_cache: PathLike | Literal["auto"] | None = None, warmup: bool = True) -> None:
        """Read the checkpoints and take all the memory that will ever be needed.

        target, draft: local directories in Hugging Face format (config.json, model.safetensors or its shards, tokenizer.json).
            The draft may have a vocabulary of another size, but must have the target's tokenizer.
        tokenizer: a directory, a tokenizer.json or a `tokenizers.Tokenizer`; by default the target's. Prompts of token ids need none.
        device: "cpu" or "cuda"; "auto" is CUDA where it can run, and info["notes"] says why where it cannot.
        dtype, draft_dtype: of the weights, each model on its own: "fp32", "bf16", or quantised here, from any checkpoint, to "int8"
            (a scale per output), "int4" or "int4_g32" (a scale per 64 or 32 inputs of an output; embedding and head int8). "auto"
            keeps fp32 checkpoints in fp32 and takes bf16 for all others. Without a draft draft_dtype stays "auto".
        kv_dtype: of both KV caches, "fp32" or "bf16". "auto": fp32 for a target in fp32, else bf16.
        num_speculative_tokens: tau, draft tokens per cycle at most, 0 to 64: requests may ask for fewer, not for more. "auto": 3 with a
            draft, else 0.
        acceptance: "coupled" (arXiv:2408.07978) or "rejection" (arXiv:2211.17192). Without a draft both are plain decoding.
        max_model_len: tokens of a sequence at most, prompt included. None: the target's context.
        max_num_seqs: sequences decoding at once, 1 to 256; more wait.
        kv_cache_tokens: positions of KV over all sequences, per model. None: max_num_seqs * min(max_model_len, 8192), less if
            that is more than a quarter of the free memory, on device cuda of what the weights leave. A request that needs more is a
            CapacityError.
        prefix_cache_bytes: of both KV caches, at most, that requests leave when they end, for later ones whose prompts begin with the same
            pages of 64 tokens, least recently used out first. It is part of the KV caches: whoever needs the room gets it. None: all
            that nobody needs; 0: nothing. A reused prefix changes no bit of what comes out, only how soon, and stats() counts its tokens:
            0 where requests must not learn from that whether others began alike.
        num_threads: of the CPU engine. None: one per core this process may use. With device="cuda" it stays None; where "auto" became
            CUDA it has no effect and info["notes"] says so.
        weights_cache: a directory for packed weights, some gigabytes per model and dtype: the next start maps them and checks every
            block, instead of packing the checkpoint again. "auto": paceline in $XDG_CACHE_HOME, or else in ~/.cache. None: no such file.
            A file that is damaged or cut short is written anew, and one that cannot be written is done without; info["notes"] says so.
            A checkpoint that changed gets a file of its own and the old one stays: delete the directory whenever you like. Only what
            writers left unfinished is removed by a later one, after a day. An engine's file may be removed or replaced while it is in
            use, but shortening or overwriting it in place ends the process (SIGBUS) or changes the weights. With device="cuda" it stays
            None; where "auto" became CUDA no such file is read or written, weights are packed again, and info["notes"] says so.
        warmup: run one verification pass now, so that the first request does not pay for first touches of memory.

        Raises ValueError (arguments), ModelFileError (files), CapacityError (memory), RuntimeError (device).
        """
        settings = resolve(
            target=target, draft=draft, tokenizer=tokenizer, device=device, dtype=dtype, draft_dtype=draft_dtype, kv_dtype=kv_dtype,
            num_speculative_tokens=num_speculative_tokens, acceptance=acceptance, max_model_len=max_model_len, max_num_seqs=max_num_seqs,
            kv_cache_tokens=kv_cache_tokens, prefix_cache_bytes=prefix_cache_bytes, num_threads=num_threads, weights_cache=weights_cache)
        try:
            target_weights, target_note = settings.load(settings.target, settings.dtype)
            draft_weights, draft_note = settings.load(settings.draft, settings.draft_dtype) if settings.draft else (None, None)
            self._core = _core.Engine(settings.backend, target_weights, draft_weights, settings.for_core())
        except (_core.CapacityError, MemoryError) as error:
            raise settings.no_room(error) from error
        self._tokenizer, self._token_bytes = settings.tokenizer, settings.token_bytes()  # not the settings: close() could not drop their backend
        self._eos_token_ids = settings.target.eos_token_ids
        self._lock = threading.Lock()  # of the core: one caller at a time
        self._outputs: dict[int, deque[_core.Output]] = {}  # of every request that somebody waits for
        self._dropped: deque[int] = deque()  # cancelled from anywhere, a garbage collection included: taken in before the next step
        self._process = os.getpid()
        if warmup:
            self._core.verify([0], [0] * settings.warmup_drafts())
        self.info: dict[str, Any] = settings.info() | {
            "notes": settings.notes + tuple(note for note in (target_note, draft_note) if note),
            "device": settings.backend.description, "warmup": warmup, "weight_bytes": self._core.weight_bytes, "kv_cache_bytes": self._core.kv_bytes,
            "workspace_bytes": self._core.workspace_bytes}
        """What is in use: every setting as resolved, memory in bytes, and notes on what was decided for the caller."""

    def generate(self, prompt: Prompt, sampling_params: SamplingParams | None = None, **overrides: Any) -> GenerationResult:
        """Continue one prompt. overrides are fields of SamplingParams.

        prompt: text, or token ids in [0, info["vocab_size"]).
        Raises ValueError (arguments), CapacityError (does not fit into kv_cache_tokens), NumericError (the target gave NaN or
        an infinity, or the processors left no token), EngineDead.
        """
        request = self._submit(prompt, sampling_params, overrides)
        try:
            result = request.result()
        finally:
            request.close()  # after an interrupt
        if result.finish_reason == "error":
            raise _core.NumericError(result.error)
        return result

    def generate_batch(self, prompts: Iterable[Prompt], sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
                       **overrides: Any) -> list[GenerationResult]:
        """Continue many prompts, max_num_seqs at a time; results in the order of the prompts.

        sampling_params: one for all, or one per prompt.
        Arguments that `generate` would refuse raise before anything runs, with the prompt's index: "[generate_batch] prompts[1]: ...".
        A request that fails later has finish_reason "error" in its result; the others are unaffected.
        """
        several = checks.items("generate_batch", "prompts", "several prompts", prompts)
        if sampling_params is None or isinstance(sampling_params, SamplingParams):
            params: Sequence[SamplingParams | None] = [sampling_params] * len(several)
        else:
            params = checks.items("generate_batch", "sampling_params", "a SamplingParams or one per prompt", sampling_params)
        if len(params) != len(several):
            checks.refuse("generate_batch", "sampling_params", f"one for all or one per prompt, {len(several)}", len(params))
        requests: list[Request] = []
        for i, (prompt, each) in enumerate(zip(several, params, strict=True)):
            try:
                requests.append(self._checked(prompt, each, overrides))
            except (ValueError, _core.CapacityError) as error:
                kind = ValueError if isinstance(error, ValueError) else _core.CapacityError
                raise kind(f"[generate_batch] prompts[{i}]: {str(error).removeprefix('[generate] ')}") from None
        try:
            for request in requests:
                self._add(request)
            return [request.result() for request in requests]
        finally:
            for request in requests:
                request.close()

    def stream(self, prompt: Prompt, sampling_params: SamplingParams | None = None, **overrides: Any) -> Iterator[Chunk]:
        """Like `generate`, a chunk per cycle. Arguments are checked at once; dropping the iterator cancels the request."""
        return self._submit(prompt, sampling_params, overrides)

    def verify(self, prefix_ids: Sequence[int], draft_ids: Sequence[int]) -> Verification:
        """The target's log-probabilities after the prefix and after each draft token, all in one pass: .logprobs, float32
        [len(draft_ids) + 1, vocab_size of config.json]. prefix_ids must not be empty."""
        prefix = checks.token_ids("verify", "prefix_ids", prefix_ids)
        drafts = checks.token_ids("verify", "draft_ids", draft_ids)
        self._check_process()
        with self._lock:
            return Verification(self._core.verify(prefix, drafts))

    def stats(self) -> Stats:
        """Of all requests that have finished."""
        self._check_process()
        with self._lock:
            return Stats._of(self._core.stats())

    @contextlib.contextmanager
    def profile(self) -> Iterator[None]:
        """What runs inside is what `nsys profile --capture-range=cudaProfilerApi` captures (docs/profiling.md). On device cpu
        there is nothing to capture."""
        self._check_process()
        with self._lock:
            self._core.profile(True)
        try:
            yield
        finally:
            with self._lock:
                self._core.profile(False)

    def close(self) -> None:
        """Give the memory back. Requests under way, and later calls, end with a RuntimeError."""
        self._core.close()

    def __repr__(self) -> str:
        shown = ("target", "draft", "device", "dtype", "num_speculative_tokens", "acceptance", "max_model_len", "max_num_seqs")
        return "Engine(" + ", ".join(f"{name}={self.info[name]!r}" for name in shown) + ")"

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _submit(self, prompt: Prompt, sampling_params: SamplingParams | None, overrides: dict[str, Any]) -> Request:
        request = self._checked(prompt, sampling_params, overrides)
        self._add(request)
        return request

    def _checked(self, prompt: Prompt, sampling_params: SamplingParams | None, overrides: dict[str, Any]) -> Request:
        """A request that the core will take."""
        if sampling_params is not None and not isinstance(sampling_params, SamplingParams):
            checks.refuse("generate", "sampling_params", "a SamplingParams", sampling_params)
        params = dataclasses.replace(sampling_params or SamplingParams(), **overrides)._drawn()
        ids = prompt_ids(prompt, self._tokenizer)
        request = Request(ids, params, self._token_bytes, self._advance, self._dropped.append)
        self._check_process()
        with self._lock:
            self._core.check(request.prompt, self._for_core(request))
        return request

    def _add(self, request: Request) -> None:
        self._check_process()
        with self._lock:
            request.id = self._core.add(request.prompt, self._for_core(request))
            self._outputs[request.id] = request.outputs

    def _for_core(self, request: Request) -> _core.RequestParams:
        return request.params._for_core(self._eos_token_ids)

    def _advance(self, request: Request) -> None:
        """Run cycles until `request` has an output. Whoever holds the lock works for all; the others find theirs done."""
        while not request.outputs:
            self._check_process()
            with self._lock:
                if request.outputs:
                    return
                while self._dropped:
                    self._forget(self._dropped.popleft())
                self._core.step(self._outputs)

    def _forget(self, request: int) -> None:
        self._core.cancel(request)
        self._outputs.pop(request, None)

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            raise _core.EngineDead("[Engine] made before a fork, its threads live in the parent: build a new one in this process")
