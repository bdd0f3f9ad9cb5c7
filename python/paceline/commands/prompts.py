"""Prompts for the commands that measure: a file's, or the demo's."""

import json
from pathlib import Path
from typing import Any

from paceline.commands.demo import PROMPTS


def read_prompts(path: str | None) -> list[Any]:
    """From FILE.json, a list; from FILE.jsonl, a value per line, text or messages, or {"prompt": ...} of them; from any other, a text per line.
    None: the demo's. Raises ValueError."""
    if path is None:
        return list(PROMPTS)
    try:
        content = Path(path).read_text(encoding="utf-8")
        values = json.loads(content) if path.endswith(".json") else [
            json.loads(line) if path.endswith(".jsonl") else line for line in content.splitlines() if line.strip()]
    except (OSError, ValueError) as error:  # ValueError: JSON or UTF-8
        raise ValueError(f"--prompts must be a file that can be read, got {path}: {getattr(error, 'strerror', None) or error}") from None
    if not isinstance(values, list) or not values:
        raise ValueError(f"--prompts must hold at least one prompt, got {path}")
    return [each["prompt"] if isinstance(each, dict) and "prompt" in each else each for each in values]
