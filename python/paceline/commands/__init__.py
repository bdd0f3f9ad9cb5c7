"""One module per command: `add(commands)` declares its options, and what it declares as `run` does the work."""
