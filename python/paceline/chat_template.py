"""Chat templates: messages become the text that a model was trained on. They come with the tokenizer, are written in Jinja, and are run
as what they are, programs of somebody else: in a sandbox, under a budget (template_sandbox.py), and with plain values only."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from paceline import checks
from paceline._core import ModelFileError
from paceline.loading.files import read_bytes
from paceline.loading.strict_json import read_json, shown

MAX_CONFIG = 8 << 20
"""Bytes of a tokenizer_config.json; those that list thousands of added tokens take one million."""
MAX_TEMPLATE = 1 << 18
"""Bytes of a template; long ones take 20,000."""
MAX_MESSAGES = 8 << 20
"""Characters of messages, tools and variables together, each value counted as 16 more."""
MAX_DEPTH = 32
"""Of messages, tools and variables: schemas of tools are nested."""
SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
NOT_VARIABLES = ("tokenize", "continue_final_message", "padding", "truncation", "max_length", "return_tensors", "return_dict",
                 "return_assistant_tokens_mask", "tokenizer_kwargs", "chat_template", "conversation")
"""Parameters of others' functions of this name."""


class ChatTemplate:
    """The templates of a tokenizer's directory: one, or several by name ("default", "tool_use")."""

    def __init__(self, where: str, sources: Mapping[str, str], special_tokens: Mapping[str, str]) -> None:
        """where: the file they are in. Raises ModelFileError when one is no template of the dialect."""
        from paceline.template_budget import Limits
        from paceline.template_sandbox import Sandbox  # Jinja is imported for those who chat

        self.where = where
        self._special_tokens = dict(special_tokens)
        self._sandbox = Sandbox(where, Limits())
        self._templates = {name: self._sandbox.read(source) for name, source in sources.items()}

    @classmethod
    def read(cls, directory: Path) -> "ChatTemplate | None":
        """Of chat_template.jinja, or else of tokenizer_config.json; None where neither has one. Raises ModelFileError."""
        path, alone = directory / "tokenizer_config.json", directory / "chat_template.jinja"
        config = read_json(path, MAX_CONFIG) if _is_there(path) else {}
        if _is_there(alone):
            try:
                return cls(str(alone), {"default": read_bytes(alone, MAX_TEMPLATE).decode()}, _special_tokens(directory, config))
            except UnicodeDecodeError as error:
                raise ModelFileError(f"{alone}: expected UTF-8, found byte 0x{error.object[error.start]:02x}") from None
        sources = _sources(path, config.get("chat_template"))
        return cls(str(path), sources, _special_tokens(directory, config)) if sources else None

    def render(self, where: str, name: str, messages: Any, *, add_generation_prompt: bool = True, tools: Any = None,
               variables: Mapping[str, Any] | None = None) -> str:
        """where, name: of the caller's argument, for messages.

        Raises ValueError when the messages are none, or none that the template takes; ModelFileError when the template fails."""
        given = _plain(where, name, messages, tools, variables or {})
        template, asked = self._template(tools is not None)
        for each in [*(variables or {}), *(["tools"] if tools is not None else [])]:
            if each not in asked:
                raise ValueError(f"[{where}] {each} must be a variable of the chat template in {self.where}, which has {', '.join(sorted(asked))}")
        from jinja2.exceptions import SecurityError
        from paceline.template_sandbox import Refused, lines_of

        values = self._special_tokens | {"tools": None, "documents": None} | given | {"add_generation_prompt": add_generation_prompt}
        try:
            return self._sandbox.render(template, values)
        except ModelFileError:
            raise
        except Refused as error:
            raise ValueError(f"[{where}] {name} must suit the chat template in {self.where}, which says: {error}") from None
        except SecurityError as error:
            raise ModelFileError(f"{self.where}: chat template: {shown(error)}") from None
        except Exception as error:  # its text may quote a message
            line = max(lines_of(template, error), default=0)
            raise ValueError(f"[{where}] {name} must suit the chat template in {self.where}, got {type(error).__name__} in its line {line}") from None

    def _template(self, with_tools: bool) -> Any:
        if with_tools and "tool_use" in self._templates:
            return self._templates["tool_use"]
        if "default" not in self._templates:
            raise ModelFileError(f"{self.where}: chat_template: expected one named default, found {shown(sorted(self._templates))}")
        return self._templates["default"]


def are_messages(prompt: Sequence[Any]) -> bool:
    return len(prompt) > 0 and all(isinstance(each, Mapping) for each in prompt)


def _is_there(path: Path) -> bool:
    return path.is_symlink() or path.exists()


def _sources(path: Path, given: Any) -> dict[str, str]:
    """{name: template} of the field chat_template: a text, or a list of objects with name and template."""
    several = [{"name": "default", "template": given}] if isinstance(given, str) else [] if given is None else given
    if not isinstance(several, list) or not all(
            isinstance(each, dict) and isinstance(each.get("name"), str) and isinstance(each.get("template"), str) for each in several):
        raise ModelFileError(f"{path}: chat_template: expected a text, or a list of names and templates, found {shown(given)}")
    sources = {each["name"]: each["template"] for each in several if each["name"] in ("default", "tool_use")}
    for name, source in sources.items():
        if len(source) > MAX_TEMPLATE:
            raise ModelFileError(f"{path}: chat_template: expected at most {MAX_TEMPLATE} characters, found {len(source)} in {name}")
    return sources


def _special_tokens(directory: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Each a text, or an object with its content; of tokenizer_config.json, or else of special_tokens_map.json."""
    path = directory / "special_tokens_map.json"
    fields = {**(read_json(path, MAX_CONFIG) if _is_there(path) else {}), **{k: v for k, v in config.items() if v is not None}}
    tokens = {}
    for name in SPECIAL_TOKENS:
        value = fields.get(name)
        text = value.get("content") if isinstance(value, dict) else value
        if text is not None and not isinstance(text, str):
            raise ModelFileError(f"{directory / 'tokenizer_config.json'}: {name}: expected a text or an object with one, found {shown(value)}")
        if text is not None:
            tokens[name] = text
    return tokens


def _plain(where: str, name: str, messages: Any, tools: Any, variables: Mapping[str, Any]) -> dict[str, Any]:
    """Copies of texts, numbers, lists and mappings: a template meets no object of the caller's, and cannot call what is not there."""
    if isinstance(messages, Mapping):
        checks.refuse(where, name, "a list of messages, not one message", "a mapping")
    several = checks.items(where, name, "messages, each a mapping of role and content", messages)
    if not several or not all(isinstance(each, Mapping) for each in several):
        raise ValueError(f"[{where}] {name} must be messages, each a mapping of role and content, got {_kinds(several)}")
    if tools is not None and not (isinstance(tools, (list, tuple)) and all(isinstance(tool, Mapping) for tool in tools)):
        raise ValueError(f"[{where}] tools must be a list of mappings (JSON schemas), got {type(tools).__name__}")
    for each in variables:
        if each in NOT_VARIABLES:
            raise ValueError(f"[{where}] {each} is not supported")
    room = [MAX_MESSAGES]
    given = {name: several} | ({} if tools is None else {"tools": tools}) | dict(variables)
    copied = {each: _copied(where, each, value, room, 0) for each, value in given.items()}
    return {**copied, "messages": copied[name]}


def _kinds(values: Sequence[Any]) -> str:
    return "none" if not values else ", ".join(sorted({type(value).__name__ for value in values}))[:60]


def _copied(where: str, name: str, value: Any, room: list[int], depth: int) -> Any:
    room[0] -= 16 + (len(value) if isinstance(value, str) else 0)
    if room[0] < 0:
        raise ValueError(f"[{where}] {name} must be of {MAX_MESSAGES} characters at most, got more")
    if depth > MAX_DEPTH:
        raise ValueError(f"[{where}] {name} must be nested at most {MAX_DEPTH} deep, got more")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return checks.text(where, name, str(value))
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {_copied(where, name, key, room, depth): _copied(where, name, each, room, depth + 1) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_copied(where, name, each, room, depth + 1) for each in value]
    raise ValueError(f"[{where}] {name} must be made of texts, numbers, lists and mappings from text, got {type(value).__name__}")
