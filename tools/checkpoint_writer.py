"""Write Hugging Face checkpoints with numpy alone: tensors are made one by one and streamed, so a checkpoint needs no memory of its own.

The safetensors library cannot write bf16 from numpy; the format is a length, a JSON header and the bytes.
"""

import json
import pathlib
import struct
from collections.abc import Callable, Iterable

import numpy as np

ITEM_SIZE = {"F32": 4, "F16": 2, "BF16": 2}

# name, shape, and what makes its values (float32, or uint16 holding bf16 bits)
Tensor = tuple[str, tuple[int, ...], Callable[[], np.ndarray]]


def to_bf16(values):
    """float32 -> bf16 bits (uint16), to nearest, ties to even. Values are finite."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bf16(bits):
    """bf16 bits (uint16) -> float32, exact."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def encoded(values, dtype):
    if values.dtype == np.uint16:
        return values
    return {"F32": lambda v: v.astype(np.float32), "F16": lambda v: v.astype(np.float16), "BF16": to_bf16}[dtype](values)


def write_safetensors(path, tensors: Iterable[Tensor], dtype: str):
    """One file. dtype: F32, F16 or BF16, of all tensors."""
    tensors, header, end = list(tensors), {}, 0
    for name, shape, _ in tensors:
        begin, end = end, end + int(np.prod(shape)) * ITEM_SIZE[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the data begin at a multiple of 8
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, shape, make in tensors:
            values = make()
            if values.shape != shape:
                raise ValueError(f"{name}: expected shape {shape}, got {values.shape}")
            encoded(values, dtype).tofile(file)


def write_checkpoint(directory, config: dict, tensors: Iterable[Tensor], dtype: str, shards: int = 1):
    """directory/config.json with model.safetensors, or with `shards` files and their index."""
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    tensors = list(tensors)
    if shards == 1:
        write_safetensors(directory / "model.safetensors", tensors, dtype)
        return
    weight_map = {}
    for i in range(shards):
        name = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        write_safetensors(directory / name, tensors[i::shards], dtype)
        weight_map.update({tensor[0]: name for tensor in tensors[i::shards]})
    size = sum(int(np.prod(shape)) for _, shape, _ in tensors) * ITEM_SIZE[dtype]
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def tensor_shapes(config: dict):
    """[(name, shape)] of a Llama-family checkpoint, in the order of the network. Reads the fields of config.json."""
    d, f, v = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    head_dim = config.get("head_dim") or d // config["num_attention_heads"]
    q, kv = config["num_attention_heads"] * head_dim, config["num_key_value_heads"] * head_dim
    shapes = [("model.embed_tokens.weight", (v, d))]
    for i in range(config["num_hidden_layers"]):
        attention, mlp = f"model.layers.{i}.self_attn.", f"model.layers.{i}.mlp."
        shapes += [(f"model.layers.{i}.input_layernorm.weight", (d,))]
        for name, rows in (("q_proj", q), ("k_proj", kv), ("v_proj", kv)):
            shapes += [(attention + name + ".weight", (rows, d))]
            if config["model_type"] == "qwen2" or config.get("attention_bias"):
                shapes += [(attention + name + ".bias", (rows,))]
        if config["model_type"] == "qwen3":
            shapes += [(attention + "q_norm.weight", (head_dim,)), (attention + "k_norm.weight", (head_dim,))]
        shapes += [(attention + "o_proj.weight", (d, q))]
        if config["model_type"] != "qwen2" and config.get("attention_bias"):
            shapes += [(attention + "o_proj.bias", (d,))]
        shapes += [(f"model.layers.{i}.post_attention_layernorm.weight", (d,)), (mlp + "gate_proj.weight", (f, d)),
                   (mlp + "up_proj.weight", (f, d)), (mlp + "down_proj.weight", (d, f))]
    shapes += [("model.norm.weight", (d,))]
    if not config.get("tie_word_embeddings"):
        shapes += [("lm_head.weight", (v, d))]
    return shapes
