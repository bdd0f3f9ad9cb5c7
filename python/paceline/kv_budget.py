"""How many KV positions an engine takes when nobody says, and what weights leave for them."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from paceline.loading import ModelConfig

LONGEST_BY_DEFAULT = 8192
"""Positions per sequence: a context of 131,072 would cost gigabytes that few requests need."""

LONGEST_MODEL_BY_DEFAULT = 1 << 20
"""Positions of the longest text: tables for all of them are computed and kept, whatever is decoded."""

BYTES_PER_WEIGHT = {"fp32": 4.0, "bf16": 2.0, "int8": 1.0, "int4": 0.5 + 2 / 64, "int4_g32": 0.5 + 2 / 32}
"""With the scales of groups; those of whole outputs are too few to count."""


def kv_bytes_per_position(config: ModelConfig, kv_dtype: str) -> int:
    """Keys and values of all layers."""
    return 2 * config.num_layers * config.num_kv_heads * config.head_dim * {"fp32": 4, "bf16": 2}[kv_dtype]


def default_kv_cache_tokens(max_num_seqs: int, max_model_len: int, bytes_per_position: int, free: int) -> tuple[int, str | None]:
    """(positions, note): every sequence up to 8192, less if that is more than a quarter of the `free` bytes, and then a note."""
    wanted = max_num_seqs * min(max_model_len, LONGEST_BY_DEFAULT)
    affordable = free // 4 // bytes_per_position
    if wanted <= affordable:
        return wanted, None
    positions = max(64, affordable // 64 * 64)
    return positions, f"kv_cache_tokens is {positions} instead of {wanted}: a quarter of the free memory"


def default_max_model_len(limit: int, max_num_seqs: int, head_dims: Sequence[int], ngram: bool, free: int) -> tuple[int, str | None]:
    """(positions, note): what the model can, less where a few digits of a config.json ask for tables out of proportion, and then a note."""
    per_position = sum(4 * head_dim for head_dim in head_dims) + (5 + 110 * ngram) * max_num_seqs  # cosines and sines; tokens, pages, suffixes
    affordable = max(64, free // 4 // per_position // 64 * 64)
    if limit <= min(affordable, LONGEST_MODEL_BY_DEFAULT):
        return limit, None
    if affordable < LONGEST_MODEL_BY_DEFAULT:
        return affordable, f"max_model_len is {affordable} instead of {limit}: its tables take a quarter of the free memory"
    return LONGEST_MODEL_BY_DEFAULT, f"max_model_len is {LONGEST_MODEL_BY_DEFAULT} instead of {limit}: more only when it is asked for"


def weight_bytes(config: ModelConfig, dtype: str) -> int:
    """Of the packed matrices, but for what fills up their blocks; norms and biases are too little to count."""
    width, query, kv = config.hidden_size, config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    layers = config.num_layers * width * (2 * query + 2 * kv + 3 * config.intermediate_size)
    tables = config.vocab_size * width * (1 if config.tie_word_embeddings else 2)
    of_tables = "int8" if dtype.startswith("int") else dtype  # the embedding and the head are never below int8
    return int(layers * BYTES_PER_WEIGHT[dtype] + tables * BYTES_PER_WEIGHT[of_tables])


def available_memory() -> int:
    """Bytes this process may still take: what the system has, or what its cgroup leaves, and those that this one is in."""
    return min([_meminfo("MemAvailable"), *_left_by_cgroups()])


def _left_by_cgroups() -> Iterator[int]:
    """Of both versions. In a container its own group is often the root of what can be seen, whatever its path says outside."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return  # no cgroups, no such limit
    for line in lines:  # hierarchy:controllers:path
        _, controllers, inside = line.split(":", 2)
        if controllers == "":
            root, limit, used = Path("/sys/fs/cgroup"), "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            root, limit, used = Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        group = root / inside.lstrip("/")
        for each in (group, *group.parents[:len(group.relative_to(root).parts)]):
            try:
                yield max(0, int((each / limit).read_text()) - int((each / used).read_text()))
            except (OSError, ValueError):
                pass  # not seen from here, or "max": no such limit


def _meminfo(field: str) -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
