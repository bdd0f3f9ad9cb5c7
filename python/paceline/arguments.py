"""The arguments of Engine, checked and resolved before anything large is read."""

import dataclasses
import functools
import math
import os
import re
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import tokenizers

from paceline import _core, checks
from paceline.chat_template import are_messages
from paceline.devices import Device, ignored_on_cuda, make_backend, profile_cycles, refuse_on_cuda
from paceline.kv_budget import available_memory, default_kv_cache_tokens, default_max_model_len, kv_bytes_per_position, weight_bytes
from paceline.loading import Checkpoint, default_directory, read_config
from paceline.sampling_params import MAX_TAU
from paceline.settings import Settings
from paceline.tokenizer import Tokenizer, refuse_other_tokenizer

_integer = functools.partial(checks.integer, "Engine")
_one_of = functools.partial(checks.one_of, "Engine")
_path = functools.partial(checks.path, "Engine")
_CACHE = 'a path, "auto" or None'
_MODEL = "a local directory in Hugging Face format"

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")  # as organisation/model

Messages = Sequence[Mapping[str, Any]]
Prompt = str | Sequence[int] | Messages
PathLike = str | os.PathLike[str]
Dtype = Literal["bf16", "fp32", "int8", "int4", "int4_g32"]
KvDtype = Literal["bf16", "fp32"]
AcceptanceRule = Literal["coupled", "rejection"]
Policy = Literal["fixed", "auto", "budget", "latency"]
Drafter = Literal["auto", "chain"]

_DTYPES = ("auto", *get_args(Dtype))

NGRAM = "ngram"  # as a draft: no checkpoint, but the text itself
DEFAULT_NGRAM_TAU = 7  # proposals cost nothing, rows of the target little; runs are as long as their match
DEFAULT_TAU = 3  # near the knee of verification cost on CPUs; the bundled pair is fastest at 2 or 3
DEFAULT_TAU_MAX = 8  # where a policy chooses up to it
MAX_ROWS = 512  # of a verify pass
SHRINKING = 8
"""Characters that a tokenizer's normaliser may make one of."""
THREADS_PER_CORE = 8  # at most; more than one is only ever slower


def resolve(*, target: PathLike | None, draft: PathLike | None, drafter: str,
            tokenizer: PathLike | tokenizers.Tokenizer | None, device: str, dtype: str, draft_dtype: str, kv_dtype: str, num_speculative_tokens: int | str, policy: str, verify_budget: int | None,
            latency_target: float | None, min_draft_confidence: float, acceptance: str, max_model_len: int | None,
            max_num_seqs: int, max_queue: int, kv_cache_tokens: int | None, prefix_cache_bytes: int | None, trace_cycles: int,
            num_threads: int | None, weights_cache: PathLike | None, cost_cache: PathLike | None, planning: bool = False) -> Settings:
    """planning: the engine will not be built, and its checkpoints may lack their weights."""
    notes: list[str] = []
    _one_of("device", device, get_args(Device))
    _one_of("acceptance", acceptance, get_args(AcceptanceRule))
    num_seqs = _integer("max_num_seqs", max_num_seqs, 1, 256)
    queue = _integer("max_queue", max_queue, 0)
    prefixes = None if prefix_cache_bytes is None else _integer("prefix_cache_bytes", prefix_cache_bytes, 0, 2**63 - 1)
    rows = _integer("trace_cycles", trace_cycles, 0, 2**20)
    threads = 0 if num_threads is None else _num_threads(num_threads)
    draft, kind_of_drafter = _drafter(draft, drafter)
    tau = _tau(num_speculative_tokens, kind_of_drafter, policy, num_seqs)
    budget, latency, confidence = _policy(policy, verify_budget, latency_target, min_draft_confidence, kind_of_drafter)
    cache = default_directory() if weights_cache == "auto" else None if weights_cache is None else _path("weights_cache", weights_cache, _CACHE)
    costs = default_directory() if cost_cache == "auto" else None if cost_cache is None else _path("cost_cache", cost_cache, _CACHE)
    if costs is not None and policy not in ("auto", "latency"):
        raise ValueError(f'[Engine] cost_cache must be None with policy="{policy}", which goes by no costs, got {cost_cache!r}')
    if costs is not None and rows == 0:
        raise ValueError(f"[Engine] trace_cycles must be at least 1 with cost_cache, which is made of the trace, got 0")
    target_files = read_config(_directory("target", target), planning=planning)
    draft_files = _within_its_window(read_config(_directory("draft", draft), planning=planning), notes) if draft is not None else None
    words = _tokenizer(tokenizer, target_files)
    _check_draft_tokenizer(words, draft_files, notes)
    target_dtype = _dtype("dtype", dtype, target_files, notes)
    kv = _one_of("kv_dtype", kv_dtype, ("auto", *get_args(KvDtype)))
    kv = ("fp32" if target_dtype == "fp32" else "bf16") if kv == "auto" else kv
    length = _max_model_len(max_model_len, target_files, notes)
    drafts_dtype = _draft_dtype(draft_dtype, draft_files, target_dtype, notes)
    if device == "cuda":
        refuse_on_cuda(num_threads, cache)
    kind, backend = make_backend(device, threads, notes)
    if kind == "cuda":
        notes += ignored_on_cuda(num_threads, cache)
        cache = None
    elif threads > _core.usable_threads():
        notes.append(f"num_threads: {threads}, more than the cores that this process may use ({_core.usable_threads()}): they take turns, "
                     "which is slower than one per core")
    models = [(files.config, of) for files, of in ((target_files, target_dtype), (draft_files, drafts_dtype)) if files]
    per_position = sum(kv_bytes_per_position(config, kv) for config, _ in models)
    free = backend.free_bytes() - sum(weight_bytes(config, of) for config, of in models) if kind == "cuda" else available_memory()
    if max_model_len is None:
        length, note = default_max_model_len(length, num_seqs, [config.head_dim for config, _ in models], kind_of_drafter == "ngram", max(0, free))
        notes += [note] if note else []
    return Settings(
        target=target_files, draft=draft_files, drafter=kind_of_drafter, tokenizer=words, dtype=target_dtype, draft_dtype=drafts_dtype,
        kv_dtype=kv, num_speculative_tokens=tau, policy=policy, verify_budget=budget, latency_target=latency, min_draft_confidence=confidence,
        acceptance=acceptance, max_model_len=length, max_num_seqs=num_seqs, max_queue=queue,
        kv_cache_tokens=_kv_cache_tokens(kv_cache_tokens, num_seqs, length, per_position, max(0, free), notes),
        prefix_cache_bytes=prefixes, trace_cycles=rows, weights_cache=cache, cost_cache=costs, vocab_size=_vocab_size(target_files, words), notes=tuple(notes),
        profile_cycles=profile_cycles(), device=kind, num_threads=(threads or _core.usable_threads()) if kind == "cpu" else None,
        backend=backend)


def _directory(role: str, given: PathLike | None) -> Path:
    """Of a checkpoint. What is in it is another question, whose answers are ModelFileErrors."""
    path = _path(role, given, _MODEL)
    try:
        found = None if stat.S_ISDIR(os.stat(path).st_mode) else "not a directory"
    except OSError as error:
        found = "no such directory" if isinstance(error, (FileNotFoundError, NotADirectoryError)) else error.strerror
        if isinstance(error, FileNotFoundError) and _HUB_NAME.fullmatch(str(given)):
            found = f"no such directory, and nothing is downloaded: run `hf download {path} --local-dir DIR` (pip install huggingface_hub) and pass DIR"
    if found:
        raise ValueError(f"[Engine] {role} must be {_MODEL}, got {path}: {found}")
    return path


def _num_threads(wanted: int) -> int:
    cores = _core.usable_threads()
    threads = _integer("num_threads", wanted, 1)
    if threads > THREADS_PER_CORE * cores:
        raise ValueError(f"[Engine] num_threads must be in [1, {THREADS_PER_CORE * cores}], {THREADS_PER_CORE} for each core that this process "
                         f"may use, got {threads}: None is one per core")
    return threads


def _policy(policy: str, budget: int | None, latency: float | None, confidence: float,
            drafter: str | None) -> tuple[int | None, float | None, float]:
    """(rows, seconds, threshold): what belongs to the policy must be given, what does not must not."""
    _one_of("policy", policy, get_args(Policy))
    if policy != "fixed" and drafter is None:
        raise ValueError(f'[Engine] policy must be "fixed" without a draft, got {policy!r}')
    if policy == "budget" and drafter != "model":
        raise ValueError(f'[Engine] policy must be "fixed", "auto" or "latency" where the text drafts, got {policy!r}, which goes by how sure a draft is')
    for name, given, of in (("verify_budget", budget, "budget"), ("latency_target", latency, "latency")):
        if (given is not None) != (policy == of):
            expected = "given with" if given is None else "None without"
            raise ValueError(f'[Engine] {name} must be {expected} policy="{of}", got {given!r}')
    rows = None if budget is None else _integer("verify_budget", budget, 1)
    seconds = None if latency is None else checks.real("Engine", "latency_target", latency)
    if seconds is not None and not 0 < seconds < math.inf:
        checks.refuse("Engine", "latency_target", "above 0 seconds and finite", latency)
    threshold = checks.real("Engine", "min_draft_confidence", confidence)
    if not 0 <= threshold < 1:
        checks.refuse("Engine", "min_draft_confidence", "in [0, 1)", confidence)
    if threshold and drafter not in ("model", "chain"):
        raise ValueError(f"[Engine] min_draft_confidence must be 0 without a draft, got {threshold}")
    return rows, seconds, threshold


def _drafter(draft: PathLike | None, drafter: str) -> tuple[PathLike | None, Literal["model", "ngram", "chain"] | None]:
    """(checkpoint of the draft, who proposes)."""
    _one_of("drafter", drafter, get_args(Drafter))
    if draft is None or draft == NGRAM:
        if drafter == "chain":
            raise ValueError(f'[Engine] drafter must be "auto" without the checkpoint of a draft, got {drafter!r} with draft={draft!r}')
        return None, None if draft is None else "ngram"
    return draft, "chain" if drafter == "chain" else "model"


def _tau(wanted: int | str, drafter: str | None, policy: str, num_seqs: int) -> int:
    if wanted == "auto" and policy != "fixed":
        return max(1, min(DEFAULT_TAU_MAX, MAX_ROWS // num_seqs - 1)) if drafter else 0
    if wanted == "auto":
        return min({None: 0, "model": DEFAULT_TAU, "ngram": DEFAULT_NGRAM_TAU, "chain": DEFAULT_TAU}[drafter], MAX_ROWS // num_seqs - 1)
    tau = _integer("num_speculative_tokens", wanted, 0, MAX_TAU)
    if tau and not drafter:
        raise ValueError(f"[Engine] num_speculative_tokens must be 0 without a draft, got {tau}")
    return tau


def _tokenizer(given: PathLike | tokenizers.Tokenizer | None, target: Checkpoint) -> Tokenizer | None:
    if isinstance(given, tokenizers.Tokenizer):
        return Tokenizer.copy_of(given, "tokenizer", target.directory)
    if given is not None:
        return Tokenizer.read(_path("tokenizer", given))
    return Tokenizer.read(target.directory) if os.path.lexists(target.directory / "tokenizer.json") else None


def _check_draft_tokenizer(target: Tokenizer | None, draft: Checkpoint | None, notes: list[str]) -> None:
    if target is None or draft is None:
        return
    if os.path.lexists(draft.directory / "tokenizer.json"):
        refuse_other_tokenizer(target, Tokenizer.read(draft.directory))
    else:
        notes.append("draft: no tokenizer.json, taken to have the target's tokenizer")


def _dtype(name: str, wanted: str, files: Checkpoint, notes: list[str]) -> str:
    if _one_of(name, wanted, _DTYPES) != "auto":
        return wanted
    if files.dtype == "fp16":
        notes.append(f'{name}: fp16 weights rounded to bf16; "fp32" keeps them exact')
    return "fp32" if files.dtype == "fp32" else "bf16"


def _draft_dtype(wanted: str, draft: Checkpoint | None, without: str, notes: list[str]) -> str:
    if draft is not None:
        return _dtype("draft_dtype", wanted, draft, notes)
    if _one_of("draft_dtype", wanted, _DTYPES) != "auto":
        raise ValueError(f'[Engine] draft_dtype must be "auto" without a draft, got {wanted!r}')
    return without


def _within_its_window(draft: Checkpoint, notes: list[str]) -> Checkpoint:
    """A draft with a sliding window proposes up to the window only; beyond it decoding goes on without one."""
    window, context = draft.sliding_window, draft.config.max_position_embeddings
    if window is None or window >= context:
        return draft
    notes.append(f"draft: proposes up to position {window}, its sliding_window")
    return dataclasses.replace(draft, config=dataclasses.replace(draft.config, max_position_embeddings=window))


def _max_model_len(wanted: int | None, target: Checkpoint, notes: list[str]) -> int:
    context, window = target.config.max_position_embeddings, target.sliding_window
    limit = context if window is None else min(context, window)
    if wanted is None:
        if limit < context:
            notes.append(f"max_model_len: {limit}, the target's sliding_window: attention beyond it is not implemented")
        return limit
    length = _integer("max_model_len", wanted, 2)
    if length > context:
        raise ValueError(f"[Engine] max_model_len must be at most the target's context of {context} tokens, got {length}")
    if length > limit:
        raise ValueError(f"[Engine] max_model_len must be at most the target's sliding_window of {limit} tokens, got {length}")
    return length


def _kv_cache_tokens(wanted: int | None, num_seqs: int, length: int, bytes_per_position: int, free: int, notes: list[str]) -> int:
    if wanted is not None:
        return _integer("kv_cache_tokens", wanted, 2)
    positions, note = default_kv_cache_tokens(num_seqs, length, bytes_per_position, free)
    notes += [note] if note else []
    return positions


def _vocab_size(target: Checkpoint, words: Tokenizer | None) -> int:
    size = min(words.vocab_size, target.config.vocab_size) if words else target.config.vocab_size
    for eos in target.eos_token_ids:
        if not 0 <= eos < size:
            raise _core.ModelFileError(f"{target.directory}: eos_token_id must be in [0, {size}), the ids that exist, found {eos}")
    return size


def prompt_ids(prompt: Prompt, tokenizer: Tokenizer | None, most: int | None = None) -> list[int]:
    """most: ids that there is room for. Text that cannot be so few is refused before it is looked at, which takes seconds for megabytes."""
    if isinstance(prompt, str):
        return _encoded(_with_tokenizer(tokenizer, "text"), checks.text("generate", "prompt", prompt), most, special_tokens=True)
    if isinstance(prompt, Mapping):
        raise ValueError("[generate] prompt must be text, token ids or messages, got one message: put it into a list")
    parts = checks.items("generate", "prompt", "text, token ids or messages", prompt)
    if are_messages(parts):
        text = render_messages("generate", "prompt", parts, tokenizer)
        return _encoded(_with_tokenizer(tokenizer, "messages"), text, most, special_tokens=False)  # a template writes them itself
    if any(isinstance(each, Mapping) for each in parts):
        raise ValueError("[generate] prompt must be text, token ids or messages, got messages among others")
    if any(isinstance(each, str) for each in parts):
        raise ValueError("[generate] prompt must be text, token ids or messages, got several texts: generate_batch takes several prompts")
    return checks.token_ids("generate", "prompt", parts)


def _encoded(tokenizer: Tokenizer, text: str, most: int | None, *, special_tokens: bool) -> list[int]:
    if most is not None and len(text) > (limit := SHRINKING * most * tokenizer.longest_token):
        raise ValueError(f"[generate] prompt must be at most {limit} characters, {SHRINKING} times the longest token ({tokenizer.longest_token} bytes) "
                         f"for each of max_model_len = {most}, got {len(text)}")
    return tokenizer.encode(text, special_tokens=special_tokens)


def render_messages(where: str, name: str, messages: Sequence[Any], tokenizer: Tokenizer | None, **options: Any) -> str:
    """Messages as the text that the model was trained on. options: of ChatTemplate.render."""
    words = _with_tokenizer(tokenizer, "messages", where, name)
    if words.chat_template is None:
        instead = "text or token ids" if name == "prompt" else "for a model that brings a template"
        raise ValueError(f"[{where}] {name} must be {instead}, since there is no chat template beside {words.source} "
                         "(chat_template.jinja, or chat_template in tokenizer_config.json), got messages")
    return words.chat_template.render(where, name, messages, **options)


def _with_tokenizer(tokenizer: Tokenizer | None, got: str, where: str = "generate", name: str = "prompt") -> Tokenizer:
    if tokenizer is None:
        raise ValueError(f"[{where}] {name} must be token ids, since the engine has no tokenizer, got {got}")
    return tokenizer
