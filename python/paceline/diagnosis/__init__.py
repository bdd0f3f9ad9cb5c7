"""What the columns of a trace mean: agreement, costs, predictions, causes. Pure functions; only `measure` runs an engine."""

from paceline.diagnosis.causes import Cause, Remedy
from paceline.diagnosis.diagnose import Diagnosis, diagnose_traces
from paceline.diagnosis.prediction import Prediction

__all__ = ["Cause", "Diagnosis", "Prediction", "Remedy", "diagnose_traces"]
