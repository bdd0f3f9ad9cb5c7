"""This engine beside llama.cpp, OpenVINO and transformers on the same planted pair: plain decoding, passes of M rows, speculation, prefill.

    python bench/peers.py                        all precisions; makes what it needs in build/peers
    python bench/peers.py --precision int8 --repetitions 3

Needs the network, once: llama.cpp comes as the source package of llama-cpp-python, compiled for this machine into an environment of its own
(ten minutes); OpenVINO, torch and transformers come as wheels, some gigabytes.
Every engine is a process that answers one question at a time (peer_workers/) and sleeps otherwise; questions go round in turns, so that
a disturbance of the machine meets all of them. Medians, and medians of the ratios of neighbouring answers, as Markdown. transformers
computes in bf16 only.
"""

import argparse
import datetime
import json
import os
import pathlib
import statistics
import subprocess
import sys
import venv

import numpy as np
from paceline.devices import processor

HERE = pathlib.Path(__file__).resolve().parent
WORKERS = HERE / "peer_workers"
sys.path.insert(0, str(HERE))

import options as option  # noqa: E402
from decode import DEFAULT_ALPHA, check_alpha, planted_directory  # noqa: E402
from planted_pair import PRESETS  # noqa: E402

# Packages of each environment. torchvision only comes along with optimum-intel, and breaks beside another build of torch.
PEERS = ["llama-cpp-python==0.3.36", "gguf", "numpy", "torch==2.13.0", "transformers==5.23.0"]
OPENVINO = ["openvino-genai", "openvino-tokenizers", "optimum-intel", "torch==2.13.0"]
LLAMA_CPP = {"bf16": "bf16", "int8": "q8_0", "int4": "q4_0"}  # this engine's format: theirs
OPENVINO_FORMATS = {"bf16": "fp16", "int8": "int8", "int4": "int4"}
ROWS = [1, 2, 4, 8, 16]
TAUS = [2, 3, 4, 5, 7]
BATCH = 4


def environment(directory, packages, unwanted=()):
    """The interpreter of an environment that has the packages."""
    python = directory / "bin/python"
    if not (directory / "installed").exists():
        venv.create(directory, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-binary", "llama-cpp-python", *packages], check=True,
                       env=os.environ | {"CMAKE_ARGS": "-DGGML_NATIVE=ON -DLLAMA_CURL=OFF"})
        for package in unwanted:
            subprocess.run([python, "-m", "pip", "uninstall", "--quiet", "--yes", package], check=True)
        (directory / "installed").touch()
    return python


def quietly(*command):
    done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(done.args)}:\n{done.stdout[-3000:]}")


def exported(python, checkpoint, weight_format):
    """A directory for openvino-genai, made from the checkpoint where it is missing."""
    out = checkpoint.parent / "openvino" / f"{checkpoint.name}.{weight_format}"
    if not (out / "done").exists():
        groups = ["--group-size", "64", "--ratio", "1.0", "--sym"] if weight_format == "int4" else []
        quietly(python.parent / "optimum-cli", "export", "openvino", "--model", checkpoint, "--task", "text-generation-with-past",
                "--weight-format", weight_format, *groups, out)
        (out / "done").touch()
    return out


class Worker:
    """An engine in a process of its own. Its first line says what can be asked of it."""

    def __init__(self, *command):
        self.process = subprocess.Popen([str(part) for part in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        ready, *self.questions = self.process.stdout.readline().split() or ["ended"]
        if ready != "ready":
            raise SystemExit(f"{self.process.args} did not start")

    def ask(self, **question):
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"{self.process.args} ended while it was asked {question['do']}")
        return json.loads(answer)

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def questions(tokens, prompt, long_prompt):
    """name: question."""
    asked = {"plain": dict(do="plain", prompt=prompt, tokens=tokens), "prefill": dict(do="prefill", prompt=long_prompt)}
    asked |= {f"T({m})": {"do": "pass", "prompt": prompt, "rows": m} for m in ROWS}
    asked["batch"] = dict(do="batch", prompts=[[*prompt[:-1], last] for last in range(100, 100 + BATCH)], tokens=tokens)
    return asked | {f"tau {t}": dict(do="speculative", prompt=prompt, tokens=tokens, tau=t) for t in TAUS}


def measure(engines, tokens, repetitions, only):
    """{(engine, worker, question): seconds of every repetition}; says so where a draft changes somebody's text."""
    prompt, long_prompt = ([int(i) for i in np.random.RandomState(n).randint(3, 500, n)] for n in (64, 128))
    asked = questions(tokens, prompt, long_prompt)
    wanted = only or list(asked)
    workers = [(engine, who, worker) for engine, some in engines.items() for who, worker in some.items()]
    for _, who, worker in workers:
        for name in ("tau 2",) if who.startswith("draft ") else ("plain", "tau 2"):
            worker.ask(**asked[name])
    seconds, texts = {}, {}
    for _ in range(repetitions):
        for name in wanted:
            question = asked[name]
            for engine, who, worker in workers:
                if question["do"] not in worker.questions or (who.startswith("draft ") and question["do"] != "speculative"):
                    continue  # only the draft differs
                answer = worker.ask(**question)
                seconds.setdefault((engine, who, name), []).append(answer["seconds"])
                if "tokens" in answer and texts.setdefault((engine, who), answer["tokens"]) != answer["tokens"]:
                    print(f"* {engine} {who}, {name}: its text is not that of its plain decoding")
    return seconds


def report(precision, peer, seconds):
    """One table: this engine against a peer."""
    mine = {(who, name): value for (engine, who, name), value in seconds.items() if engine == "ours"}
    theirs = {(who, name): value for (engine, who, name), value in seconds.items() if engine == peer}

    def runs(results, name):
        """Of the first worker that was asked: the one that drafts in its target's precision."""
        return next((values for (_, question), values in results.items() if question == name), None)

    def own(results, name):
        return statistics.median(runs(results, name))

    def ratio(theirs, ours):
        return statistics.median(b / a for a, b in zip(ours, theirs, strict=True))

    def best(results):
        return min((statistics.median(values), who, name) for (who, name), values in results.items() if name == "plain" or name.startswith("tau"))

    def line(label, name, shown):
        if runs(theirs, name):
            print(f"| {label} | {shown(mine, name)} | {shown(theirs, name)} | {ratio(runs(theirs, name), runs(mine, name)):.2f} |")

    print(f"\n### {precision} against {peer}\n\n| | this engine | {peer} | ratio |\n| --- | --- | --- | --- |")
    line("plain, tokens/s", "plain", lambda r, name: f"{1 / own(r, name):.1f}")
    for m in ROWS:
        line(f"pass over {m} rows, ms (over one)", f"T({m})", lambda r, name: f"{1e3 * own(r, name):.1f} ({own(r, name) / own(r, 'T(1)'):.2f})")
    line("prefill of 128, tokens/s", "prefill", lambda r, name: f"{128 / own(r, name):.0f}")
    line(f"plain, {BATCH} sequences together, tokens/s", "batch", lambda r, name: f"{1 / own(r, name):.1f}")
    taus = [tau for tau in TAUS if runs(mine, f"tau {tau}")]
    if not taus:
        return
    for label, results in (("this engine", mine), (peer, theirs)):
        for who in dict.fromkeys(who for who, _ in results):
            speeds = ", ".join(f"{1 / statistics.median(results[who, f'tau {tau}']):.1f}" for tau in taus)
            print(f"| {label}, {who}: tau {', '.join(map(str, taus))} | {speeds if results is mine else ''} | {speeds if results is theirs else ''} | |")
    (a, *my_best), (b, *their_best) = best(mine), best(theirs)
    print(f"| best, tokens/s | {1 / a:.1f} ({', '.join(my_best)}) | {1 / b:.1f} ({', '.join(their_best)}) "
          f"| {ratio(theirs[tuple(their_best)], mine[tuple(my_best)]):.2f} |")
    if runs(theirs, "plain"):
        print(f"| best over own plain | {ratio(runs(mine, 'plain'), mine[tuple(my_best)]):.2f} "
              f"| {ratio(runs(theirs, 'plain'), theirs[tuple(their_best)]):.2f} | |", flush=True)


def started(precision, pair, pythons, threads):
    """{engine: {name: worker}}; the first worker of an engine drafts in the precision of its target."""
    most = max(*TAUS, *ROWS)
    other = "int8" if precision == "int4" else "int4"
    drafts = {precision: precision, f"draft {other}": other}
    engines = {"ours": {name: Worker(sys.executable, WORKERS / "paceline_worker.py", pair / "target", pair / "draft", threads, precision, draft, most)
                        for name, draft in drafts.items()}}
    if "llama.cpp" in pythons:
        engines["llama.cpp"] = {name: Worker(pythons["llama.cpp"], WORKERS / "llama_cpp_worker.py", pair / f"gguf/target.{LLAMA_CPP[precision]}.gguf",
                                             pair / f"gguf/draft.{LLAMA_CPP[draft]}.gguf", threads) for name, draft in drafts.items()}
    if "OpenVINO" in pythons:
        python = pythons["OpenVINO"]
        engines["OpenVINO"] = {name: Worker(python, WORKERS / "openvino_worker.py", exported(python, pair / "target", OPENVINO_FORMATS[precision]),
                                            exported(python, pair / "draft", OPENVINO_FORMATS[draft]), threads) for name, draft in drafts.items()}
    if "transformers" in pythons and precision == "bf16":
        engines["transformers"] = {"bf16": Worker(pythons["transformers"], WORKERS / "transformers_worker.py", pair / "target", pair / "draft", threads)}
    return engines


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--precision", choices=LLAMA_CPP, nargs="+", default=list(LLAMA_CPP))
    parser.add_argument("--peers", choices=["llama.cpp", "OpenVINO", "transformers"], nargs="+", default=["llama.cpp", "OpenVINO", "transformers"])
    parser.add_argument("--pair", type=option.pair(list(PRESETS)), default="1.1b",
                        help="a preset of planted_pair.py (tiny, 1.1b), or a directory with target and draft (default 1.1b)")
    parser.add_argument("--alpha", type=option.share, help=f"acceptance of a planted pair (default {DEFAULT_ALPHA})")
    parser.add_argument("--only", nargs="+", metavar="QUESTION", choices=list(questions(1, [0], [0])),
                        help="some of: plain prefill batch 'T(1)' ... 'T(16)' 'tau 2' ... 'tau 7' (default all)")
    parser.add_argument("--tokens", type=option.in_range(int, 2, 10_000), default=64, help="of a generation (default 64)")
    parser.add_argument("--repetitions", type=option.repetitions, default=5, help="of every question, interleaved (default 5)")
    parser.add_argument("--threads", type=option.threads, default=len(os.sched_getaffinity(0)), help="default: one per core")
    parser.add_argument("--environment", type=pathlib.Path, default=HERE.parent / "build/peers",
                        help="where the peers are installed (default build/peers)")
    parser.add_argument("--save", type=option.new_file, metavar="FILE", help="also write the medians there, for chart.py")
    options = parser.parse_args()
    if any(name.startswith("T(") for name in options.only or []) and "T(1)" not in options.only:
        parser.error("--only: passes are shown beside 'T(1)', ask for it too")

    pair, pythons = planted_directory(options.pair, check_alpha(parser, options.pair, options.alpha)), {}
    if {"llama.cpp", "transformers"} & set(options.peers):
        python = environment(options.environment / "llama.cpp", PEERS)
        pythons = {name: python for name in ("llama.cpp", "transformers") if name in options.peers}
        (pair / "gguf").mkdir(exist_ok=True)
        for model in ("target", "draft"):
            quietly(python, WORKERS / "to_gguf.py", pair / model, pair / "gguf" / model)
    if "OpenVINO" in options.peers:
        pythons["OpenVINO"] = environment(options.environment / "openvino", OPENVINO, unwanted=["torchvision"])
    print(f"`python bench/peers.py {' '.join(sys.argv[1:])}`, {datetime.date.today()}, {processor()}, {options.threads} threads, "
          f"{PEERS[0]}, medians of {options.repetitions} interleaved repetitions")
    saved = {}
    for precision in options.precision:
        engines = started(precision, pair, pythons, options.threads)
        seconds = measure(engines, options.tokens, options.repetitions, options.only)
        for peer in list(engines)[1:]:
            report(precision, peer, seconds)
        saved[precision] = {engine: {who: {q: statistics.median(seconds[e, w, q]) for e, w, q in seconds if (e, w) == (engine, who)} for who in workers}
                            for engine, workers in engines.items()}
        for some in engines.values():
            for worker in some.values():
                worker.close()
    if options.save:
        options.save.write_text(json.dumps({"date": str(datetime.date.today()), "machine": processor(), "threads": options.threads,
                                            "medians": saved}, indent=1))


if __name__ == "__main__":
    main()
