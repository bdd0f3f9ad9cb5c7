"""What an engine takes, said before it is taken."""

import dataclasses

from paceline import _core


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """Bytes that an engine of these arguments asks for while it is built; afterwards it asks for none. Beside them are what a program
    and its libraries take anyway, up to 16 MB that tensors pass through while they are read, and on device cuda the driver's own:
    its context, code and graphs."""

    weight_bytes: int
    """Of both models, packed. Mapped from a file, not taken, where weights_cache has them."""
    draft_weight_bytes: int
    """Of them, the draft's; 0 without one."""
    kv_cache_bytes: int
    """Of both models."""
    workspace_bytes: int
    """Everything else: activations, the state and results of cycles, tables, scratch of the backend."""
    available_bytes: int
    """What the system, or the device, had left when the plan was made."""

    @property
    def total_bytes(self) -> int:
        return self.weight_bytes + self.kv_cache_bytes + self.workspace_bytes

    @property
    def fits(self) -> bool:
        return self.total_bytes <= self.available_bytes

    def __str__(self) -> str:
        sizes = {"weights": self.weight_bytes, "KV caches": self.kv_cache_bytes, "workspaces": self.workspace_bytes}
        return (" + ".join(f"{name} {_gigabytes(size)}" for name, size in sizes.items())
                + f" = {_gigabytes(self.total_bytes)}, {_gigabytes(self.available_bytes)} available")


def plan_memory(backend: _core.Backend, target: _core.ModelConfig, dtype: str, draft: _core.ModelConfig | None, draft_dtype: str,
                options: _core.EngineOptions, free: int) -> MemoryPlan:
    """Takes nothing: the constructors of weights and engine run over a backend that only counts.

    backend: of the engine, made for it already. free: bytes left since.
    """
    use = _core.plan_memory(backend, target, dtype, draft, draft_dtype, options)
    return MemoryPlan(weight_bytes=use.weights, draft_weight_bytes=use.draft_weights, kv_cache_bytes=use.kv_cache,
                      workspace_bytes=use.workspace, available_bytes=free + backend.scratch_bytes())


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:,.3f} GB"
