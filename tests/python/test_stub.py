"""The stub of the core against the compiled module and the C++ structs; the public names against the design."""

import ast
import dataclasses
import inspect
import pathlib
import re

import paceline
import pytest
from paceline import _core

ROOT = pathlib.Path(__file__).resolve().parents[2]
STUB = (ROOT / "python/paceline/_core.pyi").read_text()


def classes_of(stub):
    return {node.name: node for node in ast.parse(stub).body if isinstance(node, ast.ClassDef)}


CLASSES = classes_of(STUB)


def public_names(owner):
    return {name for name in vars(owner) if not name.startswith("_")}


def stub_members(node):
    """(methods {name: [argument names, '*' before keyword-only ones]}, other attributes) of a class in the stub."""
    methods, attributes = {}, set()
    for item in node.body:
        if isinstance(item, ast.AnnAssign):
            attributes.add(item.target.id)
        elif isinstance(item, ast.FunctionDef) and item.decorator_list:
            attributes.add(item.name)  # a property
        elif isinstance(item, ast.FunctionDef):
            arguments = item.args
            methods[item.name] = [a.arg for a in arguments.args] + ["*"] * bool(arguments.kwonlyargs) + [a.arg for a in arguments.kwonlyargs]
    return methods, attributes


def compiled_arguments(method):
    """Argument names of a pybind11 method, read from the signature it writes at the head of its docstring."""
    signature = method.__doc__.splitlines()[0]
    inside, names, depth = signature[signature.index("(") + 1:signature.rindex(")")], [""], 0
    if not inside:
        return []
    for character in inside:
        depth += (character in "[(") - (character in "])")
        if character == "," and depth == 0:
            names.append("")
        else:
            names[-1] += character
    return [name.split(":")[0].split("=")[0].strip() for name in names]


def disagreements(stub):
    """Every difference between the text of a stub and the compiled module."""
    classes, (functions, constants), found = classes_of(stub), stub_members(ast.parse(stub)), []
    names = classes.keys() | functions.keys() | constants
    if names != public_names(_core):
        found.append(f"module: {sorted(names ^ public_names(_core))}")
    for name in functions.keys() & public_names(_core):
        if compiled_arguments(getattr(_core, name)) != functions[name]:
            found.append(f"{name}: arguments {functions[name]}, compiled {compiled_arguments(getattr(_core, name))}")
    for name in set(classes) & public_names(_core):
        compiled, (methods, attributes) = getattr(_core, name), stub_members(classes[name])
        if issubclass(compiled, Exception):
            bases = [base.__name__ for base in compiled.__bases__], [base.id for base in classes[name].bases]
            found += [f"{name}: bases {bases}"] * (bases[0] != bases[1])
            continue
        members = {method for method in methods if method != "__init__"} | attributes
        if members != public_names(compiled):
            found.append(f"{name}: members {sorted(members ^ public_names(compiled))}")
        for method in set(methods) & set(vars(compiled)):
            if compiled_arguments(getattr(compiled, method)) != methods[method]:
                found.append(f"{name}.{method}: arguments {methods[method]}, compiled {compiled_arguments(getattr(compiled, method))}")
    return found


def test_the_stub_is_the_compiled_module():
    assert disagreements(STUB) == []


@pytest.mark.parametrize("planted, instead, complaint", [
    ("def check(self, prompt:", "def check(self, prompts:", "Engine.check: arguments"),
    ("min_p: float,\n        repetition_penalty: float", "repetition_penalty: float,\n        min_p: float", "RequestParams.__init__: arguments"),
    ("self,\n        *,\n        num_speculative_tokens", "self,\n        num_speculative_tokens", "EngineOptions.__init__: arguments"),
    ("    tau: int\n", "", "Output: members ['tau']"),
    ("def close(self)", "def shut(self)", "Engine: members ['close', 'shut']"),
    ("class CapacityError(RuntimeError)", "class CapacityError(ValueError)", "CapacityError: bases"),
    ("class Backend:", "class Device:", "module: ['Backend', 'Device']"),
    ("checksum(data:", "checksum(bytes:", "checksum: arguments"),
])
def test_a_planted_difference_is_found(planted, instead, complaint):
    assert planted in STUB
    found = disagreements(STUB.replace(planted, instead, 1))
    assert any(text.startswith(complaint) for text in found), found


def test_what_only_the_core_makes_cannot_be_constructed():
    for name, node in CLASSES.items():
        if not node.bases and "__init__" not in stub_members(node)[0]:
            with pytest.raises(TypeError, match="No constructor defined"):
                getattr(_core, name)()


@pytest.mark.parametrize("name", [name for name, node in CLASSES.items() if node.bases])
def test_the_core_s_errors_are_public(name):
    assert getattr(paceline, name) is getattr(_core, name)


@pytest.mark.parametrize("name, header", [("RequestParams", "decode/request.h"), ("EngineOptions", "decode/scheduler.h"),
                                          ("ModelConfig", "model/config.h")])
def test_the_stub_s_options_are_the_fields_of_the_struct(name, header):
    text = re.sub(r"//[^\n]*", "", (ROOT / "csrc" / header).read_text())
    body = re.search(rf"struct {name} \{{(.*?)\n\}};", text, re.S).group(1)
    fields = []
    for declaration in (line.strip() for line in body.split(";")):
        if not declaration or "(" in declaration or declaration.startswith("}"):
            continue
        declared = re.sub(r"^(std::)?\w+(<[^;]*?>)?\s+", "", declaration)
        fields += [part.split("=")[0].strip() for part in declared.split(",")]
    arguments, _ = stub_members(CLASSES[name])
    assert arguments["__init__"][2:] == fields


ENGINE = ["target", "draft", "config", "drafter", "tokenizer", "device", "dtype", "draft_dtype", "kv_dtype", "num_speculative_tokens", "policy",
          "verify_budget", "latency_target", "min_draft_confidence", "acceptance", "max_model_len", "max_num_seqs", "max_queue", "kv_cache_tokens", "prefix_cache_bytes", "trace_cycles", "num_threads", "weights_cache", "cost_cache", "warmup"]
SAMPLING = {"max_tokens": None, "temperature": 0.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0,
            "presence_penalty": 0.0, "frequency_penalty": 0.0, "logit_bias": None, "seed": None, "stop": None, "stop_token_ids": None,
            "ignore_eos": False, "logprobs": None, "num_speculative_tokens": None}


def test_engine_s_arguments_are_those_of_the_design():
    parameters = list(inspect.signature(paceline.Engine.__init__).parameters.values())[1:]
    assert [p.name for p in parameters] == ENGINE
    assert [p.name for p in parameters if p.kind is not inspect.Parameter.KEYWORD_ONLY] == ["target", "draft"]
    auto = {"drafter", "device", "dtype", "draft_dtype", "kv_dtype", "num_speculative_tokens"}
    defaults = {p.name: p.default for p in parameters}
    assert defaults == {name: "auto" for name in auto} | {"policy": "fixed", "min_draft_confidence": 0.0, "acceptance": "coupled", "max_num_seqs": 1, "max_queue": 1024, "trace_cycles": 4096, "warmup": True} | {
        name: None for name in ("target", "draft", "config", "tokenizer", "verify_budget", "latency_target", "max_model_len", "kv_cache_tokens", "prefix_cache_bytes",
                                "num_threads", "weights_cache", "cost_cache")}


def test_sampling_params_are_those_of_the_design():
    fields = {field.name: field.default for field in dataclasses.fields(paceline.SamplingParams)}
    assert {name: fields.get(name, "missing") for name in SAMPLING} == SAMPLING


def test_every_sampling_parameter_reaches_the_core():
    """Accepted means honoured: all of them are the core's, but for ignore_eos, which decides the stop ids."""
    arguments, _ = stub_members(CLASSES["RequestParams"])
    fields = {field.name for field in dataclasses.fields(paceline.SamplingParams)}
    assert fields - {"ignore_eos"} <= set(arguments["__init__"])
