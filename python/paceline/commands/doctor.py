"""`paceline doctor`: what this installation has and can do, and why CUDA is not used where it is not."""

import argparse
import json
import platform
from importlib.metadata import PackageNotFoundError, version

from paceline import _core
from paceline.cuda import find_cuda


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("doctor", help="what this installation has and can do, and why CUDA is not used where it is not")
    parser.set_defaults(run=lambda parsed: run_doctor(json_output=parsed.json))
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout instead of lines")


def diagnosis() -> dict[str, str | None]:
    """What to print, in order; None = not there."""
    cuda = find_cuda()
    return {
        "paceline": version("paceline"),
        "python": platform.python_version(),
        "cpu engine": _core.Backend(0, "").description,
        "numpy": _version("numpy"), "tokenizers": _version("tokenizers"), "safetensors": _version("safetensors"),
        "nvidia driver": f"CUDA {cuda.driver}, devices: {cuda.num_devices}" if cuda.driver else None,
        "cuda plugin": str(cuda.plugin) if cuda.plugin else None,
        "cublas": cuda.cublas,
        "cuda engine": _cuda_engine(str(cuda.plugin)) if cuda.reason is None else f"not used: {cuda.reason}"}


def run_doctor(*, json_output: bool) -> None:
    found = diagnosis()
    print(json.dumps(found) if json_output else "\n".join(f"{name + ':':16}{value or 'none'}" for name, value in found.items()))


def _cuda_engine(plugin: str) -> str:
    try:
        return _core.Backend.load(plugin, 0).description
    except (RuntimeError, ValueError) as error:
        return f"not used: {error}"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
