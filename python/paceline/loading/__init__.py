"""Hugging Face checkpoints: what they say of themselves, and their tensors on the way into the core."""

from paceline.loading.checkpoint import Checkpoint, load_weights, read_config
from paceline.loading.config import ModelConfig

__all__ = ["Checkpoint", "ModelConfig", "load_weights", "read_config"]
