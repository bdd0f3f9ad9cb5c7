"""The command line as a user meets it: in processes of its own."""

import json
import os
import subprocess
import sys
import time

import paceline
import pytest
from paceline.cli import main

PROMPT = "def main("


def run(*arguments, **options):
    return subprocess.run([sys.executable, "-m", "paceline", *arguments], capture_output=True, text=True, timeout=120, **options)


def test_generate_streams_the_text_and_says_how_fast():
    done = run("generate", PROMPT, "--max-tokens", "20")
    with paceline.Engine(*paceline.demo_pair()) as engine:
        assert done.stdout == PROMPT + engine.generate(PROMPT, max_tokens=20).text + "\n"
    assert done.returncode == 0 and "20 tokens" in done.stderr and "tokens per cycle" in done.stderr


def test_json_is_one_object_with_everything():
    done = run("generate", "-", "--json", "--max-tokens", "12", "--temperature", "1", "--seed", "5", "--logprobs", "2", "--stop", "~~", input=PROMPT)
    answer = json.loads(done.stdout)
    with paceline.Engine(*paceline.demo_pair()) as engine:
        result = engine.generate(PROMPT, max_tokens=12, temperature=1.0, seed=5, logprobs=2)
    assert (answer["prompt"], answer["text"], answer["token_ids"], answer["seed"]) == (PROMPT, result.text, list(result.token_ids), 5)
    assert answer["logprobs"][3]["logprob"] == result.logprobs[3].logprob
    assert answer["stats"]["num_tokens"] == 12 and answer["finish_reason"] == "length"


def test_tau_and_a_target_alone(capsys):
    target, draft = map(str, paceline.demo_pair())
    answers = []
    for models in (["--target", target], ["--target", target, "--draft", draft, "--num-speculative-tokens", "6"], ["--num-speculative-tokens", "0"]):
        assert main(["generate", PROMPT, "--max-tokens", "16", "--json", *models]) == 0
        answers.append(json.loads(capsys.readouterr().out))
    assert answers[0]["token_ids"] == answers[1]["token_ids"] == answers[2]["token_ids"]
    assert [len(a["stats"]["drafted_per_position"]) for a in answers] == [0, 6, 0]


def test_the_demo_compares_both(capsys):
    assert main(["demo", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["identical"] is True and figures["mean_acceptance_length"] > 1.5
    assert figures["ratio"] == pytest.approx(figures["speculative_tokens_per_second"] / figures["plain_tokens_per_second"])
    assert main(["demo"]) == 0
    text = capsys.readouterr().out
    assert figures["text"] in text and "outputs identical       yes" in text


@pytest.mark.parametrize("arguments, said", [
    (["generate", PROMPT, "--top-p", "2"], "paceline: [generate] top_p must be in (0, 1], got 2"),
    (["generate", PROMPT, "--target", "no/such/dir"], "no/such/dir"), (["generate", PROMPT, "--draft", "x"], "--draft needs --target"),
    (["generate", PROMPT, "--device", "cuda"], "cannot run: there is no NVIDIA driver"), (["generate", ""], "prompt must have at least 1 token")])
def test_errors_are_one_line_on_stderr(arguments, said, capsys):
    assert main(arguments) == 1
    out, err = capsys.readouterr()
    assert said in err and err.count("\n") == 1 and out == ""


def test_a_wrong_command_line_shows_usage():
    done = run("generate")
    assert done.returncode == 2 and "usage: paceline generate" in done.stderr
    assert run("--version").stdout == f"paceline {paceline.__version__}\n"


def test_a_reader_that_leaves_is_no_error():
    """`paceline generate ... | head -1`"""
    process = subprocess.Popen([sys.executable, "-m", "paceline", "generate", PROMPT, "--ignore-eos"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.read(1)
    process.stdout.close()
    assert process.wait(60) == 0 and process.stderr.read() == b""
    process.stderr.close()


def test_ctrl_c_ends_it_quietly():
    process = subprocess.Popen([sys.executable, "-m", "paceline", "generate", "-"], stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    time.sleep(1.5)  # it waits for its prompt
    os.kill(process.pid, 2)
    assert process.wait(60) == 130 and process.stderr.read() == b""
    process.stdin.close()
    process.stderr.close()
