"""Base class of all configs: frozen, no unknown keys, one-line errors, a `repr` without defaults, fields in `help()`."""

from __future__ import annotations

import difflib
import inspect
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NoReturn, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo
from typing_extensions import Self

from bit_transformer.errors import Advice, ConfigError, Give

if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass
else:
    ModelMetaclass = type(BaseModel)

_Path = tuple[int | str, ...]


def flat(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Nested settings as (dotted key, value); the keys begin with `path`, if it is not empty."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from flat(f"{path}.{key}" if path else key, inner)
    else:
        yield path, value


class Unfit(ValueError):
    """For validators of configs: values that do not fit together.

    Args:
        what: was wrong.
        tries: any of these fields with another value would help; None: leaving it out.
    """

    def __init__(self, what: str, **tries: Any) -> None:
        super().__init__(what)
        self.tries = tries


class _ConfigType(ModelMetaclass):
    """Gives one-line errors when a config is made, and keeps pydantic's methods out of its `dir` and `help`."""

    def __call__(cls, *values: Any, **fields: Any) -> Any:
        kind: type[Config] = cls  # type: ignore[assignment]  # it makes only configs
        if values:
            name = next(iter(kind.model_fields))
            raise ConfigError(
                f"got {_shown(values[0])} without a name; {cls.__name__} takes its fields by name. "
                f"Try {cls.__name__}({name}=...), or {cls.__name__}.of(mapping)"
            )
        try:
            return super().__call__(**fields)
        except ValidationError as invalid:
            raise _refusal(invalid, kind) from None

    def __dir__(cls) -> list[str]:
        own = {name for base in cls.__mro__[: cls.__mro__.index(BaseModel)] for name in vars(base)}
        return sorted(name for name in own - {"aliases", "model_config"} if not name.startswith("_"))


class Config(BaseModel, metaclass=_ConfigType):
    """Base class of all configs.

    Raises:
        ConfigError: one line that names the field and says what was given, what is needed and what to try.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)
    aliases: ClassVar[Mapping[str, str]] = {}  # names that people may expect here -> the field they mean

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """Validate a mapping.

        Raises:
            ConfigError: one line that names the field and says what was given, what is needed and what to try.
        """
        try:
            return cls.model_validate(dict(values))
        except ValidationError as invalid:
            raise _refusal(invalid, cls) from None

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Add the fields to the docstring, and leave the annotations out of the signature, where they would fill a page."""
        super().__pydantic_init_subclass__(**kwargs)
        fields = cls.model_fields.items()
        lines = "\n".join(_documented(name, field) for name, field in fields)
        cls.__doc__ = "\n\n".join((inspect.cleandoc(cls.__doc__ or ""), *([f"Args:\n{lines}"] if lines else [])))
        parameter = inspect.Parameter
        defaults = {name: parameter.empty if field.is_required() else _default(field) for name, field in fields}
        cls.__signature__ = inspect.Signature(
            [parameter(name, parameter.KEYWORD_ONLY, default=default) for name, default in defaults.items()]
        )

    def __repr_args__(self) -> Iterable[tuple[str, Any]]:
        """The fields that differ from their defaults: for `repr`, `str` and Rich."""
        for name, field in type(self).model_fields.items():
            if (value := getattr(self, name)) != _default(field):
                yield name, value

    def __str__(self) -> str:
        return repr(self)

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        kind = type(self).__name__
        raise ConfigError(
            f"got {name}={value!r} for a {kind}, which cannot be changed. "
            f"Try {kind}.of(config.model_dump() | {{{name!r}: {value!r}}})",
            field=name,
        )


def switch(value: Any) -> Any:
    """Lets true and false stand for a group of settings and for none, because TOML has no null."""
    return {} if value is True else None if value is False else value


# ---- errors ----


def _refusal(invalid: ValidationError, cls: type[Config]) -> ConfigError:
    """The first error of a validation, as one of ours."""
    error = invalid.errors(include_url=False)[0]
    path = error["loc"]
    if error["type"] in ("extra_forbidden", "invalid_key"):
        return ConfigError(_unknown(path, cls), field=".".join(map(str, path)))
    if error["type"] == "missing":
        if len(path) == 1:
            return ConfigError(_unknown_or_missing(invalid, cls, str(path[0])), field=str(path[0]))
        path = path[:-1]  # a tuple is too short; the error contains all of it
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)[1:]
    if error["type"] == "value_error":  # from our own validators, whose message is complete
        message = error["msg"].removeprefix("Value error, ")
        wrong = error["ctx"]["error"]
        fields = {f"{key}.{name}" if key else name: value for name, value in getattr(wrong, "tries", {}).items()}
        tries = [f"leaving out {name}" if value is None else Give(name, value) for name, value in fields.items()]
        named = key and not message.startswith("got ")
        return ConfigError(f"{key}.{message}" if named else message, field=key or None, tries=tries)
    if error["type"] == "bytes_invalid_encoding":
        return ConfigError(
            f"got {key}={_shown(error['input'])}; base64 is needed. Try 'ZGVmIA==' for 'def '", field=key
        )
    names, indices = _divided(path)
    holder = _holder(cls, names[:-1]) if names else cls
    if (
        not names or names[-1] not in holder.model_fields
    ):  # not a mapping; keys that are no text; a value of a plain dict
        what = f"{key}={_shown(error['input'])}" if key else _shown(error["input"])
        return ConfigError(f"got {what}; {error['msg'][:1].lower()}{error['msg'][1:]}. Try another", field=key or None)
    field = holder.model_fields[names[-1]]
    got, needed = _shown(error["input"]), _type(*_part(field, indices))
    if error["type"] == "finite_number":
        needed = "a finite number"
    advice = _advice(key, error.get("ctx", {}), error["input"], field)
    return ConfigError(f"got {key}={got}; {needed} is needed", field=key, tries=(advice,))


def _unknown_or_missing(invalid: ValidationError, cls: type[Config], name: str) -> str:
    """Of a field that is missing: perhaps it was given by another name."""
    for error in invalid.errors(include_url=False):
        if error["type"] == "extra_forbidden":
            return _unknown(error["loc"], cls)
    description = cls.model_fields[name].description
    return f"got no {name}; it is needed{f': {description}' if description else ''}"


def _unknown(path: _Path, cls: type[Config]) -> str:
    cls = _holder(cls, path[:-1])
    name = str(path[-1])
    known = dict(zip(cls.model_fields, cls.model_fields, strict=True)) | dict(cls.aliases)
    near = [name] if name in known else difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"Did you mean {known[near[0]]!r}?" if near else f"Known: {', '.join(cls.model_fields)}."
    return f"unknown key {'.'.join(map(str, path))!r} in {cls.__name__}. {hint}"


def _advice(key: str, bounds: Mapping[str, Any], value: Any, field: FieldInfo) -> Advice:
    """The closest allowed value if it is known, else the default."""
    near = bounds.get("ge", bounds.get("le"))
    if near is None and isinstance(value, int) and "gt" in bounds:
        near = bounds["gt"] + 1
    if near is not None:
        return f"{key}={near!r}" if "[" in key else Give(key, near)
    if field.is_required():
        return "another value"
    default = _default(field)
    return "leaving it out" if default is None or isinstance(default, Config) else Give(key.partition("[")[0], default)


def _divided(path: _Path) -> tuple[list[str], list[int]]:
    """The names in a path, and the tuple indices after them."""
    names = [part for part in path if isinstance(part, str)]
    last = max((place for place, part in enumerate(path) if isinstance(part, str)), default=-1)
    return names, [part for part in path[last + 1 :] if isinstance(part, int)]


def _holder(cls: type[Config], path: Sequence[int | str]) -> type[Config]:
    """The config class that a path leads to."""
    for name in path:
        if name in cls.model_fields:
            annotation = cls.model_fields[str(name)].annotation
            choices = get_args(annotation) or (annotation,)
            cls = next((c for c in choices if isinstance(c, type) and issubclass(c, Config)), cls)
    return cls


def _part(field: FieldInfo, indices: Sequence[int]) -> tuple[Any, list[Any]]:
    """Type and bounds of a field, or of an element of a tuple."""
    annotation, metadata = field.annotation, field.metadata
    for index in indices:
        args = get_args(annotation)
        annotation, metadata = args[0] if args[-1] is Ellipsis else args[index], []
    return annotation, metadata


def _shown(value: Any) -> str:
    """A value on one line."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


# ---- fields in words ----


def _default(field: FieldInfo) -> Any:
    return field.get_default(call_default_factory=True, validated_data={})


def _documented(name: str, field: FieldInfo) -> str:
    default = "required" if field.is_required() else f"default {_default(field)!r}"
    text = f"{name} ({_type(field.annotation, field.metadata)}, {default}): {field.description or ''}"
    return textwrap.fill(text, 112, initial_indent="    ", subsequent_indent="        ", break_on_hyphens=False)


def _type(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    """A type and its bounds, as `int in [1, 12]`."""
    *others, last = _choices(annotation, metadata)
    return f"{', '.join(others)} or {last}" if others else last


def _choices(annotation: Any, metadata: Iterable[Any]) -> list[str]:
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _choices(args[0], args[1:])
    if origin in (Union, UnionType):
        return [text for arg in args for text in _choices(arg, metadata)]
    if origin is Literal:
        return [repr(value) for value in args]
    if origin is tuple:
        return [f"tuple of {_type(args[0])}" if args[-1] is Ellipsis else f"({', '.join(map(_type, args))})"]
    if annotation is type(None):
        return ["None"]
    kind = origin or annotation
    if isinstance(kind, type) and issubclass(kind, Config):
        return [kind.__name__, "a mapping of its fields"]
    return [f"{getattr(kind, '__name__', kind)}{_bounds(metadata)}"]


def _bounds(metadata: Iterable[Any]) -> str:
    flat = [part for item in metadata for part in (item.metadata if isinstance(item, FieldInfo) else [item])]
    found = {name: getattr(part, name) for part in flat for name in ("ge", "gt", "le", "lt") if hasattr(part, name)}
    if not found:
        return ""
    (below, low), *rest = found.items()
    if not rest:
        return f" {dict(ge='>=', gt='>', le='<=', lt='<')[below]} {low:,}"
    above, high = rest[0]
    return f" in {'[' if below == 'ge' else '('}{low:,}, {high:,}{']' if above == 'le' else ')'}"
