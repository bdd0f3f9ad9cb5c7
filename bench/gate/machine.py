"""What the machine is, and the build that the parts run: for its own device, or the stub that stands in for one."""

import ctypes
import dataclasses
import datetime
import importlib.metadata
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import tomllib

from gate.cells import Failed, NotRun

ROOT = pathlib.Path(__file__).resolve().parents[2]
WORKERS = ROOT / "bench/gate"


def answer(*command):
    """What a program says, or None."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
        return done.stdout.strip() if done.returncode == 0 and done.stdout.strip() else None
    except (OSError, subprocess.TimeoutExpired):
        return None


def gpu():
    """(name, driver, compute capability such as "9.0"), each None where nothing tells."""
    line = answer("nvidia-smi", "--query-gpu=name,driver_version,compute_cap", "--format=csv,noheader")
    return tuple(part.strip() for part in line.splitlines()[0].split(",")) if line else (None, None, None)


def commit():
    """From git, else from a file COMMIT that whoever copied the tree has left."""
    if head := answer("git", "rev-parse", "HEAD"):
        return head + (", changed" if answer("git", "status", "--porcelain", "--untracked-files=no") else "")
    file = ROOT / "COMMIT"
    return file.read_text().strip() if file.exists() else None


def installed(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def processor():
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines() if sys.platform == "linux" else ():
        if line.startswith("model name"):
            return f"{line.split(':')[1].strip()}, {os.cpu_count()} cores"
    return platform.machine()


def facts(stub):
    name, driver, _ = ("stub", "stub", None) if stub else gpu()
    nvcc = answer("nvcc", "--version")
    cuda = nvcc.split("release ")[-1].splitlines()[0] if nvcc else None
    return dict(
        date=datetime.datetime.now().astimezone().isoformat(timespec="minutes"), command=" ".join(["python", *sys.argv]), stub=stub,
        gpu=name, driver=driver, cuda="stub" if stub else cuda, cublas="stub" if stub else None,
        cpu=processor(), torch=installed("torch"), commit=commit())


@dataclasses.dataclass(frozen=True)
class Build:
    directory: pathlib.Path
    prefix: str  # of the test programs
    environment: dict
    bench: pathlib.Path

    def tests(self):
        return sorted(path for path in self.directory.glob(f"{self.prefix}_*_test") if path.is_file())

    def worker(self, *job):
        """The command of an engine in a process of its own."""
        return [sys.executable, WORKERS / "engine_worker.py", *job]


def stub_build():
    """The C++ tests' own build: the CUDA engine's sources over stubs of driver, runtime and cuBLAS."""
    directory = ROOT / "build/test"
    plugin = directory / "libpaceline_cuda_stub.so"
    if not plugin.exists():
        raise Failed(f"{plugin} is missing: make test builds it")
    environment = dict(os.environ, LD_LIBRARY_PATH=str(directory / "stub_libraries"), PACELINE_CUDA_PLUGIN=str(plugin))
    return Build(directory, "simt", environment, directory / "simt_cuda_kernels")


def tool(name):
    """From the interpreter's own environment, else from the path."""
    beside = pathlib.Path(sys.executable).parent / name
    return str(beside) if beside.exists() else shutil.which(name)


def device_build(gate):
    """Everything for the architecture of the device, nothing fetched, in build/gpu; what was built before is kept. The package with core
    and plugin is put together in build/gpu/site."""
    capability = gpu()[2]
    if capability is None:
        raise NotRun("nvidia-smi shows no device")
    cmake, ninja = tool("cmake"), tool("ninja")
    if cmake is None:
        raise NotRun("cmake is not here")
    architecture = capability.replace(".", "")
    directory, site = ROOT / "build/gpu", ROOT / "build/gpu/site"
    pybind11 = answer(sys.executable, "-m", "pybind11", "--cmakedir")
    configure = [cmake, "-S", ROOT, "-B", directory, *(f"-DPACELINE_{each}=ON" for each in ("TESTS", "BENCH", "PYTHON", "CUDA")),
                 f"-DCMAKE_CUDA_ARCHITECTURES={architecture}{'a' if architecture == '90' else ''}-real",
                 f"-DPython_EXECUTABLE={sys.executable}",
                 *([f"-Dpybind11_DIR={pybind11}"] if pybind11 else []),
                 *(["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"] if ninja and not (directory / "CMakeCache.txt").exists() else [])]
    for command in (configure, [cmake, "--build", directory, "--target", "gpu_gate", "--parallel", os.cpu_count()],
                    [cmake, "--install", directory, "--prefix", site, "--component", "core"],
                    [cmake, "--install", directory, "--prefix", site, "--component", "cuda"]):
        done = gate.run(command, limit=420)
        if done.returncode:
            raise Failed(f"{' '.join(map(str, command))}: {done.stdout[-1500:]}")
    shutil.copytree(ROOT / "python/paceline", site / "paceline", dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    about = site / f"{project['name']}-{project['version']}.dist-info"
    about.mkdir(exist_ok=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    cublas = cached(directory, "CUBLASLT")
    gate.facts["cublas"] = cublas_version(cublas)
    paths = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))
    environment = dict(os.environ, PYTHONPATH=paths, PACELINE_CUDA_LIB_DIR=str(pathlib.Path(cublas).parent),
                       PACELINE_CUDA_PLUGIN=str(site / "paceline/libpaceline_cuda.so"))
    return Build(directory, "device", environment, directory / "cuda_kernels")


def cached(directory, name):
    for line in (directory / "CMakeCache.txt").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return line.partition("=")[2]
    raise Failed(f"{directory}/CMakeCache.txt does not say {name}")


def cublas_version(path):
    """"13.0.0" from 130000, as the library counts."""
    try:
        library = ctypes.CDLL(path)
    except OSError as error:
        return f"not loaded: {error}"
    library.cublasLtGetVersion.restype = ctypes.c_size_t
    version = library.cublasLtGetVersion()
    return f"{version // 10000}.{version // 100 % 100}.{version % 100}"


def build(gate):
    """The cell "build", and what it built; None where it did not."""
    made = []

    def body():
        made.append(stub_build() if gate.stub else device_build(gate))
        return dict(directory=str(made[0].directory.relative_to(ROOT)), tests=len(made[0].tests()))

    gate.cell("build", body)
    return made[0] if made else None
