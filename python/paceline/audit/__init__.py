"""Whether what an engine emits is what its target says: on the user's own pair, machine and settings, by the engine's own operations."""

from paceline.audit.report import AuditReport, Check

__all__ = ["AuditReport", "Check"]
