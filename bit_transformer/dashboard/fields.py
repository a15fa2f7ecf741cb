"""Form fields from a JSON schema: which there are, how typed text becomes a value, and what is sent of a filled-in form. No widgets here."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from bit_transformer.errors import ConfigError

BUDGETS = ("steps", "epochs", "bytes", "seconds", "flops")


@dataclass(frozen=True)
class Field:
    """One setting.

    Attributes:
        path: dotted, with its section: `train.optim.lr`.
        kind: int, float, bool, choice, text, words (a list of texts) or json (any other list).
        nullable: whether it may be left open; `default` is then often None.
        choices: of a choice, the values.
        bounds: what is allowed, in words.
    """

    path: str
    kind: str
    default: Any
    help: str
    nullable: bool = False
    choices: tuple[Any, ...] = ()
    bounds: str = ""

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition(".")[2]

    @property
    def group(self) -> str:
        """The path without the last part: the section, or a group within it."""
        return self.path.rpartition(".")[0]

    def text(self, value: Any) -> str:
        """A value as it is typed."""
        if value is None:
            return ""
        if isinstance(value, bool):
            return "yes" if value else "no"
        if isinstance(value, list | tuple):
            flat = all(not isinstance(one, list | tuple) for one in value)
            return ", ".join(map(str, value)) if flat else json.dumps(value)
        return f"{value:g}" if isinstance(value, float) else str(value)

    def parse(self, text: Any) -> Any:
        """The value of what was typed or chosen; empty text is the default.

        Raises:
            ConfigError: it is not of this kind.
        """
        if text is None or (isinstance(text, str) and not text.strip()):
            return self.default
        if not isinstance(text, str):
            return text
        text = text.strip()
        if self.kind == "bool":
            return {"yes": True, "no": False, "default": self.default}.get(text, text)
        if self.kind in ("choice", "text"):
            return next((c for c in self.choices if str(c) == text), text)
        if self.kind == "words":
            return [part.strip() for part in text.split(",") if part.strip()]
        try:
            return _number(text, self.kind) if self.kind in ("int", "float") else _list(text)
        except ValueError:
            kind = {"int": "a whole number", "float": "a number"}.get(self.kind, "a list such as 2, 3, 4")
            example = self.text(self.default) or {"int": "16", "float": "0.5"}.get(self.kind, "2, 3, 4")
            raise ConfigError(f"got {self.name}={text!r}; {kind} is needed. Try {example}", field=self.path) from None


@dataclass(frozen=True)
class Group:
    """Settings that belong together.

    Attributes:
        path: `train`, or `train.optim`.
        optional: whether it can be left out as a whole; then it is out by default.
    """

    path: str
    help: str
    optional: bool
    fields: tuple[Field, ...]


def groups_of(section: str, schema: Mapping[str, Any]) -> list[Group]:
    """The groups of a section: its own fields, then one group for each nested config."""
    definitions = schema.get("$defs", {})
    own: list[Field] = []
    nested: list[Group] = []
    for name, found in schema.get("properties", {}).items():
        path = f"{section}.{name}"
        reference, optional = _reference(found)
        if reference is None:
            own.append(_field(path, found))
            continue
        inner = definitions[reference]
        fields = tuple(_field(f"{path}.{key}", value) for key, value in inner.get("properties", {}).items())
        nested.append(Group(path, found.get("description", ""), optional, fields))
    return [Group(section, "", False, tuple(own)), *nested]


def _reference(found: Mapping[str, Any]) -> tuple[str | None, bool]:
    """The name of the nested config that a property holds, if it holds one; and whether it may be null."""
    options = [found, *found.get("allOf", ()), *found.get("anyOf", ())]
    name = next((o["$ref"].rpartition("/")[2] for o in options if "$ref" in o), None)
    return name, any(o.get("type") == "null" for o in options)


def _field(path: str, found: Mapping[str, Any]) -> Field:
    options = [o for o in found.get("anyOf", [found]) if o.get("type") != "null"]
    nullable = any(o.get("type") == "null" for o in found.get("anyOf", ()))
    main = options[0] if options else found
    choices = tuple(main.get("enum", (main["const"],) if "const" in main else ()))
    kind = {"integer": "int", "number": "float", "boolean": "bool", "array": "json", "string": "text"}.get(
        main.get("type", ""), "text"
    )
    if kind == "json" and main.get("items", {}).get("type") == "string":
        kind = "words"
    return Field(
        path=path,
        kind="choice" if choices else kind,
        default=found.get("default"),
        help=found.get("description", ""),
        nullable=nullable,
        choices=choices,
        bounds=_bounds(main),
    )


def _bounds(found: Mapping[str, Any]) -> str:
    parts = [
        f"{sign} {found[key]:,}"
        for key, sign in (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))
        if key in found
    ]
    return ", ".join(parts)


def _number(text: str, kind: str) -> float | int:
    text = text.replace(" ", "").replace("_", "")
    if kind == "float":
        return float(text)
    value = float(text)
    if value != int(value):
        raise ValueError
    return int(text) if text.lstrip("-").isdigit() else int(value)


def _list(text: str) -> Any:
    """A list from JSON, or from values with commas between them."""
    if text.startswith("["):
        return json.loads(text)
    if text in ("none", "-"):
        return []
    return [json.loads(part) for part in text.split(",") if part.strip()]


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted names and values as a nested mapping."""
    made: dict[str, Any] = {}
    for path, value in values.items():
        *places, name = path.split(".")
        at = made
        for place in places:
            at = at.setdefault(place, {})
        at[name] = value
    return made


def differing(values: Mapping[str, Any], fields: Iterable[Field]) -> dict[str, Any]:
    """Of values by path, those that are not the field's default."""
    defaults = {field.path: field.default for field in fields}
    return {path: value for path, value in values.items() if not same(value, defaults.get(path))}


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal, where a list may be a tuple."""
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def field_named(name: str | None, paths: Iterable[str]) -> str | None:
    """The path of a form's field that a server's error is about, if the form has it.

    Args:
        name: as the server says it: `request.train.optim.lr`, `train.steps`, `ngram_orders[1]`, or only `lr`.
    """
    if not name:
        return None
    plain = name.split("[")[0].removeprefix("request.")
    known = list(paths)
    if plain in known:
        return plain
    return next((path for path in known if path.endswith(f".{plain}") or path == plain), None)
