"""A trace as Chrome/Perfetto JSON: load it in ui.perfetto.dev or chrome://tracing. `paceline trace show` reads the same file.

Process 1 is the engine: on its one track every cycle, and inside it its draft steps, the verification, acceptance and, where drafts were
rejected, the rollback, which takes no time of its own: lengths move. Process 2 has a track per request, with its part in each cycle; a flow
leads from cycle to cycle of one request. Counters: accepted and tau.

Where the parts lie inside a cycle follows from the order of the work and their durations, not from clocks of their own.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np

from paceline.trace import Trace

FORMAT = 1  # of what `paceline trace show` reads
ENGINE, REQUESTS = 1, 2  # processes
CYCLES = 1  # thread


def write_timeline(path: Path, trace: Trace, texts: Mapping[int, str]) -> None:
    """texts: of the token ids, for people; ids without one show as numbers. Raises OSError."""
    path.write_text(json.dumps(timeline(trace, texts), allow_nan=False))


def timeline(trace: Trace, texts: Mapping[int, str]) -> dict[str, Any]:
    """The JSON object: "traceEvents", and the columns themselves under "paceline", which viewers ignore."""
    used = sorted({*trace.drafted[trace.drafted >= 0].tolist(), *trace.extra_token[trace.extra_token >= 0].tolist()})
    columns = {field.name: _plain(getattr(trace, field.name)) for field in dataclasses.fields(trace)}
    return {"displayTimeUnit": "ms", "traceEvents": _events(trace, texts),
            "paceline": {"format": FORMAT, "columns": columns, "tau_max": trace.drafted.shape[1],
                         "texts": {str(i): texts[i] for i in used if i in texts}}}


def _plain(column: Any) -> Any:
    """JSON knows no NaN and no infinity: null."""
    if isinstance(column, np.ndarray):
        return [_plain(each) for each in column.tolist()] if column.dtype.kind == "f" else column.tolist()
    if isinstance(column, list):
        return [_plain(each) for each in column]
    return column if math.isfinite(column) else None


def _events(trace: Trace, texts: Mapping[int, str]) -> list[dict[str, Any]]:
    events = [_name(ENGINE, "engine"), _name(REQUESTS, "requests"), _name(ENGINE, "cycles", CYCLES)]
    events += [_name(REQUESTS, f"request {request}", int(request)) for request in np.unique(trace.request).tolist()]
    order = np.lexsort((trace.request, trace.cycle))
    _, first = np.unique(trace.cycle[order], return_index=True)
    begun = set[int]()
    last = {int(request): int(row) for row, request in enumerate(trace.request)}
    parts = dict(zip(*np.unique(trace.request, return_counts=True), strict=True))
    free = 0.0  # where the track is free again: two cycles may be under way, and a track holds one
    for rows in np.split(order, first[1:]) if len(order) else ():
        begin, length = max(_microseconds(trace.start[rows[0]]), free), _length(trace, int(rows[0]))
        free = round(begin + length, 3)
        events += _cycle(trace, rows, begin, length)
        for row in rows.tolist():
            request = int(trace.request[row])
            phase = "" if parts[request] == 1 else "f" if last[request] == row else "t" if request in begun else "s"  # one part has no flow
            begun.add(request)
            events += _part(trace, row, begin, length, texts, phase)
    return events


def _length(trace: Trace, row: int) -> float:
    """Microseconds of the models' work. The host's is the gap to the next cycle."""
    return _microseconds(trace.draft_time[row] + trace.verify_time[row] + trace.sample_time[row])


def _cycle(trace: Trace, rows: Any, begin: float, length: float) -> list[dict[str, Any]]:
    """Of the engine's track: the cycle around its parts, which follow one another inside it."""
    row = int(rows[0])
    steps = int(np.where(trace.source[rows] == trace.SOURCES.index("model"), trace.tau[rows], 0).max())  # the text needs none
    accepted, tau = int(trace.accepted[rows].sum()), int(trace.tau[rows].sum())
    cycle = int(trace.cycle[row])
    events = [_slice(ENGINE, CYCLES, f"cycle {cycle}", begin, length,
                     {"tau": int(trace.tau[rows].max()), "rows": int(trace.rows[row]), "sequences": int(trace.sequences[row]), "host_ms": 1e3 * float(trace.host_time[row])})]
    at, draft = begin, _microseconds(trace.draft_time[row])
    for step in range(steps):
        events.append(_slice(ENGINE, CYCLES, f"draft {step + 1}", at + draft * step / steps, draft / steps, {}))
    at += draft
    verify, sample = _microseconds(trace.verify_time[row]), _microseconds(trace.sample_time[row])
    events.append(_slice(ENGINE, CYCLES, "verify", at, verify, {"rows": int(trace.rows[row])}))
    events.append(_slice(ENGINE, CYCLES, "accept", at + verify, sample, {"accepted": accepted}))
    if accepted < tau:
        events.append(_slice(ENGINE, CYCLES, "rollback", begin + length, 0.0, {"drafts": tau - accepted}))
    for name, value in (("accepted", accepted), ("tau", tau)):
        events.append({"ph": "C", "pid": ENGINE, "name": name, "ts": round(begin, 3), "args": {name: value}})
    return events


def _part(trace: Trace, row: int, begin: float, length: float, texts: Mapping[int, str], phase: str) -> list[dict[str, Any]]:
    """Of a request's track: what it got from this cycle, and the flow that comes from its last one; phase "": none."""
    request, ids = int(trace.request[row]), trace.emitted_ids(row)
    told = {"position": int(trace.position[row]), "tau": int(trace.tau[row]), "wanted_tau": int(trace.wanted_tau[row]),
            "reason": trace.REASONS[trace.reason[row]], "accepted": int(trace.accepted[row]), "extra": trace.EXTRA_KINDS[trace.extra_kind[row]],
            "text": "".join(texts.get(i, f"<{i}>") for i in ids)}
    flow = {"ph": phase, "pid": REQUESTS, "tid": request, "id": request, "cat": "request", "name": f"request {request}", "bp": "e",
            "ts": round(begin + length / 2, 3)}
    return [_slice(REQUESTS, request, f"+{len(ids)}", begin, length, told)] + [flow] * bool(phase)


def _slice(pid: int, tid: int, name: str, begin: float, length: float, told: dict[str, Any]) -> dict[str, Any]:
    """A complete event. Ends are rounded, not lengths: a part must not end after what it lies in."""
    ts = round(begin, 3)
    return {"ph": "X", "pid": pid, "tid": tid, "name": name, "cat": "cycle", "ts": ts, "dur": round(max(0.0, round(begin + length, 3) - ts), 3), "args": told}


def _name(pid: int, name: str, tid: int | None = None) -> dict[str, Any]:
    kind = "process_name" if tid is None else "thread_name"
    return {"ph": "M", "pid": pid, "name": kind, "args": {"name": name}} | ({} if tid is None else {"tid": tid})


def _microseconds(seconds: float) -> float:
    return 1e6 * float(seconds)


def read_timeline(path: Path) -> tuple[Trace, dict[int, str]]:
    """(trace, texts) of a file that `write_timeline` wrote. Raises ValueError for any other."""
    try:
        told = json.loads(path.read_bytes())["paceline"]
        if told["format"] != FORMAT:
            raise ValueError(f"format {told['format']}")
        columns = {field.name: np.array(told["columns"][field.name], _kind(field.type)) for field in dataclasses.fields(Trace)}
        width = int(told["tau_max"])
        n = len(columns["cycle"])
        for name in ("drafted", "draft_logprob", "target_logprob", "agreement"):
            columns[name] = columns[name].reshape(n, width)
        if any(len(column) != n for column in columns.values()) or any(
                columns[name].ndim != 1 for name in columns if name not in ("drafted", "draft_logprob", "target_logprob", "agreement")):
            raise ValueError("columns of different lengths")
        _check_ranges(columns, width)
        return Trace(**columns), {int(i): str(text) for i, text in told["texts"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"[trace] {path} must be a file of `engine.profile(path)` or `paceline generate --trace`, got: {error!r:.100}") from None


def _kind(column: Any) -> Any:
    """NDArray[np.int32] -> np.int32"""
    return get_args(get_args(column)[1])[0]


def _check_ranges(columns: dict[str, Any], width: int) -> None:
    """What the views index with."""
    for name, least, most in (("tau", 0, width), ("accepted", 0, width), ("emitted", 0, width + 1), ("reason", 0, len(Trace.REASONS) - 1),
                              ("extra_kind", 0, len(Trace.EXTRA_KINDS) - 1), ("source", 0, len(Trace.SOURCES) - 1)):
        if len(columns[name]) and not (least <= columns[name].min() and columns[name].max() <= most):
            raise ValueError(f"{name} outside [{least}, {most}]")
