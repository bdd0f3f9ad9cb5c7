"""What every cycle leaves behind, as columns: `Engine.trace()`."""

import dataclasses
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from paceline import _core


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trace:
    """One row per request and cycle, oldest first: NumPy columns of equal length n, of the newest `trace_cycles` rows.

    Requests that share a pass share its cycle number, rows, sequences and times. Times are seconds.

    Attributes:
        cycle: Number of the launch, from 1.
        position: Of the first token that the cycle emits, prompt included.
        wanted_tau: What was asked for. Less was drafted (`tau`) where a limit came first.
        reason: Why that tau: an index into REASONS.
        tau: Drafts verified.
        emitted: accepted + 1, less where a stop or limit cut it.
        extra_token: The target's own; -1 where the cut came before it.
        extra_kind: An index into EXTRA_KINDS.
        rows: Live rows of the target's pass, over all its sequences.
        sequences: Requests that shared the pass.
        source: Who proposed: an index into SOURCES.
        start: Of the launch, since the engine began.
        host_time: What passed since the results of the cycle before were read, less the other three; after a prefill pass, or nothing,
            since the launch.
        drafted: [n, tau_max] proposed ids; -1 where none.
        draft_logprob: [n, tau_max] of the drafted token in the draft's row: log-softmax of the raw logits, temperature 1. NaN where
            none.
        target_logprob: [n, tau_max] of it in the target's row. NaN where none, and behind the first rejection, whose rows nobody
            reaches.
        agreement: [n, tau_max] how surely the draft would have had position + j accepted, whose emitted token y is known, j < min(tau,
            emitted). `coupled` and temperature 0: 1 if it proposed y, else 0. `rejection`: min(1, draft(y) / target(y)), processed. NaN
            where none.
        catch_up_agreement: The same at position - 1, the bonus token of the cycle before, from the row that the draft caught up with.
            NaN where unknown.
    """

    REASONS: ClassVar[tuple[str, ...]] = _core.TAU_REASONS
    """Names of `reason`."""
    EXTRA_KINDS: ClassVar[tuple[str, ...]] = _core.EXTRA_KINDS
    """Names of `extra_kind`."""
    SOURCES: ClassVar[tuple[str, ...]] = _core.DRAFT_SOURCES
    """Names of `source`."""

    cycle: NDArray[np.int64]
    request: NDArray[np.int64]
    position: NDArray[np.int32]
    wanted_tau: NDArray[np.int32]
    reason: NDArray[np.uint8]
    tau: NDArray[np.int32]
    accepted: NDArray[np.int32]
    emitted: NDArray[np.int32]
    extra_token: NDArray[np.int32]
    extra_kind: NDArray[np.uint8]
    rows: NDArray[np.int32]
    sequences: NDArray[np.int32]
    source: NDArray[np.uint8]
    start: NDArray[np.float64]
    draft_time: NDArray[np.float64]
    verify_time: NDArray[np.float64]
    sample_time: NDArray[np.float64]
    host_time: NDArray[np.float64]
    drafted: NDArray[np.int32]
    draft_logprob: NDArray[np.float32]
    target_logprob: NDArray[np.float32]
    agreement: NDArray[np.float32]
    catch_up_agreement: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.cycle)

    def where(self, chosen: NDArray[np.bool_] | NDArray[np.intp] | slice) -> "Trace":
        """The chosen rows: a mask, indices or a slice."""
        return Trace(**{field.name: getattr(self, field.name)[chosen] for field in dataclasses.fields(self)})

    def emitted_ids(self, row: int) -> list[int]:
        """What the cycle gave the request: accepted drafts and the extra token, cut."""
        whole = [*self.drafted[row, :self.accepted[row]].tolist(), int(self.extra_token[row])]
        return whole[:int(self.emitted[row])]
