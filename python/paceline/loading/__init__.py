"""Hugging Face checkpoints: what they say of themselves, and their tensors on the way into the core."""

from paceline.loading.checkpoint import Checkpoint, core_config, load_weights, read_config
from paceline.loading.config import ModelConfig
from paceline.loading.weights_cache import default_directory, load_cached_weights, weights_key

__all__ = ["Checkpoint", "ModelConfig", "core_config", "default_directory", "load_cached_weights", "load_weights", "read_config",
           "weights_key"]
