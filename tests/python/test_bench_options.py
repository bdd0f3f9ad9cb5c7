"""The benches' command lines: what is wrong is said in one line, before anything is written or measured, and nothing is ignored."""

import dataclasses
import json

import chart
import decode
import drafters
import load
import numpy as np
import paceline
import peers
import planted_pair
import prediction
import pytest


@pytest.mark.parametrize("program, arguments, said", [
    (decode, ["demo", "--context", "64"], "--context is of planted pairs and directories; demo has prompts of its own"),
    (decode, ["demo", "--alpha", "0.5"], "--alpha is of a planted pair, one of tiny, 1.1b; demo has its own"),
    (decode, ["no/such"], "argument pair: must be one of demo, tiny, 1.1b or a directory with target and draft, got no/such"),
    (decode, ["demo", "--tau", "3", "x"], "argument --tau: must be an int in [0, 64], got x"),
    (decode, ["demo", "--tau", "65"], "argument --tau: must be an int in [0, 64], got 65"),
    (decode, ["demo", "--tokens", "1"], "argument --tokens: must be an int in [2, 100000], got 1"),
    (decode, ["demo", "--tokens", "500"], "the prompt and --tokens need 533 positions, the target has 512"),
    (drafters, ["demo", "--tau", "0"], "argument --tau: must be an int in [1, 64], got 0"),
    (drafters, ["tiny"], "argument pair: must be one of demo or a directory with target and draft, got tiny"),
    (prediction, ["demo", "--alpha", "0.5"], "--alpha is of a planted pair, one of tiny, 1.1b; demo has its own"),
    (prediction, ["tiny", "--prompts", "1"], "argument --prompts: must be an int in [2, 1000], got 1"),
    (decode, ["demo", "--threads", "0"], "argument --threads: must be an int in [1, 1024], got 0"),
    (decode, ["tiny", "--alpha", "1.5"], "argument --alpha: must be a number in [0, 1], got 1.5"),
    (decode, ["tiny", "--alpha", "nan"], "argument --alpha: must be a number in [0, 1], got nan"),
    (peers, ["--only", "T(8)"], "--only: passes are shown beside 'T(1)', ask for it too"),
    (peers, ["--only", "tau 6"], "argument --only: invalid choice: 'tau 6'"),
    (peers, ["--save", "no/such/file"], "argument --save: must be a file in a directory that exists, got no/such/file"),
    (peers, ["--repetitions", "0"], "argument --repetitions: must be an int in [1, 10000], got 0"),
    (planted_pair, ["out", "--target", "layers=2"], "argument --target: must be layers=,hidden=,heads=,kv_heads=,ffn=[,head_dim=], got layers=2"),
    (planted_pair, ["out", "--vocab", "2"], "argument --vocab: must be an int in [100, 262144], got 2"),
    (chart, [], "the following arguments are required: MEDIANS.json, OUT.svg"),
    (chart, ["no/such.json", "out.svg"], "argument MEDIANS.json: must be a file of peers.py --save with plain and some tau answered, got no/such.json"),
])
def test_a_bad_option_gets_one_line(monkeypatch, capsys, tmp_path, program, arguments, said):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["bench", *arguments])
    with pytest.raises(SystemExit) as ended:
        program.main()
    out, err = capsys.readouterr()
    assert ended.value.code == 2 and said in err.splitlines()[-1] and out == "" and list(tmp_path.iterdir()) == []


def test_the_chart_has_a_bar_for_plain_and_one_for_the_best(monkeypatch, tmp_path):
    answers = {"plain": 0.1, "tau 2": 0.05, "tau 4": 0.04}
    run = {"date": "2026-11-25", "machine": "a machine", "threads": 2, "medians": {"int8": {"ours": {"int8": answers}}}}
    (tmp_path / "medians.json").write_text(json.dumps(run))
    monkeypatch.setattr("sys.argv", ["chart.py", str(tmp_path / "medians.json"), str(tmp_path / "out.svg")])
    chart.main()
    text = (tmp_path / "out.svg").read_text()
    assert "10  Paceline, plain" in text and "25  Paceline, speculative (tau 4)" in text


def test_a_chunk_is_what_passes_between_two_cycles_beyond_the_usual():
    """Two streams; cycles of 10 ms, 1 ms apart, and four chunks of 30 to 60 ms; one cycle's records are lost."""
    chunks_at = {6: 0.03, 8: 0.04, 9: 0.05, 12: 0.06}
    start, now = [], 0.0
    for number in range(1, 15):
        now += 0.001 + chunks_at.get(number, 0.0)
        start.append(now)
        now += 0.010
    kept = np.repeat([number for number in range(1, 15) if number != 3], 2)
    columns = {field.name: np.zeros(len(kept)) for field in dataclasses.fields(paceline.Trace)}
    columns |= {"cycle": kept, "start": np.array(start)[kept - 1], "draft_time": np.full(len(kept), 0.002),
                "verify_time": np.full(len(kept), 0.007), "sample_time": np.full(len(kept), 0.001)}
    trace = paceline.Trace(**columns)
    assert np.allclose(load.between(trace.where(trace.cycle <= 5), 0), 0.001) and len(load.between(trace.where(trace.cycle <= 5), 0)) == 2
    assert np.allclose(load.chunks(trace, 5, 4)[1:], [0.04, 0.05, 0.06])
    assert np.allclose(load.chunks(trace, 4, 4), [0.03, 0.04, 0.05, 0.06])
