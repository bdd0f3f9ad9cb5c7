"""Whole cycles: a planted pair in the geometries of Llama-3.1-8B and 3.2-1B (a small one first), at every tau, then the corners."""

import json
import pathlib
import shutil
import sys
import time

from gate.cells import NotRun

sys.path[:0] = [str(pathlib.Path(__file__).resolve().parents[1])]

import planted_pair  # noqa: E402

LLAMA = dict(vocab=128256, target=dict(layers=32, hidden=4096, heads=32, kv_heads=8, ffn=14336),
             draft=dict(layers=16, hidden=2048, heads=32, kv_heads=8, ffn=8192))
SMALL = dict(vocab=32000, target=dict(layers=8, hidden=2048, heads=16, kv_heads=4, ffn=5632),
             draft=dict(layers=2, hidden=512, heads=8, kv_heads=2, ffn=1408))
TINY = dict(vocab=300, target=dict(layers=1, hidden=32, heads=2, kv_heads=1, ffn=48),
            draft=dict(layers=1, hidden=16, heads=1, kv_heads=1, ffn=32))
ALPHAS = (0.8, 0.6, 0.9)


def parameters(shape, vocab):
    config = planted_pair.config_of(vocab, context=2, **shape)
    return sum(int(planted_pair.np.prod(each)) for _, each in planted_pair.tensor_shapes(config))


def written(gate, directory, geometry, alphas):
    """directory/target and directory/draft-ALPHA, written where they are missing; all in a cell."""
    def body():
        missing = [alpha for alpha in alphas if not (directory / f"draft-{alpha}/generation_config.json").exists()]
        bytes_wanted = 2 * len(missing) * parameters(geometry["draft"], geometry["vocab"])
        if not (directory / "target/generation_config.json").exists():
            bytes_wanted += 2 * parameters(geometry["target"], geometry["vocab"])
        directory.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(directory).free
        if free < bytes_wanted * 1.05:
            raise NotRun(f"{directory} needs {bytes_wanted / 1e9:.0f} GB, {free / 1e9:.0f} GB are free: --scratch names another place")
        planted_pair.write_family(directory, alphas=alphas, context=32768, **geometry)
        return dict(directory=str(directory), gigabytes=bytes_wanted / 1e9)

    return gate.cell(f"weights, {directory.name}", body, needs=60 if directory.name == "llama" else 0)


def case(label, draft, batch, context, taus, tokens, repetitions, **others):
    return dict(label=label, draft=str(draft) if draft else None, draft_dtype="bf16", batch=batch, context=context, taus=taus,
                tokens=tokens, repetitions=repetitions) | others


def llama_cases(directory):
    draft = {alpha: directory / f"draft-{alpha}" for alpha in ALPHAS}
    yield case("8B + 1B, alpha 0.8, batch 1, context 2048", draft[0.8], 1, 2048, [0, 1, 2, 3, 4, 5, 6, 7, 8], 256, 3)
    yield case("1B alone, batch 1, context 2048", None, 1, 2048, [0], 256, 3, target=str(draft[0.8]))
    yield case("8B + 1B, up to 16 rows, alpha 0.8, batch 1, context 2048", draft[0.8], 1, 2048, [0, 1, 3, 7, 15], 256, 2)
    yield case("8B + 1B int4, alpha 0.8, batch 1, context 2048", draft[0.8], 1, 2048, [0, 4, 6, 8], 256, 3, draft_dtype="int4")
    for alpha in (0.6, 0.9):
        yield case(f"8B + 1B, alpha {alpha}, batch 1, context 2048", draft[alpha], 1, 2048, [0, 2, 4, 8], 192, 2)
    for batch in (4, 8):
        yield case(f"8B + 1B, alpha 0.8, batch {batch}, context 2048", draft[0.8], batch, 2048, [0, 2, 4], 128, 2)
    yield case("8B + 1B, alpha 0.8, batch 1, context 16384", draft[0.8], 1, 16384, [0, 2, 4, 8], 128, 2)
    for alpha in (0.6, 0.9):
        yield case(f"8B + 1B, alpha {alpha}, batch 8, context 2048", draft[alpha], 8, 2048, [0, 4], 96, 1)
        yield case(f"8B + 1B, alpha {alpha}, batch 1, context 16384", draft[alpha], 1, 16384, [0, 4], 96, 1)
    for batch in (4, 8):
        yield case(f"8B + 1B, alpha 0.8, batch {batch}, context 16384", draft[0.8], batch, 16384, [0, 4], 64, 1)


def targets(name, data):
    """Of the issue's figures for an H200, those that a cell of the large pair answers."""
    def most(what, value, limit):
        return what, value, f"<= {limit}", value <= limit

    if name.startswith("8B + 1B, alpha 0.8, batch 1, context 2048"):
        if data["tau"] == 0:
            yield most("milliseconds of an 8B pass at 2k", data["target_pass_ms"], 3.95)
        yield most("microseconds of a cycle beyond its passes", data["beyond_passes_us"], 30.0)
        if data["tau"] == 4:
            yield "tokens/s at alpha 0.8 with a bf16 draft", data["tokens_per_second"], ">= 475", data["tokens_per_second"] >= 475
    if name.startswith("1B alone"):
        yield most("milliseconds of a 1B pass", data["target_pass_ms"], 0.76)
    if name.startswith("8B + 1B, up to 16 rows") and data["tau"] == 15:
        yield most("T(16)/T(1)", data["over_one_row"], 1.05)
    if name.startswith("8B + 1B int4") and data["tau"] == 8:
        yield "tokens/s at alpha 0.8 with an int4 draft", data["tokens_per_second"], ">= 700", data["tokens_per_second"] >= 700


def decode(gate, built, directory, cases, judge):
    job = dict(target=str(directory / "target"), cases=list(cases), device="cuda", until=time.time() + gate.left() - 20)
    gate.stream(f"cycles, {directory.name}", built.worker("cycle", json.dumps(job)), limit=1e9, environment=built.environment,
                targets=judge)


def run(gate, built, scratch):
    if gate.stub:
        directory = gate.out / "tiny"
        if written(gate, directory, TINY, [0.8]):
            decode(gate, built, directory, [
                case("tiny, alpha 0.8, batch 1, context 20", directory / "draft-0.8", 1, 20, [0, 2], 24, 1),
                case("tiny, alpha 0.8, batch 2, context 20", directory / "draft-0.8", 2, 20, [0, 1], 16, 1),
                case("tiny alone", None, 1, 20, [0], 16, 1, target=str(directory / "draft-0.8")),
                case("tiny, int4", directory / "draft-0.8", 1, 20, [0, 1], 16, 1, draft_dtype="int4")], lambda name, data: ())
        gate.cell("8B + 1B", lambda: stubbed())
        return
    if written(gate, scratch / "small", SMALL, [0.8]):
        small = scratch / "small"
        decode(gate, built, small, [case("small, alpha 0.8, batch 1, context 512", small / "draft-0.8", 1, 512, [0, 2, 4], 256, 3)],
               lambda name, data: ())
    if written(gate, scratch / "llama", LLAMA, ALPHAS):
        decode(gate, built, scratch / "llama", llama_cases(scratch / "llama"), lambda name, data: list(targets(name, data)))


def stubbed():
    raise NotRun("stub")
