"""Configurations by somebody hostile, row by row (CF1 to CF5). Each test names its row. Beside them: test_config.py (fields one by one,
rope scalings against their papers), test_arguments.py."""

import dataclasses
import inspect
import json
import math
import shutil
import types

import numpy as np
import paceline
import pytest
from checkpoint_writer import tensor_shapes, write_checkpoint
from oracle_models import shape
from paceline import Engine, SamplingParams, _core, demo_pair
from paceline.loading.config import config_of
from test_config import LLAMA

INTEGERS = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "max_position_embeddings",
            "sliding_window")
NO_INTEGER = [0, -1, -2**31, 1.0, 0.5, 1e9, math.inf, 2**31, 2**63, 10**300, "64", "", True, False, [64], {}]
NUMBERS = ("rms_norm_eps", "rope_theta")
NO_NUMBER = [0, 0.0, -1e-5, -math.inf, math.inf, 10**400, "1e-5", "", True, [], [1.0], {}]
FLAGS = ("tie_word_embeddings", "attention_bias", "mlp_bias", "use_sliding_window")
NO_FLAG = [0, 1, -1, 1.0, "true", "false", "", [], [True], {}, 2**63, 0.0]
SCALED = {
    "linear": {"factor": 2.0}, "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 128},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 256, "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0, "attention_factor": 1.0}}


def refusal(values):
    with pytest.raises(paceline.ModelFileError) as error:
        config_of(values, "here/config.json")
    assert str(error.value).startswith("here/config.json: ")
    return str(error.value)


@pytest.mark.parametrize("field", INTEGERS)
@pytest.mark.parametrize("value", NO_INTEGER)
def test_cf1_no_integer(field, value):
    assert field in refusal(LLAMA | {"architectures": ["MistralForCausalLM"], field: value})


@pytest.mark.parametrize("field", NUMBERS)
@pytest.mark.parametrize("value", NO_NUMBER)
def test_cf1_no_number(field, value):
    assert field in refusal(LLAMA | {field: value})


@pytest.mark.parametrize("changes, said", [
    ({"rms_norm_eps": 1e-46}, "rms_norm_eps: expected a positive float32"), ({"rms_norm_eps": 1e300}, "rms_norm_eps: expected a positive float32"),
    ({"max_position_embeddings": 1}, "max_position_embeddings: expected an integer in [2, 16777216]"), ({"max_position_embeddings": 2**24 + 1}, "max_position_embeddings"),
    ({"intermediate_size": 2**22 + 1}, "intermediate_size: expected an integer in [1, 4194304]"), ({"hidden_size": 2**22 + 4}, "hidden_size: expected an integer in [1, 4194304]"),
    ({"num_attention_heads": 2**15, "head_dim": 130}, "num_attention_heads: expected at most 4194304 columns of q"),
    ({"architectures": ["MistralForCausalLM"], "sliding_window": 1}, "sliding_window: expected an integer in [2,")])
def test_cf1_what_the_core_would_refuse_is_the_file_s_fault(changes, said):
    assert said in refusal(LLAMA | changes)


@pytest.mark.parametrize("changes", [{"rms_norm_eps": 1e-45}, {"rms_norm_eps": 3.4e38}, {"max_position_embeddings": 2}, {"max_position_embeddings": 2**24},
                                     {"num_attention_heads": 2**14, "head_dim": 256, "hidden_size": 2**22, "intermediate_size": 2**22}])
def test_cf1_what_the_core_takes_is_taken(changes):
    _core.ModelConfig(**dataclasses.asdict(config_of(LLAMA | changes, "here/config.json")[1]))


@pytest.mark.parametrize("name", ["generation_config.json", "config.json"])
def test_cf1_more_ends_of_a_text_than_a_request_may_have(tmp_path, name):
    model = shutil.copytree(demo_pair()[1], tmp_path / "model")
    (model / "generation_config.json").write_text("{}")
    config = json.loads((model / name).read_text())
    for count, fits in ((128, True), (129, False)):
        (model / name).write_text(json.dumps(config | {"eos_token_id": [0, *range(count)]}))
        if fits:
            with Engine(model, warmup=False) as engine:
                engine.generate("a", max_tokens=1)
            continue
        with pytest.raises(paceline.ModelFileError, match=f"{name}: eos_token_id: expected at most 128 token ids, found 129"):
            Engine(model)


@pytest.mark.parametrize("draft", [False, True])
def test_cf1_digits_of_a_config_take_no_memory_out_of_proportion(tmp_path, draft, monkeypatch):
    """The tables of every position are the one thing that a file's size says nothing about."""
    models = [shutil.copytree(each, tmp_path / each.name) for each in demo_pair()[:1 + draft]]
    for model in models:
        config = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 2**24}))
    assert Engine.plan(*models).workspace_bytes < 600e6
    monkeypatch.setattr("paceline.arguments.available_memory", lambda: 200_000_000)
    assert Engine.plan(*models).workspace_bytes < 90e6
    with Engine(*models, warmup=False) as engine:
        length = engine.info["max_model_len"]
        assert f"max_model_len is {length} instead of 16777216: its tables take a quarter of the free memory" in engine.info["notes"]
        engine.generate("a", max_tokens=2)
    assert Engine.plan(*models, max_model_len=2**20).workspace_bytes > 250e6  # whoever asks for it gets it


@pytest.mark.parametrize("field", FLAGS)
@pytest.mark.parametrize("value", NO_FLAG)
def test_cf1_no_flag(field, value):
    assert field in refusal(LLAMA | {"sliding_window": 64, field: value})


@pytest.mark.parametrize("value", [None, "", "LlamaForCausalLM", [], ["LlamaForCausalLM"] * 2, [["LlamaForCausalLM"]], [{}], [None], [5], {"LlamaForCausalLM": 1}, 5, [""]])
def test_cf1_no_architecture(value):
    assert "architectures: expected one of" in refusal(LLAMA | {"architectures": value})


@pytest.mark.parametrize("kind, field, value", [
    (kind, field, value) for kind, fields in SCALED.items() for field in fields for value in NO_NUMBER
    if not (field.startswith("mscale") and type(value) in (int, float) and abs(value) < 1)])  # there 0 is off, and a sign is only odd
def test_cf1_no_rope_number(kind, field, value):
    assert "rope" in refusal(LLAMA | {"rope_scaling": {"type": kind, **SCALED[kind], "attention_factor": None, field: value}})


@pytest.mark.parametrize("changes", [
    {"rope_theta": 1.0, "rope_scaling": {"type": "yarn", "factor": 4.0}}, {"rope_scaling": {"type": "linear", "factor": 1e-320}},
    {"rope_scaling": {"type": "yarn", "factor": 4.0, "beta_fast": 1e-320}}, {"rope_scaling": {"type": "yarn", "factor": 1e-320}},
    {"rope_theta": 1e-320, "head_dim": 256}, {"rope_scaling": {"type": "yarn", "factor": 4.0, "mscale": 1.0, "mscale_all_dim": -8.0}},
    {"rope_scaling": {"type": "llama3", **SCALED["llama3"], "factor": 1e-320}}])
def test_cf1_numbers_that_no_frequency_comes_of(changes):
    assert "rope" in refusal(LLAMA | changes)


def test_cf2_rope_types():
    for rope, said in (({"type": "dynamic", "factor": 2.0}, "found dynamic"), ({"rope_type": "linear", "type": "yarn", "factor": 2.0}, "the same as rope_type"),
                       ({"rope_type": "longrope"}, "found longrope"), ({"rope_type": ["linear"], "factor": 2.0}, "rope_type"), ({"type": "linear"}, "factor"),
                       ({"type": "llama3", "factor": 2.0}, "low_freq_factor"), ([], "an object or null"), ("linear", "an object or null"),
                       ({"type": "Linear", "factor": 2.0}, "found Linear"), ({"type": 5}, "found 5"), ({"type": {}}, "rope_type")):
        assert said in refusal(LLAMA | {"rope_scaling": rope}), rope
        if isinstance(rope, dict):
            assert said in refusal(LLAMA | {"rope_theta": None, "rope_parameters": rope | {"rope_theta": 10000.0}})
    assert config_of(LLAMA | {"rope_scaling": {"rope_type": "linear", "type": "linear", "factor": 2.0}}, "here")[1].rope_scale == 1.0


# ---------------------------------------------------------------------------------------------------- CF3: vocabularies
VOCAB, PADDED = 40, 64  # ids that the tokenizer knows; rows that the models have


@pytest.fixture(scope="module")
def padded(tmp_path_factory):
    """(target, draft): random models whose rows beyond the tokenizer's ids win by hundreds. The draft has some more of them."""
    from test_tokenizer import byte_level
    words = byte_level([chr(0x21 + i) for i in range(VOCAB)])
    found = []
    for name, layers, rows in (("target", 2, PADDED), ("draft", 1, PADDED + 16)):
        directory = tmp_path_factory.mktemp(name)
        config = shape("llama", 2, 1, 16, layers=layers, vocab=rows, context=256, rope_theta=10000.0)
        tensors = []
        for i, (tensor, size) in enumerate(tensor_shapes(config)):
            values = np.random.default_rng(i).standard_normal(size).astype(np.float32) * (0.3 if len(size) == 2 else 0) + (0 if len(size) == 2 else 1)
            if tensor == "lm_head.weight":
                values[VOCAB:] = 100 * np.random.default_rng(9).standard_normal((rows - VOCAB, size[1]))  # of either sign: some are huge in every row
            tensors.append((tensor, size, lambda values=values: values))
        write_checkpoint(directory, config | {"eos_token_id": None}, tensors, "F32")
        words._inner.save(str(directory / "tokenizer.json"))
        found.append(directory)
    return found


@pytest.mark.parametrize("acceptance", ["coupled", "rejection"])
def test_cf3_ids_above_the_vocabulary_are_never_emitted(padded, acceptance):
    with Engine(*padded, acceptance=acceptance, num_speculative_tokens=4, warmup=False) as engine:
        assert engine.info["vocab_size"] == VOCAB
        rows = engine.verify([1, 2, 3], [4, 5]).logprobs
        assert rows.shape == (3, PADDED) and (rows.argmax(axis=1) >= VOCAB).all() and (rows[:, VOCAB:].max(axis=1) - rows[:, :VOCAB].max(axis=1) > 100).all()
        for sampling in ({}, {"temperature": 1.0, "seed": 3}, {"temperature": 100.0, "seed": 4}, {"temperature": 1.0, "top_p": 0.5, "seed": 5}, {"temperature": 1.0, "top_k": 3, "seed": 6},
                         {"temperature": 1.0, "min_p": 0.9, "seed": 7}):
            plain = engine.generate([1, 2, 3], max_tokens=120, num_speculative_tokens=0, **sampling)
            speculative = engine.generate([1, 2, 3], max_tokens=120, **sampling)
            assert max(plain.token_ids) < VOCAB and max(speculative.token_ids) < VOCAB and len(speculative.token_ids) == 120
            if acceptance == "coupled" or not sampling:
                assert plain.token_ids == speculative.token_ids
        assert speculative.stats.num_draft_tokens > 0
        for wrong in ([VOCAB], [PADDED], [2**31]):
            with pytest.raises(ValueError, match="token ids must be in"):
                engine.generate(wrong)
        for name in ("stop_token_ids", "logit_bias"):
            with pytest.raises(ValueError, match=rf"{name}.* must be in \[0, {VOCAB}\)"):
                engine.generate([1], **{name: [VOCAB] if name == "stop_token_ids" else {VOCAB: 1.0}})


def test_cf3_of_the_same_size_with_another_tokenizer_is_refused(padded, tmp_path):
    draft = shutil.copytree(padded[1], tmp_path / "draft")
    words = json.loads((draft / "tokenizer.json").read_text())
    vocab = words["model"]["vocab"]
    vocab["!"], vocab["#"] = vocab["#"], vocab["!"]
    (draft / "tokenizer.json").write_text(json.dumps(words))
    with pytest.raises(ValueError, match="draft must have the target's tokenizer, got another"):
        Engine(padded[0], draft)


# ---------------------------------------------------------------------------------------------------- CF4: options
def test_cf4_every_option_of_the_engine_is_in_info(tmp_path):
    """Each with a value that is not its default, as it is in use; none is left out when an option is added."""
    target, draft = demo_pair()
    given = {"target": target, "draft": draft, "tokenizer": draft, "device": "cpu", "dtype": "int8", "draft_dtype": "fp32", "kv_dtype": "fp32", "num_speculative_tokens": 5,
             "acceptance": "rejection", "max_model_len": 200, "max_num_seqs": 3, "kv_cache_tokens": 448, "num_threads": 1, "weights_cache": tmp_path / "cache", "warmup": False}
    parameters = set(inspect.signature(Engine.__init__).parameters) - {"self"}
    missing = parameters - given.keys()
    with Engine(**{name: value for name, value in given.items() if name in parameters}) as engine:
        for name, value in given.items():
            shown = engine.info[name]
            if name in ("target", "draft", "weights_cache"):
                value = str(value)
            assert shown == value or (name == "tokenizer" and shown == str(draft / "tokenizer.json")) or (name == "device" and shown.startswith("cpu")), name
        assert not missing - engine.info.keys(), f"{missing - engine.info.keys()} are in no info"


def test_cf4_unknown_options_raise():
    for call in (lambda: Engine(demo_pair()[0], tau=3), lambda: SamplingParams(temprature=1.0), lambda: SamplingParams(0.5)):
        with pytest.raises(TypeError):
            call()


def test_cf4_every_sampling_parameter_reaches_the_core(monkeypatch):
    """Changed one by one: each makes another set of parameters for the core."""
    changed = {"max_tokens": 9, "min_tokens": 3, "temperature": 0.5, "top_p": 0.5, "top_k": 5, "min_p": 0.1, "repetition_penalty": 1.5, "presence_penalty": 0.5, "frequency_penalty": 0.5,
               "logit_bias": {1: 2.0}, "seed": 8, "stop": "x", "stop_token_ids": [3], "ignore_eos": True, "logprobs": 2, "num_speculative_tokens": 1}

    monkeypatch.setattr("paceline.sampling_params._core", types.SimpleNamespace(RequestParams=dict))

    def core(**given):
        return SamplingParams(**{"seed": 7} | given)._for_core([0])

    assert changed.keys() >= {field.name for field in dataclasses.fields(SamplingParams)}
    plain = core()
    for name, value in changed.items():
        assert core(**{name: value}) != plain, name


# ---------------------------------------------------------------------------------------------------- CF5: what is not supported
@pytest.mark.parametrize("changes, said", [
    *(({"architectures": [name]}, "expected one of LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM") for name in (
        "MambaForCausalLM", "RwkvForCausalLM", "MixtralForCausalLM", "Qwen3MoeForCausalLM", "GPT2LMHeadModel", "T5ForConditionalGeneration", "llamaforcausallm", "../x", "os.system")),
    ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"), ({"num_experts": 8}, "num_experts"), ({"num_local_experts": 8}, "num_local_experts"),
    ({"hidden_act": "relu"}, "hidden_act"), ({"hidden_act": ["silu"]}, "hidden_act"), ({"mlp_bias": True}, "mlp_bias"), ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ({"sliding_window": 64, "layer_types": ["linear_attention"]}, "layer_types")])
def test_cf5_what_is_not_supported_is_refused_by_name(changes, said):
    assert said in refusal(LLAMA | changes)


@pytest.mark.parametrize("acceptance", ["coupled", "rejection"])
def test_cf5_a_target_may_be_its_own_draft(acceptance):
    target = demo_pair()[0]
    with Engine(target, target, num_speculative_tokens=3, acceptance=acceptance) as engine:
        for sampling in ({}, {"temperature": 0.9, "seed": 5}):
            result = engine.generate("import os\n", max_tokens=60, **sampling)
            assert result.stats.num_accepted_draft_tokens == result.stats.num_draft_tokens > 0
        assert engine.generate("x", max_tokens=30).token_ids == engine.generate("x", max_tokens=30, num_speculative_tokens=0).token_ids
