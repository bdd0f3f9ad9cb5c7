"""Whether the CUDA engine can run here, and why not where it cannot. Nothing of it is loaded before a device has been seen."""

import ctypes
import dataclasses
import os
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

OLDEST_CUDA = 13000
"""What the driver must support, as it counts: 1000 major + 10 minor."""

_DRIVER = "libcuda.so.1"
_CUBLAS = "libcublasLt.so.13"
_PLUGIN = "libpaceline_cuda.so"


@dataclasses.dataclass(frozen=True, slots=True)
class Cuda:
    """What was found. The engine runs iff `reason` is None."""

    driver: str | None
    """The CUDA version its driver supports."""
    num_devices: int
    cublas: str | None
    """Where cuBLAS was loaded from."""
    plugin: Path | None
    reason: str | None
    """Why the CUDA engine cannot run, and what would help."""


def find_cuda() -> Cuda:
    """Ask the driver first: without a device neither cuBLAS (500 MB) nor the plugin is touched. Never raises."""
    driver, num_devices, reason = _ask_driver()
    plugin, missing = _find_plugin()
    cublas = None
    reason = reason or missing
    if reason is None:
        cublas = _load_cublas()
        if cublas is None:
            reason = f"cuBLAS 13 is not found ({_CUBLAS}): pip install 'nvidia-cublas>=13.0,<14', or set PACELINE_CUDA_LIB_DIR"
    return Cuda(driver, num_devices, cublas, plugin, reason)


def _ask_driver() -> tuple[str | None, int, str | None]:
    """(CUDA version it supports, devices, reason)."""
    try:
        driver = ctypes.CDLL(_DRIVER)
    except OSError:
        return None, 0, "there is no NVIDIA driver (libcuda.so.1 is not found)"
    version, count = ctypes.c_int(0), ctypes.c_int(0)
    driver.cuDriverGetVersion(ctypes.byref(version))
    supported = f"{version.value // 1000}.{version.value % 1000 // 10}"
    if version.value < OLDEST_CUDA:
        return supported, 0, f"the NVIDIA driver supports CUDA {supported}, 13.0 is needed: update the driver to R580 or newer"
    error = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    if error:
        return supported, 0, f"the NVIDIA driver does not start: {_name_of(driver, error)}"
    if count.value == 0:
        return supported, 0, "the NVIDIA driver shows no device"
    return supported, count.value, None


def _name_of(driver: ctypes.CDLL, error: int) -> str:
    text = ctypes.c_char_p()
    driver.cuGetErrorName(error, ctypes.byref(text))
    return text.value.decode() if text.value else f"error {error}"


def _find_plugin() -> tuple[Path | None, str | None]:
    """(path, reason): $PACELINE_CUDA_PLUGIN, the wheel that paceline[cuda] installs, or a file beside the core (source builds)."""
    if named := os.environ.get("PACELINE_CUDA_PLUGIN"):
        return Path(named), None
    for entry in entry_points(group="paceline.backends", name="cuda"):
        try:
            return Path(str(entry.load()())), None
        except Exception as error:  # that package's code: whatever it raises, the CPU engine is there
            return None, f"the package that brings the CUDA plugin ({entry.value}) is broken: {type(error).__name__}: {error}"
    beside = Path(__file__).with_name(_PLUGIN)
    return (beside, None) if beside.is_file() else (None, "the CUDA plugin is not installed: pip install 'paceline[cuda]'")


def _load_cublas() -> str | None:
    """By absolute path, so that the plugin finds it loaded whatever its own search path is. Where it came from."""
    for path in [*(f"{directory}/{_CUBLAS}" for directory in _library_directories()), _CUBLAS]:
        try:
            ctypes.CDLL(path)
            return path
        except OSError:
            continue
    return None


def _library_directories() -> list[str]:
    """Named by the user, of NVIDIA's wheels, of a toolkit; the loader's own search comes last."""
    found = [os.environ.get("PACELINE_CUDA_LIB_DIR", "")]
    spec = find_spec("nvidia")
    for root in (spec.submodule_search_locations or ()) if spec else ():
        found.append(f"{root}/cu13/lib")
    found += [f"{os.environ[name]}/lib64" for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    return [each for each in found if each]
