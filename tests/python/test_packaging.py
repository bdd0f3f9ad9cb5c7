"""What the files beside the sources promise each other: versions, architectures, and when the CUDA plugin is built."""

import pathlib
import re
import shutil
import subprocess
import sys
import tomllib

import check_kernels
import check_wheels
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
CMAKE = shutil.which("cmake", path=str(pathlib.Path(sys.executable).parent)) or shutil.which("cmake")


def project_of(path):
    return tomllib.loads((ROOT / path).read_text())


def test_every_file_names_the_same_version():
    core, cuda = project_of("pyproject.toml")["project"], project_of("packaging/cuda/pyproject.toml")["project"]
    assert cuda["version"] == core["version"]
    assert core["optional-dependencies"]["cuda"] == [f"{cuda['name']}=={core['version']}"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", core["version"]), "a release's tag is v and these three numbers"


def test_what_is_checked_is_what_a_release_has():
    define = project_of("packaging/cuda/pyproject.toml")["tool"]["scikit-build"]["cmake"]["define"]
    released = define["CMAKE_CUDA_ARCHITECTURES"]["default"].split(";")
    newest = check_kernels.ARCHITECTURES[-1]
    assert released == [*(f"{each}-real" for each in check_kernels.ARCHITECTURES), f"{newest}-virtual"]


def configured(tmp_path, nvcc, *options):
    compiler = tmp_path / "nvcc"
    compiler.write_text(f"#!/bin/sh\necho '{nvcc}'\n")
    compiler.chmod(0o755)
    return subprocess.run([CMAKE, "-S", ROOT, "-B", tmp_path / "build", "-DPACELINE_PYTHON=OFF", f"-DCMAKE_CUDA_COMPILER={compiler}", *options],
                          capture_output=True, text=True, timeout=120)


@pytest.mark.skipif(CMAKE is None, reason="cmake is not here")
@pytest.mark.parametrize("nvcc, found", [("Cuda compilation tools, release 12.9, V12.9.86", "12.9"), ("another compiler", "")])
def test_without_cuda_13_auto_goes_on_and_on_says_what_is_missing(tmp_path, nvcc, found):
    lacks = f"nvcc 13.0 or newer (found: {tmp_path}/nvcc {found})"
    auto = configured(tmp_path, nvcc)
    assert auto.returncode == 0, auto.stderr
    assert f"CUDA plugin: not built, it lacks {lacks}" in auto.stdout
    on = configured(tmp_path, nvcc, "-DPACELINE_CUDA=ON")
    assert on.returncode != 0 and f"PACELINE_CUDA=ON lacks {lacks}" in " ".join(on.stderr.split())
    other = configured(tmp_path, nvcc, "-DPACELINE_CUDA=on")
    assert "PACELINE_CUDA must be AUTO, ON or OFF, got on" in other.stderr


def test_one_wheel_of_each_distribution(tmp_path):
    def wheels(*names):
        for path in tmp_path.iterdir():
            path.unlink()
        for name in names:
            (tmp_path / name).touch()
        return check_wheels.one_of_each(tmp_path)

    core, cuda = "paceline-0.1.0-cp312-cp312-linux_x86_64.whl", "paceline_cuda13-0.1.0-py3-none-linux_x86_64.whl"
    assert wheels(core, cuda) == {"paceline": tmp_path / core, "paceline_cuda13": tmp_path / cuda}
    with pytest.raises(SystemExit, match="expected one wheel of paceline, found paceline-0.1.0-cp311.*, paceline-0.1.0-cp312"):
        wheels(core, core.replace("cp312", "cp311"), cuda)
    with pytest.raises(SystemExit, match="expected one wheel of paceline_cuda13, found none"):
        wheels(core)
    with pytest.raises(SystemExit, match="expected no wheel of other"):
        wheels(core, cuda, core.replace("paceline", "other"))


def ptxas(kernel, registers, local, architectures=check_kernels.ARCHITECTURES):
    return "".join(f"""ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'void paceline::cuda::(anonymous namespace)::{kernel}(paceline::Rows, int)' for 'sm_{each}'
ptxas info    : Function properties for {kernel}
    {local} bytes stack frame, {local} bytes spill stores, {local} bytes spill loads
ptxas info    : Used {registers} registers, used 1 barriers, 440 bytes cmem[0]
""" for each in architectures)


def test_every_kernel_is_looked_at_on_every_architecture():
    kernels = {family: check_kernels.usage_in(ptxas("of_kernel<paceline::cuda::Gate, 2>", 40, 0)) for family in check_kernels.FAMILIES}
    limits = check_kernels.recorded(check_kernels.page(kernels))
    assert limits == {("of_kernel<Gate, 2>", each): 40 for each in check_kernels.ARCHITECTURES}
    assert check_kernels.absent(kernels) == check_kernels.too_much(kernels, limits) == []
    more = kernels | {"rows": check_kernels.usage_in(ptxas("of_kernel<paceline::cuda::Gate, 2>", 41, 4, ["120"]))}
    assert check_kernels.too_much(more, limits) == ["rows: of_kernel<Gate, 2> on sm_120 keeps 4 bytes in local memory",
                                                    "rows: of_kernel<Gate, 2> on sm_120 takes 41 registers, 40 were recorded"]
    assert check_kernels.absent(more) == [f"rows: of_kernel<Gate, 2>: expected for {', '.join(check_kernels.ARCHITECTURES)}, found for 120"]
    assert check_kernels.absent(kernels | {"rows": {}}) == ["rows: expected kernels in rows.cu, found none"]
    assert len(check_kernels.absent({})) == len(check_kernels.FAMILIES)
    assert check_kernels.absent(kernels | {"more": kernels["rows"]}) == ["more: more.cu is not among FAMILIES"]


def test_the_page_and_the_sources_have_the_same_kernels():
    recorded = check_kernels.recorded(check_kernels.PAGE.read_text())
    assert {architecture for _, architecture in recorded} == set(check_kernels.ARCHITECTURES)
    assert sorted(path.stem for path in check_kernels.KERNELS.glob("*.cu")) == check_kernels.FAMILIES


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not here")
def test_other_flags_are_another_build():
    source = check_kernels.KERNELS / "rows.cu"
    first = check_kernels.digest_of(source, check_kernels.FLAGS)
    assert first == check_kernels.digest_of(source, list(check_kernels.FLAGS))
    assert first != check_kernels.digest_of(source, [*check_kernels.FLAGS, "-lineinfo"])
    assert first != check_kernels.digest_of(source.with_name("cycle.cu"), check_kernels.FLAGS)
