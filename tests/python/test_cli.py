"""The command line as a user meets it: in processes of its own."""

import json
import os
import signal
import subprocess
import sys
import time

import paceline
import pytest
from paceline.cli import main

PROMPT = "def main("
TARGET = str(paceline.demo_pair()[0])


def run(*arguments, **options):
    return subprocess.run([sys.executable, "-m", "paceline", *arguments], capture_output=True, text=True, timeout=120, **options)


def test_generate_streams_the_text_and_says_how_fast():
    done = run("generate", PROMPT, "--max-tokens", "20")
    with paceline.Engine(*paceline.demo_pair()) as engine:
        assert done.stdout == PROMPT + engine.generate(PROMPT, max_tokens=20).text + "\n"
    *notes, figures = done.stderr.splitlines()
    assert done.returncode == 0 and "20 tokens" in figures and "tokens per cycle" in figures
    assert notes == ["note: device: cpu, since there is no NVIDIA driver (libcuda.so.1 is not found)"]


def test_notes_reach_both_kinds_of_reader(tmp_path, capsys):
    (tmp_path / "file").touch()
    command = ["generate", PROMPT, "--max-tokens", "4", "--device", "cpu", "--weights-cache", str(tmp_path / "file" / "cache")]
    assert main(command) == 0
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert len(notes) == 2 and all("cannot be written: Not a directory" in note for note in notes)  # the target's file and the draft's
    assert main([*command, "--json"]) == 0
    out, err = capsys.readouterr()
    assert [f"note: {note}" for note in json.loads(out)["notes"]] == notes and err == ""


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
    (["generate", PROMPT, "--target", "no/such"], "target must be a local directory in Hugging Face format, got no/such: no such directory"),
    (["generate", PROMPT, "--target", TARGET, "--draft", "no/such"], "draft must be a local directory"),
    (["generate", PROMPT, "--draft", "x"], "--draft needs --target"),
    (["generate", PROMPT, "--target", TARGET, "--num-speculative-tokens", "6"], "[Engine] num_speculative_tokens must be 0 without a draft, got 6"),
    (["generate", PROMPT, "--num-speculative-tokens", "65"], "[Engine] num_speculative_tokens must be in [0, 64], got 65"),
    (["generate", PROMPT, "--target", TARGET, "--draft-dtype", "int4"], 'draft_dtype must be "auto" without a draft'),
    (["generate", "a\udcff"], "prompt must be valid Unicode text, got a lone surrogate at index 1"),
    (["generate", PROMPT, "--device", "cuda"], "cannot run: there is no NVIDIA driver"), (["generate", ""], "prompt must have at least 1 token")])
def test_errors_are_one_line_on_stderr(arguments, said, capsys):
    assert main(arguments) == 1
    out, err = capsys.readouterr()
    assert said in err and err.count("\n") == 1 and out == ""


@pytest.mark.parametrize("as_argument", [True, False])
def test_a_byte_that_is_no_text(as_argument):
    command = [sys.executable, "-m", "paceline", "generate", b"ab\xff" if as_argument else b"-"]
    done = subprocess.run(command, input=b"ab\xff", capture_output=True, timeout=60, env=os.environ | {"PYTHONUTF8": "0", "LC_ALL": "C.UTF-8"})
    got = "a lone surrogate at index 2" if as_argument else "byte 0xff at index 2: invalid start byte"
    said = {f"paceline: [generate] prompt must be valid Unicode text, got {each}\n" for each in (got, "a lone surrogate at index 2")}
    assert done.returncode == 1 and done.stderr.decode() in said and done.stdout == b""


def test_help_shows_every_default(capsys):
    with pytest.raises(SystemExit):
        main(["generate", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for shown in ("--temperature X 0 takes the most probable token (default: 0.0)", "--top-p X in (0, 1]; 1 is off (default: 1.0)",
                  "0 is plain decoding (default: 3 with a draft, 7 with ngram)", "(default: the target's context)", "(default: coupled)"):
        assert shown in text


def test_a_wrong_command_line_gets_the_line_that_matters():
    done = run("generate")
    assert (done.returncode, done.stderr) == (2, "paceline generate: the following arguments are required: prompt\nsee paceline generate --help\n")
    done = run("generate", PROMPT, "--top-k", "x")
    assert (done.returncode, done.stderr) == (2, "paceline generate: argument --top-k: invalid int value: 'x'\nsee paceline generate --help\n")
    assert run("--version").stdout == f"paceline {paceline.__version__}\n"


def test_a_reader_that_leaves_is_no_error():
    """`paceline generate ... | head -1`"""
    process = subprocess.Popen([sys.executable, "-m", "paceline", "generate", PROMPT, "--ignore-eos"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.read(1)
    process.stdout.close()
    assert process.wait(60) == 0 and all(line.startswith(b"note: ") for line in process.stderr)
    process.stderr.close()


def test_ctrl_c_ends_it_quietly():
    def listen() -> None:  # whoever runs the tests in the background has them ignore it
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen([sys.executable, "-m", "paceline", "generate", "-"], stdin=subprocess.PIPE, stderr=subprocess.PIPE,
                          preexec_fn=listen) as process:
        time.sleep(3)  # it waits for its prompt
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(60) == 130 and process.stderr.read() == b""
        finally:
            process.kill()
