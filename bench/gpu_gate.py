"""Everything that only a machine with a GPU can show, in one command.

    python bench/gpu_gate.py --part correctness        builds, kernel tests on the device, sanitizers, parity, row invariance
    python bench/gpu_gate.py --part kernels            bandwidth, and every kernel against it and against cuBLASLt
    python bench/gpu_gate.py --part cycle              a planted pair of 8B and 1B geometry: passes, cycles, tokens per second
    python bench/gpu_gate.py --part peers              the same checkpoints in transformers and in a loop of CUDA graphs in torch
    python bench/gpu_gate.py --part all --stub         all of them on any machine, tiny, over stubs of driver, runtime and cuBLAS

No network. A part ends within --minutes; each cell is kept in OUT/PART.cells.jsonl when it finishes, the report is OUT/PART.md and
OUT/PART.json. What a machine refuses or lacks is "not run" with the reason, never passed. Exit status 1 if a cell failed, 2 if a part
has none that ran.
"""

import argparse
import pathlib
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import options as option  # noqa: E402
from gate import correctness, cycle, kernels, machine, peers  # noqa: E402
from gate.cells import Gate  # noqa: E402

PARTS = {"correctness": correctness.run, "kernels": kernels.run, "cycle": cycle.run, "peers": peers.run}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=[*PARTS, "all"], required=True)
    parser.add_argument("--out", type=pathlib.Path, default=HERE.parent / "build/gate",
                        help="where cells and reports go (default build/gate)")
    parser.add_argument("--minutes", type=option.in_range(float, 0.1, 1000), default=8.0, help="that a part may take (default 8)")
    parser.add_argument("--scratch", type=pathlib.Path, default=pathlib.Path(tempfile.gettempdir()) / "planted-pairs",
                        help="where planted pairs are written and kept, 25 GB (default planted-pairs in the temporary folder)")
    parser.add_argument("--stub", action="store_true", help="no GPU: tiny shapes over the stub that make test builds")
    options = parser.parse_args()
    statuses = []
    for part in PARTS if options.part == "all" else [options.part]:
        gate = Gate(part, options.out, options.minutes, stub=options.stub, facts=machine.facts(options.stub))
        print(f"==== {part}", flush=True)
        built = machine.build(gate)
        if built:
            PARTS[part](gate, built, options.scratch)
        statuses.append(gate.finish())
        print(f"==== {part}: {gate.out / part}.md", flush=True)
    sys.exit(1 if 1 in statuses else max(statuses))


if __name__ == "__main__":
    main()
