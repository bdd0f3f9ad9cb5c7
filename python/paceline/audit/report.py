"""What an audit found: data first, and a page of plain words of the same."""

import dataclasses
import math
import textwrap
from typing import Any

from paceline.audit.chi_square import ALPHA


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One question and its answer."""

    part: str
    """"parity", "law", "kv" or "control"."""
    name: str
    passed: bool
    found: str
    """In words, with the figures that decide."""
    figures: dict[str, Any]
    """The same as numbers: sample sizes, statistic, degrees, p_value where it is a test."""
    statistical: bool = False
    """Judged at alpha, and again with four times the draws before it fails. All other checks are exact."""
    faults: tuple[str, ...] = ()
    """What would explain a failure, by name; empty where it passed or nothing known explains it."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AuditReport:
    passed: bool
    checks: tuple[Check, ...]
    faults: tuple[str, ...]
    """Named by the checks that failed, each once."""
    seed: int
    """Given again, it gives this audit again."""
    seconds: float
    false_alarm_rate: float
    """Of the whole audit on a sound engine, at most: alpha squared per statistical test."""
    setup: dict[str, Any]
    """The pair, the device, and how much was asked."""

    def to_json(self) -> dict[str, Any]:
        """What JSON has names for: a statistic without bounds is null."""
        plain: dict[str, Any] = _finite(dataclasses.asdict(self) | {"alpha": ALPHA})
        return plain

    def page(self) -> str:
        """The report in plain words; its last line is PASS or FAIL."""
        lines = [f"Audit of {self.setup['target']}", f"with     {self.setup['draft']}, {self.setup['device']}", ""]
        part = ""
        for check in self.checks:
            if check.part != part:
                part = check.part
                lines.append(_TITLES[part])
            lines += textwrap.wrap(f"{'ok  ' if check.passed else 'FAIL'}  {check.name}: {check.found}", 110, initial_indent="  ",
                                   subsequent_indent="        ")
            lines += [f"        named: {fault}" for fault in check.faults]
        tests = sum(check.statistical for check in self.checks)
        lines += ["", f"{len(self.checks)} checks in {self.seconds:.0f} s, seed {self.seed}. {tests} of them are statistical: alpha {ALPHA:g} each, and one that",
                  f"fails must fail again with four times the draws, so a sound engine is called faulty in at most {self.false_alarm_rate:.0e} of all audits."]
        return "\n".join([*lines, "", "PASS" if self.passed else "FAIL"])


_TITLES = {
    "parity": "Parity: speculation changes no bit",
    "law": "The law: what is emitted is distributed as the target says",
    "kv": "KV: what the target remembers after rollbacks is what a cold start computes",
    "control": "Negative control: evidence that was changed on purpose is refused"}


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def report_of(checks: list[Check], seed: int, seconds: float, setup: dict[str, Any]) -> AuditReport:
    return AuditReport(
        passed=all(check.passed for check in checks), checks=tuple(checks),
        faults=tuple(dict.fromkeys(fault for check in checks for fault in check.faults)), seed=seed, seconds=seconds,
        false_alarm_rate=sum(check.statistical for check in checks) * ALPHA**2, setup=setup)
