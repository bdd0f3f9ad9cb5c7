"""Chat templates: what messages become, in the dialect of transformers; templates that attack; messages that are none."""

import functools
import json
import shutil

import paceline
import pytest
from paceline import Engine, demo_pair
from paceline.chat_template import ChatTemplate
from paceline.template_budget import Limits
from paceline.template_sandbox import Sandbox

MESSAGES = [{"role": "system", "content": " Be brief. "}, {"role": "user", "content": "2 < 3?"}, {"role": "assistant", "content": "Yes."},
            {"role": "user", "content": "Why?"}]
TOOLS = [{"name": "add", "parameters": {"a": "int", "b": "int"}}]
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}

MARKED = """
{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
"""
HEADED = """{{ bos_token }}
{%- for message in messages %}
[{{ message.role | upper }}] {{ message.content | trim }}
{% if not loop.last %}

{% endif %}
{%- endfor %}
{% if add_generation_prompt %}

[ASSISTANT]{% endif %}"""
FOLDED = """{% if messages[0]['role'] == 'system' %}{% set system = messages[0].content.strip() ~ ' ' %}{% set rest = messages[1:] %}
{% else %}{% set system = '' %}{% set rest = messages %}{% endif %}
{{ bos_token }}{% for message in rest %}
{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}
{% if message.role == 'user' %}[INST] {{ system if loop.first }}{{ message.content }} [/INST]{% else %}{{ message.content + eos_token }}{% endif %}
{% endfor %}"""
WITH_TOOLS = """{% macro shown(tool) %}{{ tool.name }}({% for name, kind in tool.parameters | dictsort %}{{ name }}: {{ kind }}{{ ', ' if not loop.last }}
{%- endfor %}){% endmacro %}
{% set state = namespace(count=0) %}
{% for tool in tools or [] %}{% set state.count = state.count + 1 %}{{ state.count }}. {{ shown(tool) }} {{ tool | tojson }}
{% endfor %}
{% for message in messages if message.role != 'system' %}{% if loop.index > 2 %}{% break %}{% endif %}{{ message.content }}|{% endfor %}
{% generation %}{{ thinking | default('no') }}{% endgeneration %}"""

STYLES = [
    (MARKED, {}, "<|im_start|>system\n Be brief. <|im_end|>\n<|im_start|>user\n2 < 3?<|im_end|>\n<|im_start|>assistant\nYes.<|im_end|>\n"
                 "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"),
    (MARKED, {"add_generation_prompt": False}, "<|im_start|>system\n Be brief. <|im_end|>\n<|im_start|>user\n2 < 3?<|im_end|>\n"
                                               "<|im_start|>assistant\nYes.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n"),
    (HEADED, {}, "<s>[SYSTEM] Be brief.\n\n[USER] 2 < 3?\n\n[ASSISTANT] Yes.\n\n[USER] Why?\n\n[ASSISTANT]"),
    (FOLDED, {}, "<s>[INST] Be brief. 2 < 3? [/INST]Yes.</s>[INST] Why? [/INST]"),
    (WITH_TOOLS, {"tools": TOOLS}, '1. add(a: int, b: int) {"name": "add", "parameters": {"a": "int", "b": "int"}}\n2 < 3?|Yes.|no'),
    (WITH_TOOLS, {"variables": {"thinking": True}}, "2 < 3?|Yes.|True"),
    ("{{ ('a, b, ' * 99999).rsplit(', ', 2)[1:] }}{{ 'a</t>b</t>c'.rpartition('</t>')[2] }}{{ 'abab'.rfind('ab') }}{{ 'abab'.rindex('b', 0, 3) }}{{ ' a  b '.rsplit() }}", {},
     "['b', '']c21['a', 'b']"),
    ("{{ messages[1:][0].content[::-1] }}{{ messages[:-3] | length }}{{ 'abcdef'[1:5:2] }}", {}, "?3 < 21bd"),
    ("{{ messages[1].content | tojson }} {{ 'é' | tojson }} {{ {'b': 1, 'a': [1.5, none, true]} | tojson(indent=1) }}", {},
     '"2 < 3?" "é" {\n "b": 1,\n "a": [\n  1.5,\n  null,\n  true\n ]\n}')]


def rendered(source, messages=MESSAGES, **options):
    return ChatTemplate("made here", {"default": source}, TOKENS).render("generate", "prompt", messages, **options)


@pytest.mark.parametrize("source, options, expected", STYLES)
def test_styles(source, options, expected):
    assert rendered(source, **options) == expected


@pytest.mark.oracle
@pytest.mark.parametrize("source, options, expected", STYLES)
def test_transformers_renders_alike(source, options, expected):
    from transformers.utils.chat_template_utils import render_jinja_template

    given = {"add_generation_prompt": True, **options, **options.get("variables", {}), **TOKENS}
    given.pop("variables", None)
    assert render_jinja_template(conversations=[MESSAGES], chat_template=source, **given)[0] == [expected]


def grown(operation, times=60):
    """A value that its own operation makes larger and larger."""
    return "{% set ns = namespace(v='x', w='x') %}{% for i in range(" + str(times) + ") %}{% set ns.v = " + operation + " %}{% endfor %}"


LARGE, MANY = "values of at most 8388608 characters,", "values of at most 67108864 characters in all"
ATTACKS = [
    # values
    (grown("ns.v + ns.v"), LARGE), (grown("ns.v ~ ns.v"), LARGE), (grown("[ns.v, ns.v]") + "{{ ns.v }}", LARGE), (grown("[ns.v] + [ns.v]|list"), None),
    (grown("[ns.v, ns.v]") + "{{ ns.v | tojson }}", LARGE), (grown("[ns.v, ns.v]") + "{{ ns.v | string }}", LARGE),
    (grown("[ns.v, ns.v]") + "{{ ns.v | join }}", LARGE), (grown("[ns.v, ns.v]") + "{{ ns.v == [ns.v] }}", LARGE),
    (grown("(ns.v, ns.v)") + "{{ {ns.v: 1} }}", LARGE), (grown("(ns.v, ns.v)") + "{{ {}[ns.v] }}", LARGE), (grown("(ns.v, ns.v)") + "{{ dict()[ns.v] }}", LARGE),
    (grown("[ns.v, ns.v]") + "{{ [ns.v] | unique | list }}", LARGE), (grown("[ns.v, ns.v]") + "{{ [[ns.v], [ns.v]] | sort }}", LARGE),
    (grown("[ns.v, ns.v]") + "{{ ns.v is eq [ns.v] }}", LARGE), (grown("[ns.v, ns.v]") + "{{ [ns.v].index(ns.v) }}", LARGE),
    (grown("[ns.v, ns.v]") + "{{ '%s' % [ns.v] }}", LARGE), (grown("{'a': ns.v, 'b': ns.v}") + "{{ ns.v.items() }}", LARGE),
    (grown("ns.v.replace('x', 'xxxxxxxxxx')"), LARGE), (grown("ns.v | replace('', 'xxxxxxxxxx')"), LARGE), (grown("ns.v.join([ns.v, ns.v, ns.v])"), LARGE),
    (grown("[ns.v, ns.v, ns.v] | join(ns.v)"), LARGE), (grown("'%s%s' % (ns.v, ns.v)"), LARGE), ("{{ 'a' * 10**9 }}", LARGE), ("{{ 10**9 * 'a' }}", LARGE),
    ("{{ ['a'] * 10**9 }}", LARGE), ("{{ 'a'.center(10**9) }}", LARGE), ("{{ 'a'.ljust(10**9) }}", LARGE), ("{{ 'a'.zfill(10**9) }}", LARGE),
    ("{{ '\t'.expandtabs(10**9) }}", LARGE), ("{{ '%1000000000d' % 5 }}", "widths of at most 999"), ("{{ '%.1000000000f' % 5 }}", "widths of at most 999"),
    ("{{ '%*d' % (1000000000, 5) }}", "widths of at most 999"), ("{{ '%(a)1000000000d' % {'a': 5} }}", "widths of at most 999"),
    ("{{ '%((a))1000000000d' % {'(a)': 5} }}", "widths of at most 999"), ("{{ 'a' | indent(10**9) }}", "indented by at most 64"),
    ("{{ messages | tojson(indent=10**9) }}", "indented by at most 64"), ("{{ 10 ** 10 ** 10 }}", "integers of at most 256 bits"),
    ("{% set ns = namespace(v=10) %}{% for i in range(60) %}{% set ns.v = ns.v * ns.v %}{% endfor %}", "integers of at most 256 bits"),
    ("{{ ('1' * 5000) | int }}", "numbers of at most 256 characters"), ("{{ 2.5 | round(10**9, 'ceil') }}", "0 to 16 digits"),
    ("{{ strftime_now('%1000000000Y') }}", "without widths"), ("{% set x = 'x' * 8000000 %}{% set y %}{% for i in range(9) %}{{ x }}{% endfor %}{% endset %}", MANY),
    ("{% set ns = namespace(l=[]) %}{% set x = 'x' * 8000000 %}{% for i in range(9999) %}{% set ns.l = ns.l + [x[1:]] %}{% endfor %}", MANY),
    ("{% set ns = namespace(l=[]) %}{% set x = 'x' * 8000000 %}{% for i in range(9999) %}{% set ns.l = ns.l + [x.upper()] %}{% endfor %}", LARGE),
    ("{% set ns = namespace(l=[]) %}{% set x = 'x' * 4000000 %}{% for i in range(9999) %}{% set ns.l = ns.l + [x | upper] %}{% endfor %}", MANY),
    ("{% set x = 'x' * 8000000 %}{% for i in range(9) %}{{ x }}{% endfor %}", "a text of at most 8388608 characters"),
    ("{% set ns = namespace(l=[]) %}{% for i in range(99999) %}{% set ns.l = ns.l + [[" + "1," * 9000 + "]] %}{% endfor %}", MANY),
    # time
    ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "at most 200000 iterations"),
    ("{% for i in range(99999) %}{% for j in range(99999) if false %}{% endfor %}{% endfor %}", "at most 200000 iterations"),
    ("{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(30) }}", "iterations|seconds"),
    ("{{ range(10**12) }}", "ranges of at most 200000"), ("{{ range(150000) | map('string') | map('upper') | join }}{{ range(150000) | map('string') | list }}", "iterations"),
    ("{% set x = 'x' * 8000000 %}{% for i in range(99999) %}{% set y = x.count('xy') %}{% endfor %}", "at most 1 seconds of rendering"),
    ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "at most 32 macros"),
    ("{% for x in [[[]]] recursive %}{{ loop([[[]]]) }}{% endfor %}", "at most 32 macros"),
    *((f"{{% set x = 'a' * 160000 %}}{{{{ x.{call} }}}}", "a search from the end over at most 100000000 characters") for call in (
        "rfind('ab' ~ 'a' * 80000)", "rindex('ab' ~ 'a' * 80000)", "rpartition('ab' ~ 'a' * 80000)", "rsplit('ab' ~ 'a' * 80000)", "rsplit(sep='ab' ~ 'a' * 80000, maxsplit=1)")),
    # out of the sandbox
    ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"), ("{{ ''['__class__']['__mro__'] }}", "unsafe"),
    ("{{ messages | map(attribute='__class__') | map(attribute='__mro__') | list }}", "unsafe"), ("{{ namespace.__init__.__globals__ }}", "unsafe"),
    ("{{ raise_exception.__globals__['os'] }}", "unsafe"), ("{{ 'a{0.__class__}'.format(1) }}", "format of str may not be called"),
    ("{{ 'a'.format_map({}) }}", "format_map of str"), ("{{ 'a'.encode() }}", "encode of str"), ("{{ messages.append(1) }}", "unsafe"),
    ("{{ messages[0].update({}) }}", "unsafe"), ("{{ (1).bit_length() }}", "bit_length of int"), ("{{ 'a' | attr('x') }}", "No filter named 'attr'"),
    ("{{ 'a' | center(10**9) }}", "No filter named 'center'"), ("{{ 'a' | format(1) }}", "No filter named 'format'"), ("{% include 'x' %}", "of one piece"),
    ("{% import 'x' as y %}", "of one piece"), ("{% extends 'x' %}", "of one piece"), ("{% block x %}{% endblock %}", "of one piece"),
    # before it runs
    ("{{ " + "(" * 9999 + "1" + ")" * 9999 + " }}", "brackets and signs nested at most 64"), ("{{ " + "not " * 9999 + "1 }}", "brackets and signs nested"),
    ("{{ " + "- " * 9999 + "1 }}", "brackets and signs nested"), ("{{ 1" + " + 1" * 9999 + " }}", "nested at most 256"),
    ("{{ 1" + " if 1 else 1" * 9999 + " }}", "cannot be compiled|nested at most"), ("{{ 1" + "|string" * 9999 + " }}", "nested at most 256"),
    ("{% if 1 %}" * 999 + "{% endif %}" * 999, "cannot be compiled|nested"), ("{% for i in [] %}" * 30 + "{% endfor %}" * 30, "cannot be compiled"),
    ("{{ 1", "unexpected end"), ("{% nothing %}", "Encountered unknown tag"), ("{{ 'a'", "unexpected end"), ("{{ \udc80 }}", "unexpected char|cannot")]


@pytest.mark.parametrize("source, limit", ATTACKS)
def test_an_attack_is_refused_by_name(monkeypatch, source, limit):
    if not limit or "seconds" not in limit:  # on a machine that is busy, the second may be over first
        monkeypatch.setattr("paceline.template_budget.Limits", functools.partial(Limits, seconds=60.0))
    if limit is None:  # grows by one each time: nothing to refuse
        assert rendered(source) == ""
        return
    with pytest.raises(paceline.ModelFileError, match=limit) as error:
        rendered(source)
    assert str(error.value).startswith("made here: chat template")


@pytest.mark.parametrize("source", ["{{ '%1000000000d' is even }}", "{{ '%1000000000d' is divisibleby 5 }}", "{{ lipsum() }}", "{{ cycler('a') }}",
                                    "{{ messages.foo.bar }}", "{{ 1 / 0 }}", "{{ {}.x.y }}", "{{ 'a' + 1 }}", "{{ nothing() }}"])
def test_what_fails_while_it_runs_says_where_and_quotes_nothing(source):
    with pytest.raises(ValueError, match=r"^\[generate\] prompt must suit the chat template in made here, got \w+ in its line 2$"):
        rendered("\n" + source, [{"role": "user", "content": "Geheimnis"}])


@pytest.mark.parametrize("limits, fits, source", [
    (Limits(iterations=9), 9, "{% for i in range(N) %}{% endfor %}"), (Limits(text=40), 40, "{{ 'x' * N }}"), (Limits(text=400), 400, "{{ 'x'.ljust(N) }}"),
    (Limits(made=320), 9, "{% for i in range(N) %}{% set v = 'xxxx' * 8 %}{% endfor %}"),
    (Limits(macros=5), 4, "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(N) }}")])
def test_each_limit_refuses_one_more_than_it_allows(limits, fits, source):
    """Test of the test: what refuses is the limit, and nothing else."""
    for n, refused in ((fits, False), (fits + (30 if "set" in source else 1), True)):
        sandbox = Sandbox("made here", limits)
        template, _ = sandbox.read(source.replace("N", str(n)))
        if refused:
            with pytest.raises(paceline.ModelFileError):
                sandbox.render(template, {})
        else:
            sandbox.render(template, {})


def test_the_template_refuses_messages_in_its_own_words():
    with pytest.raises(ValueError, match=r"\[generate\] prompt must suit the chat template in made here, which says: roles must alternate"):
        rendered(FOLDED, MESSAGES[2:])


class Object:
    def __str__(self):
        return "x"


@pytest.mark.parametrize("messages, options, said", [
    ([], {}, "prompt must be messages, each a mapping of role and content, got none"), ([1], {}, "got int"), ("text", {}, "prompt must be messages"),
    ({"role": "user"}, {}, "not one message"), ([{"role": Object()}], {}, "prompt must be made of texts, numbers, lists and mappings from text, got Object"),
    ([{1: "a"}], {}, "got dict"), ([{"role": "\ud800"}], {}, "prompt must be valid Unicode text"), (MESSAGES, {"tools": "add"}, "tools must be a list"),
    (MESSAGES, {"tools": [len]}, "tools must be a list"), (MESSAGES, {"tools": TOOLS}, "tools must be a variable of the chat template in made here, which has messages"),
    (MESSAGES, {"variables": {"thinkin": 1}}, "thinkin must be a variable"), (MESSAGES, {"variables": {"tokenize": True}}, "tokenize is not supported"),
    (MESSAGES, {"variables": {"messages2": Object()}}, "got Object"), ([{"content": "x" * (8 << 20)}], {}, "of 8388608 characters at most")])
def test_messages_that_are_none(messages, options, said):
    with pytest.raises(ValueError, match=r"^\[generate\] ") as error:
        rendered("{{ messages[0].role }}", messages, **options)
    assert said in str(error.value)


def test_messages_nested_too_deep():
    deep = []
    for _ in range(40):
        deep = [deep]
    with pytest.raises(ValueError, match="nested at most 32"):
        rendered("x{{ messages }}", [{"content": deep}])


@pytest.fixture
def chatting(tmp_path):
    """The bundled target with a template of its own; give(template, **config)."""
    target = shutil.copytree(demo_pair()[0], tmp_path / "target")

    def give(template, **config):
        (target / "tokenizer_config.json").write_text(json.dumps({"chat_template": template, "bos_token": {"content": "<s>", "lstrip": False}} | config))
        return target
    return give


CALLS = "{{ bos_token }}{% for m in messages %}# {{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}def {% endif %}"


def test_messages_are_prompts_wherever_a_prompt_is_taken(chatting):
    user = [{"role": "user", "content": "sort a list"}]
    with Engine(chatting(CALLS), max_num_seqs=2) as engine:
        text = engine.apply_chat_template(user)
        assert text == "<s># user: sort a list\ndef " and engine.apply_chat_template(user, add_generation_prompt=False) == text[:-4]
        want = engine.generate(text, max_tokens=9)
        assert engine.generate(user, max_tokens=9).token_ids == want.token_ids
        assert engine.generate(user, max_tokens=9).prompt_token_ids == want.prompt_token_ids
        assert [r.token_ids for r in engine.generate_batch([user, text, tuple(user)], max_tokens=9)] == [want.token_ids] * 3
        assert "".join(chunk.text for chunk in engine.stream(user, max_tokens=9)) == want.text
        with pytest.raises(ValueError, match=r"prompts\[1\]: prompt must be text, token ids or messages, got one message: put it into a list"):
            engine.generate_batch(["a", user[0]])
        with pytest.raises(ValueError, match=r"\[apply_chat_template\] messages must be messages"):
            engine.apply_chat_template([])
        with pytest.raises(ValueError, match=r"\[apply_chat_template\] verbose must be a variable of the chat template"):
            engine.apply_chat_template(user, verbose=True)


def test_what_the_template_writes_is_not_written_twice(chatting):
    """A tokenizer that adds a BOS by itself: to a text, but not to what a template has made."""
    from tokenizers import Tokenizer, processors

    words = Tokenizer.from_file(str(demo_pair()[0] / "tokenizer.json"))
    words.add_special_tokens(["<s>"])
    words.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", words.token_to_id("<s>"))])
    user = [{"role": "user", "content": "x"}]
    target = chatting(CALLS)
    words.save(str(target / "tokenizer.json"))
    from paceline.arguments import prompt_ids
    from paceline.tokenizer import Tokenizer as Words
    ours = Words.read(target)
    bos = words.token_to_id("<s>")
    assert prompt_ids("x", ours).count(bos) == 1 and prompt_ids(user, ours).count(bos) == 1 and prompt_ids(user, ours)[0] == bos


def test_where_templates_are(chatting, tmp_path):
    def text(engine_directory):
        return ChatTemplate.read(engine_directory).render("generate", "prompt", MESSAGES[1:2])

    target = chatting([{"name": "default", "template": "one"}, {"name": "tool_use", "template": "two{{ tools }}"}, {"name": "rag", "template": "{{"}])
    assert text(target) == "one" and ChatTemplate.read(target).render("generate", "prompt", MESSAGES, tools=[]) == "two[]"
    (target / "chat_template.jinja").write_text("three {{ bos_token }}{{ eos_token }}{{ pad_token is defined }}\n")
    (target / "special_tokens_map.json").write_text(json.dumps({"eos_token": "</s>", "bos_token": "no", "pad_token": None}))
    assert text(target) == "three <s></s>False"
    assert ChatTemplate.read(demo_pair()[0]) is None


@pytest.mark.parametrize("config, said", [
    ({"chat_template": 5}, "chat_template: expected a text"), ({"chat_template": [{"name": "default"}]}, "chat_template: expected a text"),
    ({"chat_template": "x" * 300_000}, "at most 262144 characters"), ({"chat_template": [{"name": "tool_use", "template": "x"}]}, "expected one named default"),
    ({"chat_template": "x", "bos_token": 5}, "bos_token: expected a text"), ({"chat_template": "x", "bos_token": {"content": 5}}, "bos_token"),
    ({"chat_template": "{{"}, "chat template, line 1")])
def test_a_bad_tokenizer_config_is_named(chatting, config, said):
    with Engine(chatting("", **config), warmup=False) as engine:  # who does not chat never meets it
        with pytest.raises(paceline.ModelFileError, match="tokenizer_config.json: ") as error:
            engine.generate(MESSAGES)
    assert said in str(error.value)


def test_without_a_template_or_a_tokenizer_it_says_so(tmp_path):
    with Engine(demo_pair()[0], warmup=False) as engine:
        with pytest.raises(ValueError, match=r"^\[generate\] prompt must be text or token ids, since there is no chat template beside .*tokenizer.json "):
            engine.generate(MESSAGES)
        with pytest.raises(ValueError, match=r"^\[apply_chat_template\] messages must be for a model that brings a template, since there is no chat template"):
            engine.apply_chat_template(MESSAGES)
    target = shutil.copytree(demo_pair()[0], tmp_path / "target", ignore=shutil.ignore_patterns("tokenizer.json"))
    with Engine(target, warmup=False) as engine:
        with pytest.raises(ValueError, match="prompt must be token ids, since the engine has no tokenizer, got messages"):
            engine.generate(MESSAGES)
