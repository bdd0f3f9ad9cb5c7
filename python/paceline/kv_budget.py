"""How many KV positions an engine takes when nobody says."""

import os
from pathlib import Path

from paceline.loading import ModelConfig

LONGEST_BY_DEFAULT = 8192
"""Positions per sequence: a context of 131,072 would cost gigabytes that few requests need."""


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


def available_memory() -> int:
    """Bytes this process may still take: what the system has, or what its cgroup leaves."""
    free = [_meminfo("MemAvailable")]
    cgroup = Path("/sys/fs/cgroup")
    try:
        limit, used = (cgroup / "memory.max").read_text().strip(), int((cgroup / "memory.current").read_text())
        if limit != "max":
            free.append(max(0, int(limit) - used))
    except (OSError, ValueError):
        pass  # no cgroup of the second version: no such limit
    return min(free)


def _meminfo(field: str) -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
