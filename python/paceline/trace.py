"""What every cycle leaves behind, as columns: `Engine.trace()`."""

import dataclasses
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trace:
    """One row per request and cycle, oldest first: NumPy columns of equal length n, of the newest `trace_cycles` rows.

    Requests that share a pass share its cycle number, rows, sequences and times. Times are seconds.
    """

    REASONS: ClassVar[tuple[str, ...]] = ("fixed", "request", "clamped")
    """Names of `reason`."""
    EXTRA_KINDS: ClassVar[tuple[str, ...]] = ("none", "residual", "bonus")
    """Names of `extra_kind`."""
    SOURCES: ClassVar[tuple[str, ...]] = ("draft",)
    """Names of `source`."""

    cycle: NDArray[np.int64]
    """Number of the launch, from 1."""
    request: NDArray[np.int64]
    position: NDArray[np.int32]
    """Of the first token that the cycle emits, prompt included."""
    wanted_tau: NDArray[np.int32]
    """What was asked for. Less was drafted (`tau`) where a limit came first."""
    reason: NDArray[np.uint8]
    """Why that tau: an index into REASONS."""
    tau: NDArray[np.int32]
    """Drafts verified."""
    accepted: NDArray[np.int32]
    emitted: NDArray[np.int32]
    """accepted + 1, less where a stop or limit cut it."""
    extra_token: NDArray[np.int32]
    """The target's own; -1 where the cut came before it."""
    extra_kind: NDArray[np.uint8]
    """An index into EXTRA_KINDS."""
    rows: NDArray[np.int32]
    """Live rows of the target's pass, over all its sequences."""
    sequences: NDArray[np.int32]
    """Requests that shared the pass."""
    source: NDArray[np.uint8]
    """Who proposed: an index into SOURCES."""
    start: NDArray[np.float64]
    """Of the launch, since the engine began."""
    draft_time: NDArray[np.float64]
    verify_time: NDArray[np.float64]
    sample_time: NDArray[np.float64]
    host_time: NDArray[np.float64]
    """From the launch to the results read, less the other three."""
    drafted: NDArray[np.int32]
    """[n, tau_max] proposed ids; -1 where none."""
    draft_logprob: NDArray[np.float32]
    """[n, tau_max] of the drafted token in the draft's row: log-softmax of the raw logits, temperature 1. NaN where none."""
    target_logprob: NDArray[np.float32]
    """[n, tau_max] of it in the target's row. NaN where none, and behind the first rejection, whose rows nobody reaches."""
    agreement: NDArray[np.float32]
    """[n, tau_max] how surely the draft would have had position + j accepted, whose emitted token y is known, j < min(tau, emitted).
    `coupled` and temperature 0: 1 if it proposed y, else 0. `rejection`: min(1, draft(y) / target(y)), processed. NaN where none."""
    catch_up_agreement: NDArray[np.float32]
    """The same at position - 1, the bonus token of the cycle before, from the row that the draft caught up with. NaN where unknown."""

    def __len__(self) -> int:
        return len(self.cycle)

    def where(self, chosen: NDArray[np.bool_] | NDArray[np.intp] | slice) -> "Trace":
        """The chosen rows: a mask, indices or a slice."""
        return Trace(**{field.name: getattr(self, field.name)[chosen] for field in dataclasses.fields(self)})

    def emitted_ids(self, row: int) -> list[int]:
        """What the cycle gave the request: accepted drafts and the extra token, cut."""
        whole = [*self.drafted[row, :self.accepted[row]].tolist(), int(self.extra_token[row])]
        return whole[:int(self.emitted[row])]
