"""How fast the kernels are: bench/cuda_kernels.cu, cell by cell, and one look by ncu at whether its own counters agree."""

import csv
import io
import shutil

from gate.cells import Failed, NotRun

FAR_FROM_BANDWIDTH = 0.75  # a product of few rows below this share of the read bandwidth wants work


def targets(name, data):
    if "of_read" in data and ", 1 rows" in name and "attention" not in name:
        yield "share of the read bandwidth", data["of_read"], f">= {FAR_FROM_BANDWIDTH}", data["of_read"] >= FAR_FROM_BANDWIDTH
    if "over_one_row" in data and ", 16 rows" in name:
        yield "time over that of one row", data["over_one_row"], "<= 1.05", data["over_one_row"] <= 1.05
    if name.startswith("a cycle's own kernels") and name.endswith("greedy"):
        yield "microseconds of a cycle beyond its passes", data["microseconds"], "<= 30", data["microseconds"] <= 30


def counters(gate, built):
    """Bytes that the read kernel moved by the device's own count."""
    if gate.stub:
        raise NotRun("stub")
    ncu = shutil.which("ncu")
    if ncu is None:
        raise NotRun("ncu is not here")
    metrics = ["dram__bytes_read.sum", "gpu__time_duration.sum"]
    looking = [ncu, "--csv", "--clock-control", "none", "--kernel-name", "regex:read_kernel", "--launch-count", "3", "--metrics",
               ",".join(metrics)]
    done = gate.run([*looking, built.bench, "--parts", "bandwidth", "--repetitions", "3"], limit=180, environment=built.environment)
    rows = [row for row in csv.DictReader(io.StringIO(done.stdout[done.stdout.find('"ID"'):])) if row.get("Metric Name") in metrics]
    if not rows:
        raise NotRun(f"ncu read no counters: {' / '.join(done.stdout.splitlines()[-4:])}")
    if done.returncode:
        raise Failed(f"status {done.returncode}: {done.stdout[-400:]}")
    return {f"{row['Metric Name']} ({row.get('Metric Unit', '')})": row["Metric Value"] for row in rows}


def run(gate, built, scratch):
    if not built.bench.exists():
        gate.record("cuda_kernels", "failed", reason=f"{built.bench} is missing")
        return
    tiny = ["--tiny", "--repetitions", "2"] if gate.stub else []
    for part in ("bandwidth", "products", "attention", "cycle"):
        gate.stream(f"cuda_kernels {part}", [built.bench, "--parts", part, *tiny], limit=240, environment=built.environment,
                    targets=lambda name, data: () if gate.stub else list(targets(name, data)))
    gate.cell("ncu, the read kernel", lambda: counters(gate, built), status="measured")
