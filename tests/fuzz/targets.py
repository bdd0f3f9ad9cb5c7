"""A target per parser: how an input is given to it, what it may raise, and what must hold of what it accepts."""

import contextlib
import dataclasses
import json
import math
import pathlib
import tempfile
from collections.abc import Callable

import numpy as np
import safetensors
from paceline import _core, calibration, engine_config
from paceline.chat_template import ChatTemplate
from paceline.loading import checkpoint, config, rope, safetensors as headers, strict_json, weights_cache
from paceline.loading.fields import Fields
from paceline.template_budget import Limits
from paceline.template_sandbox import Refused, Sandbox
from paceline.tokenizer import Tokenizer

DATA = pathlib.Path(__file__).parent / "corpus"


class Finding(Exception):
    """An input was accepted that should not have been, or is understood otherwise than the reference understands it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    name: str
    run: Callable[[bytes, pathlib.Path], None]
    """(input, an empty directory). Raises Finding, or whatever the parser raises."""
    words: list[str]
    promised: tuple[type[Exception], ...] = (_core.ModelFileError,)

    def corpus(self) -> list[bytes]:
        return [path.read_bytes() for path in sorted((DATA / self.name).iterdir())]


def expect(holds: bool, what: str) -> None:
    if not holds:
        raise Finding(what)


def _strict_json(data: bytes, _: pathlib.Path) -> None:
    value = strict_json.parse_object(data, "here")
    keys = []
    reference = json.loads(data, object_pairs_hook=lambda pairs: (keys.append([key for key, _ in pairs]), dict(pairs))[1],
                           parse_constant=lambda name: (_ for _ in ()).throw(Finding(f"accepted {name}")))
    expect(repr(value) == repr(reference), "read otherwise than the standard library does")
    expect(all(len(set(names)) == len(names) for names in keys), "accepted a key twice")
    level, depth = [value], 0
    while level:
        level = [each for one in level for each in (one.values() if isinstance(one, dict) else one) if isinstance(each, (dict, list))]
        depth += 1
    expect(depth <= 8, f"accepted JSON {depth} deep")
    json.dumps(value, ensure_ascii=False).encode()  # text, every character of it


def _safetensors(data: bytes, directory: pathlib.Path) -> None:
    path = directory / "model.safetensors"
    path.write_bytes(data)
    tensors = headers.read_header(path)
    try:
        theirs = dict(safetensors.deserialize(data))
    except Exception as error:
        raise Finding(f"accepted what the library refuses: {error}") from error
    expect(tensors.keys() == theirs.keys(), "other names than the library's")
    for name, tensor in tensors.items():
        expect((tensor.dtype, list(tensor.shape)) == (theirs[name]["dtype"], list(theirs[name]["shape"])), f"{name}: another shape or dtype")
        expect(data[tensor.begin:tensor.begin + tensor.nbytes] == bytes(theirs[name]["data"]), f"{name}: other bytes")


SHARDS = {"one.safetensors": {"a": (0, 4), "b": (4, 8)}, "two.safetensors": {"c": (0, 4)}}


def _index(data: bytes, directory: pathlib.Path) -> None:
    model = directory / "model"
    model.mkdir()
    for shard, tensors in SHARDS.items():
        text = json.dumps({name: {"dtype": "F32", "shape": [1], "data_offsets": list(at)} for name, at in tensors.items()}).encode()
        for folder in (model, directory):  # and one level up, where an index must not lead
            (folder / shard).write_bytes(len(text).to_bytes(8, "little") + text + bytes(max(end for _, end in tensors.values())))
    (model / "model.safetensors.index.json").write_bytes(data)
    found = checkpoint._tensors(model)
    for name, tensor in found.items():
        expect(tensor.file.parent == model and tensor.file == tensor.file.resolve(), f"{name} from {tensor.file}")
        expect(name in SHARDS[tensor.file.name] and json.loads(data)["weight_map"].get(name) == tensor.file.name, f"{name} is not where the index says")
    expect(found.keys() == json.loads(data)["weight_map"].keys(), "other tensors than the index names")


def _config(data: bytes, _: pathlib.Path) -> None:
    _, got, window = config.config_of(strict_json.parse_object(data, "here"), "here")
    for name in ("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads", "head_dim", "max_position_embeddings"):
        expect(type(getattr(got, name)) is int and 1 <= getattr(got, name) < 2**31, name)
    expect(got.num_heads % got.num_kv_heads == 0 and got.head_dim % 2 == 0 and got.head_dim <= 256 and got.vocab_size <= 2**18, "sizes that do not fit")
    expect(0 < got.rms_norm_eps < math.inf and (window is None or 0 < window < got.max_position_embeddings), "eps or window")
    _frequencies(got.rope_frequencies, got.rope_scale, got.head_dim)
    _core.ModelConfig(**dataclasses.asdict(got))


def _frequencies(frequencies: tuple[float, ...], scale: float, head_dim: int) -> None:
    expect(len(frequencies) == head_dim // 2 and all(map(math.isfinite, (*frequencies, scale))) and scale > 0, "frequencies")


def _rope(data: bytes, _: pathlib.Path) -> None:
    values = strict_json.parse_object(data, "here")
    _frequencies(*rope.rope_of(Fields(values, "here"), 64, 4096), 64)
    for each in (values.get("rope_parameters"), values.get("rope_scaling")):
        kinds = [each[name] for name in ("type", "rope_type") if each.get(name) is not None] if isinstance(each, dict) else []
        expect(len(set(map(str, kinds))) < 2, f"accepted {kinds}")


def _generation_config(data: bytes, directory: pathlib.Path) -> None:
    (directory / "generation_config.json").write_bytes(data)
    ids = checkpoint._eos_token_ids(directory, {"eos_token_id": 2})
    expect(all(type(i) is int and i >= 0 for i in ids) and len(set(ids)) == len(ids), f"eos ids {ids!r:.100}")
    given = json.loads(data).get("eos_token_id")
    expect(ids == ((2,) if given is None else tuple(dict.fromkeys(given if isinstance(given, list) else [given]))), "other ids than the file's")


def packed_file() -> tuple[bytes, str, np.ndarray]:
    """(a small file of packed weights, its key, what is in it)."""
    packed = np.frombuffer(bytes(range(256)) * 24, np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "x.packed"
        weights_cache._write(path, "0" * 64, packed)
        return path.read_bytes(), "0" * 64, packed


_, KEY, PACKED = packed_file()


def _weights_cache(data: bytes, directory: pathlib.Path) -> None:
    path = directory / "x.packed"
    path.write_bytes(data)
    found, why = weights_cache._mapped(path, KEY)
    expect((found is None) == (why is not None), "neither weights nor a reason")
    expect(found is None or np.array_equal(found, PACKED), "other weights than were written")


SHORT, MOST_IDS = "def café(x): return 'x'\n", 5_000


def _tokenizer(data: bytes, directory: pathlib.Path) -> None:
    (directory / "tokenizer.json").write_bytes(data)
    words = Tokenizer.read(directory)
    ids = words.encode(SHORT)
    expect(len(ids) <= MOST_IDS, f"{len(ids)} ids of {len(SHORT)} letters")
    expect(words._inner.truncation is None and words._inner.padding is None, "prompts that are cut or filled up")
    expect(not words._definition["model"].get("dropout") and words.encode(SHORT) == ids, "other ids each time")
    expect(len(words.token_bytes) == words.vocab_size <= 1 << 20 and all(type(each) is bytes for each in words.token_bytes), "the table of bytes")
    for token, i in words.vocab.items():
        if sum(other == i for other in words.vocab.values()) > 1:
            continue  # of several tokens with one id the last one counts
        text = words.token_bytes[i]
        expect(not text or len(text) <= 4 * len(token), f"{token!r} has {len(text)} bytes")
        if token.startswith("<0x") and len(text) == 1:
            expect(token.upper() == f"<0X{text[0]:02X}>", f"{token!r} is {text!r}")


MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 < 3?"}, {"role": "user", "content": [{"type": "text", "text": "é"}]}]
SMALL = Limits(text=20_000, made=100_000, iterations=2_000, seconds=0.2, macros=8)


def _chat_template(data: bytes, directory: pathlib.Path) -> None:
    (directory / "chat_template.jinja").write_bytes(data)
    ChatTemplate.read(directory)
    sandbox = Sandbox("here", SMALL)
    template, _ = sandbox.read(data.decode())
    try:
        text = sandbox.render(template, {"messages": MESSAGES, "tools": None, "bos_token": "<s>", "add_generation_prompt": True})
    except (Refused, _core.ModelFileError):
        raise
    except Exception:  # of the template's own expressions: ChatTemplate.render turns any into a ValueError
        return
    expect(len(text) <= SMALL.text, f"a text of {len(text)}")
    expect(not any(word in text for word in ("<class '", "<module '", "<built-in", "<function")), f"an object of Python's: {text!r:.200}")


def _tokenizer_config(data: bytes, directory: pathlib.Path) -> None:
    (directory / "tokenizer_config.json").write_bytes(data)
    template = ChatTemplate.read(directory)
    if template is not None:
        with contextlib.suppress(ValueError):
            expect(type(template.render("generate", "prompt", MESSAGES)) is str, "no text")


def _special_tokens(data: bytes, directory: pathlib.Path) -> None:
    (directory / "special_tokens_map.json").write_bytes(data)
    (directory / "chat_template.jinja").write_text("{{ bos_token }}|{{ eos_token }}|{{ messages[1].content }}")
    template = ChatTemplate.read(directory)
    expect(template is not None and all(type(text) is str for text in template._special_tokens.values()), "special tokens that are no texts")
    expect(template.render("generate", "prompt", MESSAGES).endswith("|2 < 3?"), "another text")


GIVEN = {"target": None, "draft": None, "drafter": "auto", "dtype": "auto", "draft_dtype": "int8", "num_speculative_tokens": "auto", "max_num_seqs": 3}
DEFAULTS = GIVEN | {"draft_dtype": "auto", "max_num_seqs": 1}


def _engine_config(data: bytes, directory: pathlib.Path) -> None:
    (directory / "config.json").write_bytes(data)
    got = engine_config.with_config(directory / "config.json", GIVEN, DEFAULTS)
    told = json.loads(data)
    expect(told.pop("paceline_config") == 1 and told.keys() <= {"about", *GIVEN} - {"max_num_seqs"}, "accepted another file, or an argument of no such file")
    expect(got.keys() == GIVEN.keys() and got["draft_dtype"] == "int8" and got["max_num_seqs"] == 3, "what the caller gave is not what counts")
    expect(all(got[name] == told.get(name, value) for name, value in GIVEN.items() if value == DEFAULTS[name]), "other arguments than the file's")


def _costs(data: bytes, directory: pathlib.Path) -> None:
    (directory / "costs.json").write_bytes(data)
    cycles, why = calibration.read_costs(directory / "costs.json")
    expect(not (cycles and why) and len(cycles) <= calibration.MOST_KINDS, "costs of a file that is none, or too many")
    for each in cycles:
        expect(len(each) == 6 and all(type(value) is int and 0 <= value < 2**31 for value in each[:3]), f"a cycle of {each!r:.100}")
        expect(all(type(value) in (int, float) and 0 <= value < math.inf for value in each[3:]), f"seconds of {each!r:.100}")


JINJA = ["{{ ", " }}", "{% for i in range(9) %}", "{% endfor %}", "{% if x %}", "{% endif %}", "{% set x = ", " %}", "{% macro m(n) %}", "{% endmacro %}", "{{ m(9) }}", "messages",
         "loop.index", " * 10**9", " ~ x", " + x", "'x' * 99999", " | join", "|list", "|string", "|tojson", "|upper", "|sort", "|map('upper')", ".__class__", "['__mro__']", ".format(1)",
         "namespace(x=x)", "{% set ns.x = [ns.x, ns.x] %}", "'%99999d' % 5", "[::-1]", "range(10**9)", "raise_exception('no')", "not ", "((", "))", "{% break %}", "{% generation %}",
         "{% endgeneration %}", "{% call m() %}", "{% endcall %}", "{% set x %}", "{% endset %}", " is even", "dict(a=1)", "strftime_now('%Y')", ".replace('', 'xxxxxxxxx')",
         ".rfind('ab' ~ x)", ".rindex('b' ~ x)", ".rpartition('ba' ~ x)", ".rsplit('ba' ~ x)", "'a' * 9999"]
ROPE = ["rope_type", "type", "factor", "rope_theta", "rope_scaling", "rope_parameters", "linear", "llama3", "yarn", "default", "low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow",
        "original_max_position_embeddings", "mscale", "mscale_all_dim", "attention_factor", "truncate", "partial_rotary_factor"]
TARGETS = {target.name: target for target in (
    Target("strict_json", _strict_json, ["a", "b"]), Target("safetensors", _safetensors, ["dtype", "shape", "data_offsets", "__metadata__", "F32", "BF16", "U8", "a", "b"]),
    Target("index", _index, ["weight_map", "../one.safetensors", "one.safetensors", "two.safetensors", "./two.safetensors", "a", "b", "c"]),
    Target("config", _config, [*ROPE, "head_dim", "num_key_value_heads", "sliding_window", "use_sliding_window", "layer_types", "attention_bias", "Qwen2ForCausalLM", "MistralForCausalLM"]),
    Target("rope", _rope, ROPE), Target("generation_config", _generation_config, ["eos_token_id"]), Target("weights_cache", _weights_cache, ["bytes", "key", "block", "format"]),
    Target("tokenizer", _tokenizer, ["<0xZZ>", "<0x41>", "<0x-1>", "ByteLevel", "Metaspace", "ByteFallback", "Replace", "Sequence", "Prepend", "content", "special", "\u2581", "TemplateProcessing",
                                     "SpecialToken", "Precompiled", "post_processor", "truncation", "padding", "dropout"]),
    Target("chat_template", _chat_template, JINJA, (_core.ModelFileError, Refused, UnicodeDecodeError)),
    Target("tokenizer_config", _tokenizer_config, ["chat_template", "bos_token", "content", "default", "tool_use", "name", "template", "{{ messages }}", "{{"]),
    Target("special_tokens", _special_tokens, ["bos_token", "eos_token", "content", "<s>", "{{ messages }}"]),
    Target("engine_config", _engine_config, ["paceline_config", "about", "max_num_seqs", *engine_config.NAMES]),
    Target("costs", _costs, ["paceline_costs", "cycles", "about", "1e999", "-1", "true"]))}
