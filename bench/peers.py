"""This engine beside llama.cpp on the same planted pair: plain decoding, passes of M rows, speculation, prefill.

    python bench/peers.py                        all precisions; makes what it needs in build/peers
    python bench/peers.py --precision int8 --repetitions 3

llama.cpp comes as the source package of llama-cpp-python, compiled for this machine into an environment of its own (ten minutes,
once). Every engine is a process that answers one question at a time (peer_workers/) and sleeps otherwise; questions go round in
turns, so that a disturbance of the machine meets all of them. Medians and their ratios, as Markdown.
"""

import argparse
import datetime
import itertools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import venv

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from decode import machine_name, planted_directory  # noqa: E402

REQUIREMENTS = ["llama-cpp-python==0.3.36", "gguf", "numpy"]
LIKE = {"bf16": "bf16", "int8": "q8_0", "int4": "q4_0"}  # this engine's format: llama.cpp's
ROWS = [1, 2, 4, 8, 16]
TAUS = [2, 3, 4, 5, 7]


def peers_python(directory):
    """The interpreter of an environment that has the peers."""
    python = directory / "bin/python"
    if not (directory / "installed").exists():
        venv.create(directory, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-binary", "llama-cpp-python", *REQUIREMENTS], check=True,
                       env=os.environ | {"CMAKE_ARGS": "-DGGML_NATIVE=ON -DLLAMA_CURL=OFF"})
        (directory / "installed").touch()
    return python


class Worker:
    def __init__(self, *command):
        self.process = subprocess.Popen([str(part) for part in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout.readline() == "ready\n", command

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
    return asked | {f"tau {t}": dict(do="speculative", prompt=prompt, tokens=tokens, tau=t) for t in TAUS}


def measure(workers, options):
    """{(worker, question): median seconds}; checks that nobody's draft changes its text."""
    prompt, long_prompt = ([int(i) for i in np.random.RandomState(n).randint(3, 500, n)] for n in (64, 128))
    asked = questions(options.tokens, prompt, long_prompt)
    for worker in workers.values():
        worker.ask(do="plain", prompt=prompt, tokens=4)
    seconds, texts = {}, {}
    for _ in range(options.repetitions):
        for name, question in asked.items():
            for who, worker in workers.items():
                if who.startswith("draft ") and not name.startswith("tau"):
                    continue  # only the draft differs
                answer = worker.ask(**question)
                seconds.setdefault((who, name), []).append(answer["seconds"])
                if "tokens" in answer and texts.setdefault(who, answer["tokens"]) != answer["tokens"]:
                    print(f"* {who}, {name}: its text is not that of its plain decoding")
    return {key: statistics.median(values) for key, values in seconds.items()}


def report(precision, ours, theirs, seconds):
    """ours, theirs: the workers that share a target; the first decodes plainly."""
    def best(workers):
        return min((seconds[w, name], w, name) for w, name in seconds if w in workers and (name == "plain" or name.startswith("tau")))

    a, b = ours[0], theirs[0]
    print(f"\n### {precision} against {LIKE[precision].upper()}\n")
    print("| | this engine | llama.cpp | ratio |\n| --- | --- | --- | --- |")
    print(f"| plain, tokens/s | {1 / seconds[a, 'plain']:.1f} | {1 / seconds[b, 'plain']:.1f} | {seconds[b, 'plain'] / seconds[a, 'plain']:.2f} |")
    for m in ROWS:
        name = f"T({m})"
        print(f"| pass over {m} rows, ms (over one) | {1e3 * seconds[a, name]:.1f} ({seconds[a, name] / seconds[a, 'T(1)']:.2f}) "
              f"| {1e3 * seconds[b, name]:.1f} ({seconds[b, name] / seconds[b, 'T(1)']:.2f}) | {seconds[b, name] / seconds[a, name]:.2f} |")
    print(f"| prefill of 128, tokens/s | {128 / seconds[a, 'prefill']:.0f} | {128 / seconds[b, 'prefill']:.0f} "
          f"| {seconds[b, 'prefill'] / seconds[a, 'prefill']:.2f} |")
    for label, who in itertools.chain((("this engine", w) for w in ours), (("llama.cpp", w) for w in theirs)):
        taus = ", ".join(f"{1 / seconds[who, f'tau {t}']:.1f}" for t in TAUS)
        print(f"| {label}, {who}: tau {', '.join(map(str, TAUS))} | {taus if who in ours else ''} | {taus if who in theirs else ''} | |")
    (mine, my_worker, my_name), (other, their_worker, their_name) = best(ours), best(theirs)
    print(f"| best, tokens/s | {1 / mine:.1f} ({my_worker}, {my_name}) | {1 / other:.1f} ({their_worker}, {their_name}) | {other / mine:.2f} |")
    print(f"| best over own plain | {seconds[a, 'plain'] / mine:.2f} | {seconds[b, 'plain'] / other:.2f} | |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--precision", choices=LIKE, nargs="+", default=list(LIKE))
    parser.add_argument("--pair", default="1.1b", help="a preset of planted_pair.py, or a directory with target and draft")
    parser.add_argument("--alpha", type=float, default=0.8)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--environment", type=pathlib.Path, default=HERE.parent / "build/peers", help="where the peers are installed")
    parser.add_argument("--save", type=pathlib.Path, help="also write the medians there, for chart.py")
    options = parser.parse_args()

    pair, python = planted_directory(options.pair, options.alpha), peers_python(options.environment)
    gguf = pair / "gguf"
    gguf.mkdir(exist_ok=True)
    for model in ("target", "draft"):
        subprocess.run([python, HERE / "peer_workers/to_gguf.py", pair / model, gguf / model], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    print(f"`python bench/peers.py {' '.join(sys.argv[1:])}`, {datetime.date.today()}, {machine_name()}, {options.threads} threads, "
          f"{REQUIREMENTS[0]}, medians of {options.repetitions} interleaved repetitions")
    saved = {}
    for precision in options.precision:
        ours = {precision: [precision, precision], "draft int4": [precision, "int4"]} if precision != "int4" else {"int4": ["int4", "int4"]}
        like = LIKE[precision]
        other = "q8_0" if like == "q4_0" else "q4_0"
        theirs = {like.upper(): [like, like], f"draft {other.upper()}": [like, other]}
        workers = {name: Worker(sys.executable, HERE / "peer_workers/paceline_worker.py", pair / "target", pair / "draft", options.threads, *formats,
                                max(*TAUS, *ROWS)) for name, formats in ours.items()}
        workers |= {name: Worker(python, HERE / "peer_workers/llama_cpp_worker.py", gguf / f"target.{formats[0]}.gguf",
                                 gguf / f"draft.{formats[1]}.gguf", options.threads) for name, formats in theirs.items()}
        seconds = measure(workers, options)
        report(precision, list(ours), list(theirs), seconds)
        saved[precision] = {"ours": {w: {q: seconds[v, q] for v, q in seconds if v == w} for w in ours},
                            "llama.cpp": {w: {q: seconds[v, q] for v, q in seconds if v == w} for w in theirs}}
        for worker in workers.values():
            worker.close()
    if options.save:
        options.save.write_text(json.dumps({"date": str(datetime.date.today()), "machine": machine_name(), "threads": options.threads,
                                            "medians": saved}, indent=1))


if __name__ == "__main__":
    main()
