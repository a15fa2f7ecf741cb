"""The widgets of a form made from a schema."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nicegui import ui

from bit_transformer.dashboard.fields import Field, Group, differing, field_named, groups_of
from bit_transformer.dashboard.formats import flattened
from bit_transformer.dashboard.parts import attribute, box, card, text
from bit_transformer.errors import BitTransformerError, ConfigError


class Form:
    """Inputs for all fields of some configs. What is left empty has its default.

    Args:
        touched: called when something was changed.
    """

    def __init__(self, touched: Callable[[object], None]) -> None:
        self.touched = touched
        self.fields: dict[str, Field] = {}
        self.inputs: dict[str, Any] = {}
        self.wrapped: dict[str, ui.element] = {}
        self.switches: dict[str, ui.switch] = {}
        self.folds: dict[str, ui.expansion] = {}

    def add_section(
        self,
        section: str,
        schema: Mapping[str, Any],
        common: Sequence[str],
        titles: Mapping[str, str],
        leave_out: Sequence[str],
    ) -> None:
        """Make the inputs of one config: the common ones in view, the others behind a fold, nested groups behind one each."""
        own, *groups = groups_of(section, schema)
        fields = [field for field in own.fields if field.name not in leave_out]
        with card(titles[section]):
            with box("fields"):
                for name in common:
                    for field in fields:
                        if field.name == name:
                            self._input(field)
            rest = [field for field in fields if field.name not in common]
            if rest:
                with self._fold(section, f"More of {titles[section].lower()}", f"{len(rest)} settings"), box("fields"):
                    for field in rest:
                        self._input(field)
            for group in groups:
                self._group(group, titles.get(group.path, group.path))

    def _group(self, group: Group, title: str) -> None:
        with self._fold(group.path, title, group.help):
            if group.optional:
                switch = ui.switch(f"Use {title.lower()}", on_change=self.touched)
                self.switches[group.path] = switch
            with box("fields") as inner:
                for field in group.fields:
                    self._input(field)
            if group.optional:
                inner.bind_visibility_from(self.switches[group.path], "value")

    def _fold(self, path: str, title: str, caption: str) -> ui.expansion:
        self.folds[path] = ui.expansion(title, caption=caption).classes("w-full")
        return self.folds[path]

    def _input(self, field: Field) -> None:
        self.fields[field.path] = field
        label = field.name.replace("_", " ")
        with box("field") as self.wrapped[field.path]:
            if field.kind == "bool" and not field.nullable:
                made: Any = ui.switch(label, value=bool(field.default))
            elif field.kind in ("bool", "choice"):
                choices = [True, False] if field.kind == "bool" else list(field.choices)
                shown = {choice: field.text(choice) for choice in choices}
                options: dict[Any, str] = {None: "default"} if field.nullable else {}
                options |= shown
                made = ui.select(options, label=label, value=field.default).props("outlined dense")
            else:
                hint = field.text(field.default) or "default"
                made = ui.input(label, placeholder=hint).props("outlined dense stack-label")
                if field.kind in ("int", "float"):
                    made.props("inputmode=decimal")
            made.props(f'data-field="{attribute(field.path)}"')
            bounds = f" ({field.bounds})" if field.bounds else ""
            text(f"{field.help}{bounds}", kinds="help")
        made.on_value_change(self.touched)
        made.on_value_change(lambda _, path=field.path: self._mark(path))
        self.inputs[field.path] = made

    def _mark(self, path: str) -> None:
        """Show whether a field differs from its default."""
        try:
            changed = bool(differing({path: self.value(path)}, [self.fields[path]]))
        except ConfigError:
            changed = True
        self.wrapped[path].classes(add="changed" if changed else "", remove="" if changed else "changed")

    def value(self, path: str) -> Any:
        """The value of a field.

        Raises:
            ConfigError: what was typed is none.
        """
        return self.fields[path].parse(self.inputs[path].value)

    def changed(self) -> dict[str, Any]:
        """Values by path, of all fields that differ from their defaults. A group that is used but changed nowhere is {}.

        Raises:
            ConfigError: what was typed is no value of its field.
        """
        off = [path for path, switch in self.switches.items() if not switch.value]
        there = {path: self.value(path) for path, field in self.fields.items() if field.group not in off}
        found = differing(there, self.fields.values())
        for path, switch in self.switches.items():
            if switch.value and not any(name.startswith(f"{path}.") for name in found):
                found[path] = {}
        return found

    def fill(self, sections: Mapping[str, Any]) -> None:
        """Set all fields: to these values, and the others to their defaults."""
        given = flattened(sections)
        for path, switch in self.switches.items():
            section, _, name = path.partition(".")
            switch.set_value(sections.get(section, {}).get(name) not in (None, False))
        for path, field in self.fields.items():
            value = given.get(path, field.default)
            if field.kind in ("bool", "choice"):
                self.inputs[path].set_value(value)
            else:
                self.inputs[path].set_value("" if value == field.default or value is None else field.text(value))

    def clear_errors(self) -> None:
        """No field is wrong any more."""
        for one in self.inputs.values():
            if getattr(one, "error", None):
                one.error = None

    def show(self, error: BitTransformerError, *, focus: bool = False) -> bool:
        """Show an error at the field that it is about, and bring that into sight; whether there is such a field."""
        path = field_named(error.field, self.fields)
        if path is None:
            return False
        one = self.inputs[path]
        if hasattr(type(one), "error"):
            one.error = str(error)
        else:
            ui.notify(str(error), type="negative")
        for fold, made in self.folds.items():
            if path in self._within(fold):
                made.open()
        if focus and isinstance(one, ui.input):
            one.run_method("focus")
        return True

    def _within(self, fold: str) -> list[str]:
        return [path for path, field in self.fields.items() if field.group == fold]
