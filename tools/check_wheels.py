"""Repair the wheels in dist/, check what is in them, install them into clean environments and run them: the last part of `make wheels`."""

import os
import pathlib
import subprocess
import sys
import tempfile
import zipfile

import hardening

LARGEST = {"paceline": 24 << 20, "paceline_cuda13": 100 << 20}
"""Bytes of a wheel at most: the bundled pair is 16 MB of the first, and an index takes 100 MiB."""

NVIDIA = ("libcublas*.so.*", "libcudart.so.*", "libnvrtc.so.*", "libcuda.so.1")


def main(dist: pathlib.Path) -> None:
    repaired = dist / "repaired"
    for wheel in one_of_each(dist).values():
        excluded = [argument for name in NVIDIA for argument in ("--exclude", name)]
        run(sys.executable, "-m", "auditwheel", "repair", *excluded, "-w", repaired, wheel)
    wheels = one_of_each(repaired)
    for name, wheel in wheels.items():
        check_content(name, wheel)
    with tempfile.TemporaryDirectory() as folder:
        pathlib.Path(folder, "libcuda.so.1").write_text("no library\n")  # what is expected below is that of a machine without a driver
        os.environ["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, [folder, os.environ.get("LD_LIBRARY_PATH")]))
        python = new_environment(pathlib.Path(folder) / "cpu")
        run(python, "-m", "pip", "install", "--quiet", wheels["paceline"])
        run(python, "-m", "paceline", "demo")
        expect(doctor(python), "cuda engine:    not used: there is no NVIDIA driver", "cuda plugin:    none")
        run(python, "-m", "pip", "install", "--quiet", "--find-links", repaired, f"{wheels['paceline']}[cuda]")
        expect(doctor(python), "cuda engine:    not used: there is no NVIDIA driver", "libpaceline_cuda.so")
        said = subprocess.run([python, "-c", LOAD], capture_output=True, text=True, check=True).stdout
        expect(said, "cudaErrorInsufficientDriver")
        print(f"the CUDA engine, up to the driver: {said.strip()}")


def one_of_each(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Distribution -> its wheel. Of several it would be chance which one is checked."""
    found: dict[str, list[pathlib.Path]] = {name: [] for name in LARGEST}
    for wheel in sorted(folder.glob("*.whl")):
        name = wheel.name.split("-")[0]
        if name not in found:
            sys.exit(f"{folder}: expected no wheel of {name}, found {wheel.name}")
        found[name].append(wheel)
    for name, wheels in found.items():
        if len(wheels) != 1:
            sys.exit(f"{folder}: expected one wheel of {name}, found {', '.join(wheel.name for wheel in wheels) or 'none'}")
    return {name: wheel for name, (wheel,) in found.items()}


LOAD = """
import paceline, paceline.cuda
from paceline import _core
assert paceline.cuda._load_cublas(), "cuBLAS"
try:
    _core.Backend.load(str(paceline.cuda.find_cuda().plugin), 0)
except paceline.DeviceError as error:
    print(error)
"""


def check_content(name: str, wheel: pathlib.Path) -> None:
    size = wheel.stat().st_size
    assert size <= LARGEST[name], f"{wheel.name} is {size} bytes, at most {LARGEST[name]} are allowed"
    files = zipfile.ZipFile(wheel).namelist()
    foreign = [file for file in files if any(part in file for part in ("cublas", "cudart", "nvrtc"))]
    assert not foreign, f"{wheel.name} bundles {foreign}"
    check_libraries(wheel, [file for file in files if file.endswith(".so")])
    print(f"{wheel.name}: {size / 1e6:.1f} MB, {len(files)} files")


def check_libraries(wheel: pathlib.Path, files: list[str]) -> None:
    """Ours, as they are shipped."""
    assert files, f"{wheel.name} has no library"
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(wheel) as content:
        wrong = {file: hardening.lacks(pathlib.Path(content.extract(file, folder))) for file in files}
    assert not any(wrong.values()), f"{wheel.name}: {wrong}"


def new_environment(folder: pathlib.Path) -> pathlib.Path:
    run(sys.executable, "-m", "venv", folder)
    return folder / "bin/python"


def doctor(python: pathlib.Path) -> str:
    text = subprocess.run([python, "-m", "paceline", "doctor"], capture_output=True, text=True, check=True).stdout
    print(text)
    return text


def expect(text: str, *parts: str) -> None:
    for part in parts:
        assert part in text, f"expected {part!r} in:\n{text}"


def run(*command: object) -> None:
    subprocess.run([str(part) for part in command], check=True)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
