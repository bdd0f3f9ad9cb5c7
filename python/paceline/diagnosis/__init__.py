"""What the columns of a trace mean: agreement, costs, predictions, causes. Pure functions; only `measure` runs an engine."""
