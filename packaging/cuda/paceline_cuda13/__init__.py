"""Where the CUDA engine's library is: paceline asks through the entry point group "paceline.backends"."""

from pathlib import Path


def library_path() -> Path:
    return Path(__file__).with_name("libpaceline_cuda.so")
