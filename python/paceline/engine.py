"""The engine as Python sees it: two checkpoints in, text out."""

import asyncio
import atexit
import contextlib
import dataclasses
import inspect
import weakref
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, overload

import tokenizers

from paceline import _core, checks
from paceline.arguments import (AcceptanceRule, Drafter, Dtype, KvDtype, Messages, PathLike, Policy, Prompt, prompt_ids, render_messages,
                                resolve)
from paceline.calibration import FEW, Calibration, calibrate, kinds_of_cycles, read_costs, write_costs
from paceline.called import called
from paceline.devices import Device
from paceline.diagnosis.diagnose import Diagnosis, diagnose_traces
from paceline.diagnosis.measure import diagnose_engine
from paceline.engine_config import with_config
from paceline.kv_budget import available_memory
from paceline.memory_plan import MemoryPlan
from paceline.request import Request
from paceline.results import Chunk, GenerationResult, Stats, Verification
from paceline.sampling_params import SamplingParams
from paceline.timeline import write_timeline
from paceline.trace import Trace

if TYPE_CHECKING:
    from paceline.audit.report import AuditReport


class Engine:
    """Exact speculative decoding with a target and, optionally, a draft.

    The draft never changes what comes out, only how fast: greedy output, seeded output and logprobs are bitwise those of the
    target alone (under ``acceptance="rejection"`` sampled output follows the same law instead).

    It runs on a thread of its own. Any number of threads and coroutines may use one engine; their requests share its cycles. The CPU engines
    of a process with the same number of threads share those.
    """

    def __init__(self, target: PathLike | None = None, draft: PathLike | None = None, *, config: PathLike | None = None,
                 drafter: Drafter = "auto", tokenizer: PathLike | tokenizers.Tokenizer | None = None,
                 device: Device = "auto", dtype: Dtype | Literal["auto"] = "auto", draft_dtype: Dtype | Literal["auto"] = "auto",
                 kv_dtype: KvDtype | Literal["auto"] = "auto", num_speculative_tokens: int | Literal["auto"] = "auto",
                 policy: Policy = "fixed", verify_budget: int | None = None, latency_target: float | None = None,
                 min_draft_confidence: float = 0.0, acceptance: AcceptanceRule = "coupled",
                 max_model_len: int | None = None, max_num_seqs: int = 1, max_queue: int = 1024, kv_cache_tokens: int | None = None,
                 prefix_cache_bytes: int | None = None, trace_cycles: int = 4096,
                 num_threads: int | None = None, weights_cache: PathLike | Literal["auto"] | None = None,
                 cost_cache: PathLike | Literal["auto"] | None = None, warmup: bool = True) -> None:
        """Read the checkpoints and take all the memory that will ever be needed.

        target, draft: local directories in Hugging Face format (config.json, model.safetensors or its shards, tokenizer.json).
            The draft may have a vocabulary of another size, but must have the target's tokenizer. draft="ngram" needs no checkpoint: it
            proposes what followed the longest part of prompt and output that their end repeats (a directory of that name is "./ngram").
            It pays where texts repeat themselves or their prompt, and takes about 110 bytes per token of max_num_seqs * max_model_len.
        config: a file of `paceline tune --out`: models, drafter, dtypes and num_speculative_tokens, of which each counts that is at its default here.
        drafter: "auto": the draft given. "chain": beside a draft's checkpoint also the n-gram, each cycle whichever has of late promised more
            tokens for its cost. Neither changes what comes out. Both look at the text between cycles, so one cycle is under way at a time.
        tokenizer: a directory, a tokenizer.json or a `tokenizers.Tokenizer`; by default the target's. Prompts of token ids need none.
        device: "cpu" or "cuda"; "auto" is CUDA where it can run, and info["notes"] says why where it cannot.
        dtype, draft_dtype: of the weights, each model on its own: "fp32", "bf16", or quantised here, from any checkpoint, to "int8"
            (a scale per output), "int4" or "int4_g32" (a scale per 64 or 32 inputs of an output; embedding and head int8). "auto"
            keeps fp32 checkpoints in fp32 and takes bf16 for all others. Without a draft draft_dtype stays "auto".
        kv_dtype: of both KV caches, "fp32" or "bf16". "auto": fp32 for a target in fp32, else bf16.
        num_speculative_tokens: tau, draft tokens per cycle at most, 0 to 64: requests may ask for fewer, not for more. "auto": 3 with a
            draft, 7 with draft="ngram", 8 where a policy chooses up to it, else 0.
        policy: who chooses each cycle's tau; a request's own num_speculative_tokens goes before it. No bit of what comes out hangs on it under
            "coupled" and at temperature 0; under "rejection" the law does not, but a seed no longer gives the same text again.
            "fixed": always num_speculative_tokens.
            "auto": what gives most tokens per second, request by request, from what cycles cost and how many drafts were accepted of late;
            plain decoding where that is faster, and then now and then a probe whether it still is.
            "latency": as "auto", among the taus with which the time between two chunks stays below latency_target at the 99th percentile.
            "budget": as many as verify_budget allows, to those of whom the draft is surest; not with "ngram" or "chain", whose text is never sure.
        verify_budget: rows that a pass of the target verifies at most, at least 1, over all sequences: one of each, whatever the budget,
            and one per draft. With policy "budget", and only then.
        latency_target: seconds, above 0. With policy "latency", and only then.
        min_draft_confidence: in [0, 1): a cycle's drafts end before a position at which the draft's largest probability (after the request's
            processors; at temperature 0 that of temperature 1) is below it. 0: never.
        acceptance: "coupled" (arXiv:2408.07978) or "rejection" (arXiv:2211.17192). Without a draft both are plain decoding. Under "rejection"
            a seed gives the same text again only where the same drafts are proposed: alone, or with the same neighbours at the same time.
        max_model_len: tokens of a sequence at most, prompt included. None: the target's context, less if that is beyond 1,048,576 or
            if its tables would take more than a quarter of the free memory, and then info["notes"] says so.
        max_num_seqs: sequences decoding at once, 1 to 256; more wait.
        max_queue: requests that may wait, for a sequence to end or for KV pages, at least 0; one more is a CapacityError. A batch is
            taken whole, if its first would be.
        kv_cache_tokens: positions of KV over all sequences, per model. None: max_num_seqs * min(max_model_len, 8192), less if
            that is more than a quarter of the free memory, on device cuda of what the weights leave. A request that needs more is a
            CapacityError.
        prefix_cache_bytes: of both KV caches, at most, that requests leave when they end, for later ones whose prompts begin with the same
            pages of 64 tokens, least recently used out first. It is part of the KV caches: whoever needs the room gets it. None: all
            that nobody needs; 0: nothing. A reused prefix changes no bit of what comes out, only how soon, and stats() counts its tokens:
            0 where requests must not learn from that whether others began alike.
        trace_cycles: rows that the trace keeps, the newest, one per request and cycle, 0 to 1048576. 0: there is no trace.
        num_threads: of the CPU engine. None: one per core that this process may use, by its affinity and its cgroup's quota. At most 8 per
            core; more than one is slower, and info["notes"] says so. With device="cuda" it stays None; where "auto" became
            CUDA it has no effect and info["notes"] says so.
        weights_cache: a directory for packed weights, some gigabytes per model and dtype: the next start maps them and checks every
            block, instead of packing the checkpoint again. "auto": paceline in $XDG_CACHE_HOME, or else in ~/.cache. None: no such file.
            A file that is damaged or cut short is written anew, and one that cannot be written is done without; info["notes"] says so.
            A checkpoint that changed gets a file of its own and the old one stays: delete the directory whenever you like. Only what
            writers left unfinished is removed by a later one, after a day. An engine's file may be removed or replaced while it is in
            use, but shortening or overwriting it in place ends the process (SIGBUS) or changes the weights. With device="cuda" it stays
            None; where "auto" became CUDA no such file is read or written, weights are packed again, and info["notes"] says so.
        cost_cache: a directory where what cycles cost is kept for the next engine of the same models and sizes on this machine, so that "auto"
            and "latency" need not learn it anew; "auto" as in weights_cache. Read now, written by `calibrate` and `close`. A file that is
            damaged or cannot be written is done without. With policy "auto" or "latency", and only then.
        warmup: run one verification pass now, so that the first request does not pay for first touches of memory.

        Raises ValueError (arguments), ModelFileError (files), CapacityError (memory), RuntimeError (device).
        """
        if not isinstance(warmup, bool):
            checks.refuse("Engine", "warmup", "a bool", warmup)
        given: dict[str, Any] = dict(
            target=target, draft=draft, drafter=drafter, tokenizer=tokenizer, device=device, dtype=dtype, draft_dtype=draft_dtype, kv_dtype=kv_dtype,
            num_speculative_tokens=num_speculative_tokens, policy=policy, verify_budget=verify_budget, latency_target=latency_target,
            min_draft_confidence=min_draft_confidence, acceptance=acceptance, max_model_len=max_model_len, max_num_seqs=max_num_seqs,
            max_queue=max_queue, kv_cache_tokens=kv_cache_tokens, prefix_cache_bytes=prefix_cache_bytes, trace_cycles=trace_cycles,
            num_threads=num_threads, weights_cache=weights_cache, cost_cache=cost_cache)
        self._arguments = self._with_config(config, given)
        settings = resolve(**self._arguments)
        settings.check_room()
        try:
            target_weights, target_note = settings.load(settings.target, settings.dtype)
            draft_weights, draft_note = settings.load(settings.draft, settings.draft_dtype) if settings.draft else (None, None)
            self._core = _core.Engine(settings.backend, target_weights, draft_weights, settings.for_core(), settings.max_queue)
        except (_core.CapacityError, MemoryError) as error:
            raise settings.no_room(error) from error
        self._tokenizer, self._token_bytes = settings.tokenizer, settings.token_bytes()  # not the settings: close() could not drop their backend
        self._eos_token_ids = settings.target.eos_token_ids
        self._costs = settings.cost_file()
        notes = settings.notes + tuple(note for note in (target_note, draft_note, self._learned()) if note)
        _live.add(self)
        if warmup:
            self._core.verify([0], [0] * settings.warmup_drafts())
        self.info: dict[str, Any] = settings.info() | {
            "notes": notes,
            "config": None if config is None else str(config), "device": settings.backend.description, "warmup": warmup, "weight_bytes": self._core.weight_bytes, "kv_cache_bytes": self._core.kv_bytes,
            "workspace_bytes": self._core.workspace_bytes}
        """What is in use: every setting as resolved, memory in bytes, and notes on what was decided for the caller."""

    @classmethod
    def plan(cls, target: PathLike | None = None, draft: PathLike | None = None, **options: Any) -> MemoryPlan:
        """What an engine of these arguments would take, and whether that is there. Nothing large is read or taken; checkpoints may
        lack their weights. options: as in Engine(...), whose errors it raises.
        """
        given = inspect.signature(cls).bind(target, draft, **options)
        given.apply_defaults()
        arguments = {name: value for name, value in given.arguments.items() if name not in ("warmup", "config")}
        return resolve(planning=True, **cls._with_config(given.arguments["config"], arguments)).plan()

    @classmethod
    def _with_config(cls, config: PathLike | None, given: dict[str, Any]) -> dict[str, Any]:
        if config is None:
            return given
        defaults = {name: parameter.default for name, parameter in inspect.signature(cls).parameters.items()}
        return with_config(checks.path("Engine", "config", config), given, defaults)

    def submit(self, prompt: Prompt, sampling_params: SamplingParams | None = None, **overrides: Any) -> Request:
        """Hand over one prompt and go on: the request runs, or waits for its turn. `generate` and `stream` are built on this.

        prompt: text, token ids in [0, info["vocab_size"]), or messages for the model's chat template (`apply_chat_template`). overrides are
            fields of SamplingParams.
        Raises ValueError (arguments), CapacityError (does not fit into kv_cache_tokens, or the queue is full), EngineDead.
        """
        return self._submit("submit", prompt, sampling_params, overrides)

    def generate(self, prompt: Prompt, sampling_params: SamplingParams | None = None, **overrides: Any) -> GenerationResult:
        """Continue one prompt: `submit(...).result()`, which says what is raised. Interrupted, it cancels the request."""
        request = self._submit("generate", prompt, sampling_params, overrides)
        with _cancelled_unless_done([request]):
            return request.result()

    async def generate_async(self, prompt: Prompt, sampling_params: SamplingParams | None = None, **overrides: Any) -> GenerationResult:
        """`generate` for coroutines. Cancelling who awaits it cancels the request."""
        return await self._submit("generate_async", prompt, sampling_params, overrides)

    def generate_batch(self, prompts: Iterable[Prompt], sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
                       **overrides: Any) -> list[GenerationResult]:
        """Continue many prompts, max_num_seqs at a time; results in the order of the prompts. The queue takes all of them or none.

        sampling_params: one for all, or one per prompt.
        Arguments that `generate` would refuse raise before anything runs, with the prompt's index: "[generate_batch] prompts[1]: ...".
        A request that fails later has finish_reason "error" in its result; the others are unaffected.
        """
        requests = self._submit_batch("generate_batch", prompts, sampling_params, overrides)
        with _cancelled_unless_done(requests):
            return [request._whole_result() for request in requests]

    async def generate_batch_async(self, prompts: Iterable[Prompt], sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
                                   **overrides: Any) -> list[GenerationResult]:
        """`generate_batch` for coroutines. Cancelling who awaits it cancels all of its requests."""
        requests = self._submit_batch("generate_batch_async", prompts, sampling_params, overrides)
        with _cancelled_unless_done(requests):
            return [await request._whole_result_async() for request in requests]

    def stream(self, prompt: Prompt, sampling_params: SamplingParams | None = None, **overrides: Any) -> Iterator[Chunk]:
        """Like `generate`, a chunk per cycle. Arguments are checked at once; dropping the iterator cancels the request."""
        return self._submit("stream", prompt, sampling_params, overrides)

    def stream_async(self, prompt: Prompt, sampling_params: SamplingParams | None = None, **overrides: Any) -> AsyncIterator[Chunk]:
        """`stream` for `async for`."""
        return self._submit("stream_async", prompt, sampling_params, overrides)

    def apply_chat_template(self, messages: Messages, *, add_generation_prompt: bool = True, tools: Sequence[Mapping[str, Any]] | None = None,
                            **variables: Any) -> str:
        """Messages as the text that the model was trained on; `generate` and its kin take messages as prompts and do the same.

        messages: mappings with "role" and "content", of texts, numbers, lists and mappings only.
        add_generation_prompt: end where the model's answer begins.
        tools: JSON schemas as mappings, for templates that show them. variables: what else the template reads, by name.
        The template is chat_template.jinja beside the tokenizer, or else chat_template in its tokenizer_config.json. It is run in a
        sandbox with limits, and read and compiled when it is first asked for. A message that spells a special token becomes one.
        Raises ValueError (no template, messages that it does not take), ModelFileError (a template that is none, or breaks a limit).
        """
        return render_messages("apply_chat_template", "messages", messages, self._tokenizer, add_generation_prompt=add_generation_prompt,
                               tools=tools, variables=variables)

    def verify(self, prefix_ids: Sequence[int], draft_ids: Sequence[int]) -> Verification:
        """The target's log-probabilities after the prefix and after each draft token: .logprobs, float32
        [len(draft_ids) + 1, vocab_size of config.json]. prefix_ids must not be empty. It is fed in passes between the cycles of running requests,
        which wait for one of them at a time; max_num_seqs * (num_speculative_tokens + 1) rows of the answer are of one pass. Raises ValueError,
        or CapacityError: no pages for it beside what runs, or no memory for the answer."""
        prefix = checks.token_ids("verify", "prefix_ids", prefix_ids)
        drafts = checks.token_ids("verify", "draft_ids", draft_ids)
        size, free = 4 * (len(drafts) + 1) * self._core.target_vocab_size, available_memory()
        if size > free:
            raise _core.CapacityError(f"[verify] {len(drafts) + 1} rows are {size / 1e9:,.3f} GB, {free / 1e9:,.3f} GB are available: ask for fewer at a time")
        return Verification(self._core.verify(prefix, drafts))

    def audit(self, prompts: Sequence[Prompt] | None = None, *, tokens: int = 60_000, seed: int | None = None) -> "AuditReport":
        """Whether this pair, on this machine, emits what the target says: bitwise parity with plain decoding; the law of both rules, by
        replay of the engine's own operations and from end to end; KV after rollbacks against a cold start; and a negative control.
        `report.passed`, `report.checks`, `report.page()`.

        prompts: to decode from, each as in `generate`; by default eight short pieces of text, or random ids without a tokenizer.
        tokens: emitted from end to end under `rejection`, at least 6,000, and a sixth as many under `coupled`, whose bits are compared as well. A
            row of the vocabulary is looked at for each.
        seed: of everything that is drawn. None: drawn, and in the report.

        It takes one to two minutes with the bundled pair, and the memory of three more engines at most: one of the other rule, one of the
        draft alone, and buffers. Other requests may run meanwhile and share the cycles. Raises ValueError (arguments, no draft),
        CapacityError.
        """
        from paceline.audit.run import audit  # needs this module

        return audit(self, prompts, tokens=tokens, seed=seed)

    def stats(self) -> Stats:
        """Of all requests that have finished."""
        return Stats._of(self._core.stats())

    def trace(self) -> Trace:
        """What the newest cycles did and cost, as columns: one row per request and cycle, `trace_cycles` of them at most. It can be asked for
        while requests run."""
        return Trace(**self._core.trace())

    @overload
    def profile(self, path: PathLike) -> None: ...

    @overload
    def profile(self) -> contextlib.AbstractContextManager[None]: ...

    def profile(self, path: PathLike | None = None) -> contextlib.AbstractContextManager[None] | None:
        """With a path: write the trace as JSON for ui.perfetto.dev, chrome://tracing and `paceline trace show`. Raises OSError.

        Without: a context manager; what runs inside is what `nsys profile --capture-range=cudaProfilerApi` captures (docs/profiling.md). On
        device cpu there is nothing to capture."""
        if path is None:
            return self._captured()
        write_timeline(checks.path("profile", "path", path), self.trace(), self._token_texts())
        return None

    @contextlib.contextmanager
    def _captured(self) -> Iterator[None]:
        self._core.profile(True)
        try:
            yield
        finally:
            self._core.profile(False)

    def diagnose(self, prompts: Sequence[Prompt] | None = None, *, tau: int | None = None, max_tokens: int = 64, repetitions: int = 3,
                 **sampling: Any) -> Diagnosis:
        """How fast this pair is here, why not faster, and what would help: figures, `page(diagnosis)` in words (paceline.diagnosis.page).

        prompts: decoded with every tau in turn, plain decoding among them, max_num_seqs at a time; nothing else should run meanwhile.
            None: no run, what the trace holds is read, and the speedup is only predicted.
        tau: to judge, 1 to the engine's; None: the engine's. max_tokens: of each text, at least 2. repetitions: of everything, at least 1.
        sampling: fields of SamplingParams.
        Raises ValueError (arguments, or a trace that does not show enough), and what `generate_batch` raises.
        """
        most = int(self.info["num_speculative_tokens"])
        if not most:
            raise ValueError("[diagnose] num_speculative_tokens must be at least 1 in the engine, got 0: without drafts there is nothing to diagnose")
        if self.info["drafter"] == "ngram":
            raise ValueError('[diagnose] draft must be a checkpoint, got "ngram": what the text proposes hangs on where cycles start, and predicts nothing')
        judged = most if tau is None else checks.integer("diagnose", "tau", tau, 1, most)
        if prompts is None:
            return diagnose_traces(self.trace(), tau=judged, draft_dtype=self.info["draft_dtype"])
        several = checks.items("diagnose", "prompts", "several prompts", prompts)
        if not several:
            checks.refuse("diagnose", "prompts", "at least one prompt, or None", prompts)
        return diagnose_engine(self, several, tau=judged, max_tokens=checks.integer("diagnose", "max_tokens", max_tokens, 2),
                               repetitions=checks.integer("diagnose", "repetitions", repetitions, 1), **sampling)

    def calibrate(self) -> Calibration:
        """Measure what passes cost here: 12 passes of both models at most, before the first request that counts. A policy "auto" or "latency"
        then begins with the tau it would have found, and with `cost_cache` the next engine does too. Nothing else should run meanwhile. It is
        never needed: costs are learned from the cycles that run, and no request waits for that.

        Raises ValueError without a trace to read them from (trace_cycles=0), and what `generate` raises.
        """
        found = calibrate(self)
        self._keep_costs(few=1)
        return found

    def _learned(self) -> str | None:
        """Takes over what earlier engines have left; what is wrong with it."""
        if self._costs is None:
            return None
        cycles, wrong = read_costs(self._costs[0])
        try:
            self._core.learn(cycles)
        except ValueError as error:
            wrong = f"{self._costs[0]}: {error}"
        return wrong and f"cost_cache: {wrong}; done without"

    def _keep_costs(self, few: int = FEW) -> None:
        if self._costs is None:
            return
        with contextlib.suppress(OSError, RuntimeError):  # RuntimeError: closed, or a forked child's
            cycles = kinds_of_cycles(self.trace(), few)
            if cycles:
                write_costs(*self._costs, cycles)

    def _token_texts(self) -> dict[int, str]:
        return self._tokenizer.shown_texts() if self._tokenizer else {}

    def close(self) -> None:
        """End the engine's thread after the cycle it is in, and give the memory back. Requests under way, and later calls, end with a
        RuntimeError, after what they were given before."""
        try:
            self._keep_costs()
        finally:
            self._core.close()

    def __repr__(self) -> str:
        shown = ("target", "draft", "device", "dtype", "num_speculative_tokens", "acceptance", "max_model_len", "max_num_seqs")
        return "Engine(" + ", ".join(f"{name}={self.info[name]!r}" for name in shown) + ")"

    def __enter__(self) -> "Engine":
        self._core.stats()  # a closed one says so
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    async def __aenter__(self) -> "Engine":
        return self.__enter__()

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await asyncio.to_thread(self.close)  # the loop goes on while the last cycle ends

    def _submit(self, method: str, prompt: Prompt, sampling_params: SamplingParams | None, overrides: dict[str, Any]) -> Request:
        """method: in whose name errors are said."""
        with called(method):
            ids, params = self._resolved(prompt, sampling_params, overrides)
            (submission,) = self._core.submit([(ids, params._for_core(self._eos_token_ids))])
        return Request(submission, ids, params, self._token_bytes, method, self)

    def _submit_batch(self, method: str, prompts: Iterable[Prompt], sampling_params: SamplingParams | Sequence[SamplingParams] | None,
                      overrides: dict[str, Any]) -> list[Request]:
        several = checks.items(method, "prompts", "several prompts", prompts)
        if sampling_params is None or isinstance(sampling_params, SamplingParams):
            given: Sequence[SamplingParams | None] = [sampling_params] * len(several)
        else:
            given = checks.items(method, "sampling_params", "a SamplingParams or one per prompt", sampling_params)
        if len(given) != len(several):
            checks.refuse(method, "sampling_params", f"one for all or one per prompt, {len(several)}", len(given))
        resolved: list[tuple[list[int], SamplingParams]] = []
        wanted: list[tuple[list[int], _core.RequestParams]] = []
        for i, (prompt, each) in enumerate(zip(several, given, strict=True)):
            with called(method, f"prompts[{i}]: "):
                ids, params = self._resolved(prompt, each, overrides)
                self._core.check(ids, params._for_core(self._eos_token_ids))
            resolved.append((ids, params))
            wanted.append((ids, params._for_core(self._eos_token_ids)))
        with called(method):
            submissions = self._core.submit(wanted)
        return [Request(submission, ids, params, self._token_bytes, method, self) for submission, (ids, params) in zip(submissions, resolved, strict=True)]

    def _resolved(self, prompt: Prompt, sampling_params: SamplingParams | None, overrides: dict[str, Any]) -> tuple[list[int], SamplingParams]:
        if sampling_params is not None and not isinstance(sampling_params, SamplingParams):
            checks.refuse("generate", "sampling_params", "a SamplingParams", sampling_params)
        params = dataclasses.replace(sampling_params or SamplingParams(), **overrides)._drawn()
        return prompt_ids(prompt, self._tokenizer, self.info["max_model_len"]), params


@contextlib.contextmanager
def _cancelled_unless_done(requests: Sequence[Request]) -> Iterator[None]:
    """Whoever leaves early, by Ctrl-C for instance, wants none of them; a traceback may hold them for long."""
    try:
        yield
    except BaseException:
        for request in requests:
            request.cancel()
        raise


_live: weakref.WeakSet[Engine] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Before the interpreter goes: an engine's thread must not outlive it. Threads that still wait for an engine stay where they are."""
    _core.interpreter_ends()
    with contextlib.ExitStack() as each:  # all of them, whatever one raises
        for engine in list(_live):
            each.callback(engine.close)
