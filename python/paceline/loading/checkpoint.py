"""A checkpoint directory: config.json, generation_config.json, model.safetensors or its shards."""

import contextlib
import dataclasses
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paceline import _core
from paceline._core import ModelFileError
from paceline.loading.config import ModelConfig, config_of, num_weights
from paceline.loading.files import opened
from paceline.loading.safetensors import FileState, StoredTensor, read_header
from paceline.loading.strict_json import read_json, shown

DTYPES = {"F32": "fp32", "F16": "fp16", "BF16": "bf16"}
MAX_CONFIG = 1 << 20
MAX_INDEX = 16 << 20
MAX_EOS = 128
"""Ids that end a text, as many as the core takes with a request."""
STAGING = 16 << 20
BLOCK = 16
"""Rows that a packed matrix keeps together: a part of a tensor has a multiple of them."""


@dataclasses.dataclass(frozen=True, slots=True)
class Checkpoint:
    directory: Path
    config: ModelConfig
    architecture: str
    eos_token_ids: tuple[int, ...]
    """generation_config.json's, or else config.json's."""
    sliding_window: int | None
    """Positions that some layer looks back at most; None when all see everything."""
    tensors: Mapping[str, StoredTensor]
    """Empty where a plan found none."""
    stated_dtype: str | None = None
    """config.json's word for it."""

    @property
    def files(self) -> dict[Path, FileState]:
        """Of the tensors, as they were when their headers were read."""
        return {tensor.file: tensor.state for tensor in self.tensors.values()}

    @property
    def dtype(self) -> str:
        """fp32, bf16 or fp16: that of most bytes, or without tensors what config.json says."""
        if not self.tensors:
            return {"float32": "fp32", "float16": "fp16"}.get(self.stated_dtype or "", "bf16")
        sizes: dict[str, int] = {}
        for tensor in self.tensors.values():
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.nbytes
        return DTYPES.get(max(sizes, key=lambda dtype: sizes[dtype]), "bf16")


def read_config(directory: Path, *, planning: bool = False) -> Checkpoint:
    """Everything but the weights themselves. Raises ModelFileError. planning: there may be no weights at all."""
    values = read_json(directory / "config.json", MAX_CONFIG)
    architecture, config, window = config_of(values, str(directory / "config.json"))
    tensors = {} if planning and not _has_tensors(directory) else _tensors(directory)
    stated = values.get("torch_dtype", values.get("dtype"))
    return Checkpoint(directory, config, architecture, _eos_token_ids(directory, values), window, tensors,
                      stated if isinstance(stated, str) else None)


def core_config(checkpoint: Checkpoint) -> _core.ModelConfig:
    return _core.ModelConfig(**dataclasses.asdict(checkpoint.config))


def load_weights(backend: _core.Backend, checkpoint: Checkpoint, dtype: str) -> _core.Weights:
    """Read, check and pack tensor by tensor, large ones in parts: beside the packed copy there is never more than 16 MB in memory."""
    _check_size(checkpoint)
    weights = _core.Weights(backend, core_config(checkpoint), dtype, str(checkpoint.directory))
    expected = dict(weights.expected())
    _check(checkpoint, expected)
    staging = np.empty(STAGING, np.uint8)
    files: dict[Path, int] = {}
    states = checkpoint.files
    with contextlib.ExitStack() as open_files:
        for name in sorted(expected, key=lambda name: (checkpoint.tensors[name].file, checkpoint.tensors[name].begin)):
            tensor = checkpoint.tensors[name]
            if tensor.file not in files:
                files[tensor.file], status = open_files.enter_context(opened(tensor.file))
                _refuse_another(tensor.file, tensor.state, status)
            row_bytes = tensor.nbytes // tensor.shape[0]
            rows = max(STAGING // row_bytes // BLOCK, 1) * BLOCK
            if rows * row_bytes > len(staging):
                staging = np.empty(rows * row_bytes, np.uint8)
            for first in range(0, tensor.shape[0], rows):
                count = min(rows, tensor.shape[0] - first)
                data = staging[:count * row_bytes]
                _read(files[tensor.file], tensor, name, first * row_bytes, data)
                _check_finite(tensor, name, data)
                weights.load(name, DTYPES[tensor.dtype], (count, *tensor.shape[1:]), data, first)
        for file, descriptor in files.items():
            _refuse_another(file, states[file], os.fstat(descriptor))
    weights.finish()
    return weights


def _eos_token_ids(directory: Path, config: dict[str, Any]) -> tuple[int, ...]:
    path = directory / "generation_config.json"
    values = read_json(path, MAX_CONFIG) if os.path.lexists(path) else {}
    where, ids = (path, values["eos_token_id"]) if values.get("eos_token_id") is not None else (directory / "config.json", config.get("eos_token_id"))
    if ids is None:
        return ()
    several = ids if isinstance(ids, list) else [ids]
    if not all(type(i) is int and i >= 0 for i in several):
        raise ModelFileError(f"{where}: eos_token_id: expected a token id or several, found {shown(ids)}")
    unique = tuple(dict.fromkeys(several))
    if len(unique) > MAX_EOS:
        raise ModelFileError(f"{where}: eos_token_id: expected at most {MAX_EOS} token ids, found {len(unique)}")
    return unique


def _has_tensors(directory: Path) -> bool:
    return any(os.path.lexists(directory / name) for name in ("model.safetensors", "model.safetensors.index.json"))


def _tensors(directory: Path) -> dict[str, StoredTensor]:
    index, single = directory / "model.safetensors.index.json", directory / "model.safetensors"
    if os.path.lexists(single):
        return read_header(single)
    if os.path.lexists(index):
        return _sharded(directory, index)
    others = sorted(path.name for path in directory.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".ckpt", ".gguf", ".msgpack", ".h5"))
    raise ModelFileError(f"{directory}: expected model.safetensors or model.safetensors.index.json, found {', '.join(others) or 'neither'}"
                         + ("; no other format is read" if others else ""))


def _sharded(directory: Path, index: Path) -> dict[str, StoredTensor]:
    where = read_json(index, MAX_INDEX).get("weight_map")
    if not isinstance(where, dict) or not where or not all(isinstance(shard, str) for shard in where.values()):
        raise ModelFileError(f"{index}: weight_map: expected names of tensors and files, found {shown(where)}")
    tensors: dict[str, StoredTensor] = {}
    for shard in sorted(set(where.values())):
        _check_shard_name(directory, index, shard)
        for name, tensor in read_header(directory / shard).items():
            if where.get(name) != shard:
                raise ModelFileError(f"{index}: tensor {shown(name)}: expected in {where.get(name, 'no shard')}, found in {shown(shard)}")
            tensors[name] = tensor
    missing = sorted(where.keys() - tensors.keys())
    if missing:
        raise ModelFileError(f"{index}: tensor {shown(missing[0])}: expected in {where[missing[0]]}, found nowhere")
    return tensors


def _check_shard_name(directory: Path, index: Path, shard: str) -> None:
    """Only files of this very directory: no path, and no way out through a link either (`files.opened`)."""
    if shard != Path(shard).name or not shard.endswith(".safetensors"):
        raise ModelFileError(f"{index}: expected the plain name of a .safetensors file, found {shown(shard)}")


def _check_size(checkpoint: Checkpoint) -> None:
    """Before memory is taken for it: a few digits of config.json could ask for any amount. What is missing gets its name from `_check`."""
    described, found = num_weights(checkpoint.config), sum(math.prod(tensor.shape) for tensor in checkpoint.tensors.values())
    if described > 2 * found + (1 << 20):
        raise ModelFileError(f"{checkpoint.directory}: expected {described} weights, as config.json describes, found {found}")


def _check(checkpoint: Checkpoint, expected: Mapping[str, list[int]]) -> None:
    """Every tensor, before the first is read."""
    for name, shape in expected.items():
        tensor = checkpoint.tensors.get(name)
        if tensor is None:
            raise ModelFileError(f"{checkpoint.directory}: tensor {name}: expected shape {shape}, found nothing")
        if list(tensor.shape) != shape:
            raise ModelFileError(f"{tensor.file}: tensor {name}: expected shape {shape}, found {list(tensor.shape)}")
        if tensor.dtype not in DTYPES:
            raise ModelFileError(f"{tensor.file}: tensor {name}: expected dtype {', '.join(DTYPES)}, found {tensor.dtype}")
    for name in checkpoint.tensors.keys() - expected.keys():
        if not name.endswith("rotary_emb.inv_freq") and not (name == "lm_head.weight" and checkpoint.config.tie_word_embeddings):
            raise ModelFileError(f"{checkpoint.tensors[name].file}: tensor {shown(name)}: expected no such tensor in {checkpoint.architecture}")


def _refuse_another(file: Path, state: FileState, status: os.stat_result) -> None:
    """Whatever the path names by now: only the file whose header was read, and as it was then."""
    if FileState.of(status) != state:
        raise ModelFileError(f"{file}: expected the file whose header was read, found that it has changed since")


def _read(descriptor: int, tensor: StoredTensor, name: str, begin: int, data: NDArray[np.uint8]) -> None:
    """Bytes of a tensor, from its byte `begin` on."""
    view, done = data.data, 0
    while done < len(data):
        count = os.preadv(descriptor, [view[done:]], tensor.begin + begin + done)
        if count == 0:
            raise ModelFileError(f"{tensor.file}: tensor {name}: expected {tensor.nbytes} bytes, found {begin + done}: the file has become shorter")
        done += count


def _check_finite(tensor: StoredTensor, name: str, data: NDArray[np.uint8]) -> None:
    """NaN and infinities have all exponent bits set."""
    exponent, kind = {"F32": (0x7F800000, np.uint32), "BF16": (0x7F80, np.uint16), "F16": (0x7C00, np.uint16)}[tensor.dtype]
    bits = data.view(kind)
    for begin in range(0, len(bits), 1 << 20):  # in parts: no second copy of the tensor
        if (bits[begin:begin + (1 << 20)] & kind(exponent) == exponent).any():
            raise ModelFileError(f"{tensor.file}: tensor {name}: expected finite values, found NaN or infinity")
