"""The pair that ships with the package: two small checkpoints trained on the Python standard library (tools/train_demo_pair.py)."""

from pathlib import Path


def demo_pair() -> tuple[Path, Path]:
    """The directories of the bundled target and draft, ready for ``Engine(*demo_pair())``."""
    pair = Path(__file__).parent / "pair"
    return pair / "target", pair / "draft"
