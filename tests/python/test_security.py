"""What a model directory may do (nothing but be read), what errors say, what requests see of each other, how the library is built: rows
SE1 to SE4. SE1 is the fuzzers' (test_fuzz.py); freed KV is poisoned and tagged in invariance_test, limits_test and test_cache_machine.py."""

import json
import os
import pathlib
import pickle
import re
import shutil
import subprocess
import sys
import zipfile

import hardening
import numpy as np
import paceline
import pytest
from paceline import Engine, _core, demo_pair

ROOT = pathlib.Path(__file__).resolve().parents[2]

# ---------------------------------------------------------------------------------------------------- SE2: code in data
WATCHED = """
import os, sys
import paceline, numpy, tokenizers, safetensors  # what an import of the package brings, and what its engine needs
paceline.Engine(*paceline.demo_pair(), warmup=False).close()
chats = len(sys.argv) > 2
if chats:
    import jinja2, jinja2.ext, jinja2.sandbox, paceline.template_sandbox
events = []
NEVER = ("subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.spawn", "socket.", "ctypes.", "pickle.", "marshal.", "urllib.", "ftplib.", "http.", "smtplib.", "code.__new__", "import",
         "exec", "compile", "os.remove", "os.rename", "os.mkdir", "os.link", "os.symlink", "os.chmod", "shutil.")
def watch(event, args):
    if event == "open" or event.startswith(NEVER):
        events.append((event, str(args[0])[:200]))
sys.addaudithook(watch)
with paceline.Engine(sys.argv[1], sys.argv[1], device="cpu", num_speculative_tokens=2) as engine:
    engine.generate("import os", max_tokens=8, temperature=1.0, stop="nothing")
    list(engine.stream([1, 2, 3], max_tokens=4))
    if chats:
        engine.generate([{"role": "user", "content": "x"}], max_tokens=4)
seen = list(events)
for event in seen:
    print(*event)
assert "torch" not in sys.modules and "transformers" not in sys.modules
assert chats or "jinja2" not in sys.modules
"""


class Payload:
    def __reduce__(self):
        return os.system, ("touch executed",)


@pytest.fixture
def trapped(tmp_path):
    """A model directory full of what other loaders would run: it leaves `executed` behind."""
    target = shutil.copytree(demo_pair()[1], tmp_path / "model")
    code = "import pathlib; pathlib.Path('executed').touch()\n"
    for name in ("modeling_custom.py", "configuration_custom.py", "tokenization_custom.py", "conftest.py", "sitecustomize.py", "__init__.py", "config.py", "json.py"):
        (target / name).write_text(code)
    for name in ("pytorch_model.bin", "model.pt", "scaler.pkl"):
        (target / name).write_bytes(pickle.dumps(Payload()))
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | {
        "auto_map": {"AutoConfig": "configuration_custom.C", "AutoModelForCausalLM": "modeling_custom.M"}, "trust_remote_code": True, "custom_pipelines": {"x": {"impl": "modeling_custom.P"}}}))
    (target / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": ["tokenization_custom.T", None]}, "chat_template": "{{ messages[0].content }}"}))
    return target


@pytest.mark.parametrize("chats", [False, True])
def test_se2_a_model_directory_is_read_and_nothing_else(trapped, tmp_path, chats):
    done = subprocess.run([sys.executable, "-c", WATCHED, trapped, *(["chat"] if chats else [])], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "executed").exists() and not (trapped / "executed").exists()
    events = [tuple(line.split(" ", 1)) for line in done.stdout.splitlines()]
    allowed = re.compile(rf"{re.escape(str(trapped))}/(config|generation_config|tokenizer|tokenizer_config|special_tokens_map)\.json$|{re.escape(str(trapped))}/(model\.safetensors|chat_template\.jinja)$"
                         r"|/proc/meminfo$|/proc/self/|/sys/fs/cgroup/|\d+$")
    opened = [name for event, name in events if event == "open"]
    assert any(name.endswith("config.json") for name in opened), "the hook sees what is opened"
    assert [name for name in opened if not allowed.match(name)] == []
    others = [event for event in events if event[0] != "open"]
    if chats:  # a template is compiled, into code that only its own text and the sandbox have made
        assert {event for event, _ in others} <= {"compile", "exec"} and 1 <= len(others) <= 4
    else:
        assert others == []


def test_se2_the_hook_sees_what_others_would_do(tmp_path):
    """Test of the test: the same watch over a loader that runs pickles."""
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(Payload()))
    spoiled = WATCHED.replace("with paceline.Engine(sys.argv[1]", "import pickle; pickle.load(open('x.pkl', 'rb'))\nwith paceline.Engine(sys.argv[1]")
    done = subprocess.run([sys.executable, "-c", spoiled, demo_pair()[1]], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert (tmp_path / "executed").exists()
    assert any(line.startswith("os.system") for line in done.stdout.splitlines()) and any(line.startswith("pickle.find_class") for line in done.stdout.splitlines())


CALLS = ("execve", "posix_spawn", "system", "popen", "fork", "socket", "dlopen")


def calls_of(script, tmp_path, model):
    """What the libraries below Python were asked for, which no hook of Python sees: (call, argument), from `begin` on."""
    log = tmp_path / "calls"
    layer = {"LD_PRELOAD": str(ROOT / "build/test/libwatched_calls.so"), "PACELINE_WATCHED_CALLS": str(log)}
    done = subprocess.run([sys.executable, "-c", script, model], capture_output=True, text=True, timeout=120, cwd=tmp_path, env=os.environ | layer)
    assert done.returncode == 0, done.stderr
    lines = log.read_text().splitlines()
    return [tuple(line.split(" ", 1)) for line in lines[lines.index("open /begin") + 1:]]


CALLING = """
import os, sys
import paceline
paceline.Engine(*paceline.demo_pair(), warmup=False).close()
try: os.open("/begin", os.O_RDONLY)
except OSError: pass
with paceline.Engine(sys.argv[1], sys.argv[1], device="cpu", num_speculative_tokens=2) as engine:
    engine.generate("import os", max_tokens=8, temperature=1.0, stop="nothing")
"""


def test_se2_nothing_is_run_or_reached_below_python_either(trapped, tmp_path):
    calls = calls_of(CALLING, tmp_path, trapped)
    assert [call for call in calls if call[0] in CALLS] == []
    model = re.compile(rf"{re.escape(str(trapped))}/(config|generation_config|tokenizer|tokenizer_config|special_tokens_map)\.json$|{re.escape(str(trapped))}/(model\.safetensors|chat_template\.jinja)$")
    others = re.compile(r"/proc/|/sys/|/dev/urandom$")  # what the machine is
    opened = [name for call, name in calls if call == "open"]
    assert any(model.match(name) for name in opened), "the layer sees what is opened"
    assert [name for name in opened if not model.match(name) and not others.match(name)] == []


@pytest.mark.parametrize("code, call", [
    ("os.system('true')", "system"), ("os.posix_spawn('/bin/true', ['true'], {})", "posix_spawn"), ("import socket; socket.socket()", "socket"),
    ("import ctypes; ctypes.CDLL('libm.so.6')", "dlopen"), ("os.fork() or os._exit(0)", "fork"), ("open('secret', 'w')", "open")])
def test_se2_the_layer_sees_what_others_would_do(tmp_path, code, call):
    """Test of the test."""
    assert call in [name for name, _ in calls_of(CALLING + code, tmp_path, demo_pair()[1])]


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "model.ckpt", "model.gguf", "model.msgpack", "model.h5"])
def test_se2_other_formats_are_refused_by_name(tmp_path, name):
    target = shutil.copytree(demo_pair()[1], tmp_path / "model", ignore=shutil.ignore_patterns("model.safetensors"))
    (target / name).write_bytes(pickle.dumps(Payload()))
    with pytest.raises(paceline.ModelFileError, match=f"found {re.escape(name)}; no other format is read"):
        Engine(target)


def archive(path):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps(Payload()))


@pytest.mark.parametrize("magic, write", [
    ("GGUF", lambda path: path.write_bytes(b"GGUF\3\0\0\0" + b"\0" * 4000)), ("a zip archive, as PyTorch writes", archive),
    ("a pickle", lambda path: path.write_bytes(pickle.dumps(Payload(), protocol=4))), ("HDF5", lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n" + b"\0" * 4000))])
def test_se2_other_formats_are_refused_by_their_first_bytes(tmp_path, magic, write):
    target = shutil.copytree(demo_pair()[1], tmp_path / "model")
    write(target / "model.safetensors")
    with pytest.raises(paceline.ModelFileError, match=f"this is {magic}"):
        Engine(target)


# ---------------------------------------------------------------------------------------------------- SE3: what leaks
SECRET = "Geheimnis Z3bra-71"


def test_se3_errors_carry_nothing_of_a_prompt(tmp_path, capfd):
    """Nor does anything get printed or logged. An id that does not exist is named, which is one number and the caller's mistake."""
    target = shutil.copytree(demo_pair()[0], tmp_path / "target")
    (target / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages[0].content.nothing.more }}"}))
    with Engine(target, kv_cache_tokens=64, max_model_len=128) as engine:
        ids = engine.generate(SECRET, max_tokens=1).prompt_token_ids
        said = []
        for prompt, options in ((SECRET * 30, {}), (SECRET * 5, {"max_tokens": 100}), (SECRET + "\ud800", {}), ([SECRET], {}), ([*ids, 2**20], {}), ([*ids, -1], {}),
                                (SECRET, {"temperature": -1.0}), (SECRET, {"stop": ""}), ([{"role": "user", "content": SECRET}], {}), ({"content": SECRET}, {}),
                                ([{"content": SECRET, "x": object()}], {}), ([{"content": SECRET}, 5], {})):
            with pytest.raises((ValueError, RuntimeError)) as error:
                engine.generate(prompt, **options)
            said.append(str(error.value))
    for text in said:
        assert not any(part in text for part in ("Geheimnis", "Z3bra", "71")) and str(list(ids))[1:-1] not in text, text
    assert capfd.readouterr() == ("", "")


def test_se3_a_request_sees_nothing_of_the_one_before():
    """Same slot, same pages: its bits are those of an engine that has never seen the other."""
    def answer(engine):
        result = engine.generate("x = [", max_tokens=60, temperature=1.0, seed=3, logprobs=2)
        return result.token_ids, result.logprobs

    with Engine(*demo_pair(), kv_cache_tokens=256, warmup=False) as engine:
        want = answer(engine)
    for first in (SECRET * 6, [2047] * 150):
        with Engine(*demo_pair(), kv_cache_tokens=256, warmup=False) as engine:
            engine.generate(first, max_tokens=50, ignore_eos=True)
            assert answer(engine) == want
            rows = engine.verify([5], [7, 8]).logprobs
            engine.generate(first, max_tokens=9)
            assert np.array_equal(engine.verify([5], [7, 8]).logprobs, rows)


# ---------------------------------------------------------------------------------------------------- SE4: how it is built
def test_se4_the_extension_is_hardened():
    assert hardening.lacks(pathlib.Path(_core.__file__)) == []


def test_se4_what_is_not_hardened_is_named(tmp_path):
    """Test of the test: the same source, built as compilers do by themselves."""
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("no C++ compiler is here")
    (tmp_path / "x.cc").write_text('#include <cstring>\nint PyInit__core(const char* s) { char b[64]; strcpy(b, s); return b[3]; }\nint other() { return 1; }\nextern "C" int shown() { return 2; }\n')
    subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-fno-stack-protector", "-Wl,-z,execstack,-z,lazy,-z,norelro", "-o", tmp_path / "x.so", tmp_path / "x.cc"], check=True)
    wrong = "; ".join(hardening.lacks(tmp_path / "x.so"))
    for part in ("stack may be executed", "RELRO", "bound while it runs", "stack protector", "it shows", "no entry point"):
        assert part in wrong, wrong


def test_se4_dependencies_are_bounded_and_known():
    import tomllib
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {re.split(r"[<>=]", each)[0] for each in project["dependencies"]} == {"numpy", "safetensors", "tokenizers", "jinja2"}
    assert all(re.fullmatch(r"\w+>=[\d.]+", each) for each in project["dependencies"])
    assert all("==" in each for name in ("oracle", "cuda") for each in project["optional-dependencies"][name])


def test_se4_a_crash_by_a_file_is_a_vulnerability():
    text = (ROOT / "SECURITY.md").read_text()
    assert "vulnerability" in text and "SECURITY.md" in (ROOT / "README.md").read_text()
