"""Settings: the server and its token, light or dark, the limits of a run's gate, and what was done through the server."""

from __future__ import annotations

from typing import Any

from nicegui import app, ui

from bit_transformer.dashboard import formats, sources
from bit_transformer.dashboard.client import ServerError
from bit_transformer.dashboard.desk import Desk
from bit_transformer.dashboard.layout import Frame, replace_query, token_form
from bit_transformer.dashboard.pages.run_control import number, show_at
from bit_transformer.dashboard.parts import (
    SEGMENTED,
    Trouble,
    box,
    button,
    card,
    empty,
    heading,
    say,
    stat,
    table,
    text,
)
from bit_transformer.errors import BitTransformerError, ConfigError

THEMES = {"system": None, "light": False, "dark": True}
LAMBDAS = ("lambda_K", "lambda_C", "lambda_S")


def register(desk: Desk) -> None:
    """Add the page."""

    @ui.page("/settings")
    async def page(run: str = "") -> None:
        frame = Frame(desk, "Settings", "/settings")
        view = SettingsView(frame, run)
        await frame.show(view.build)


class SettingsView:
    """The page."""

    def __init__(self, frame: Frame, run: str) -> None:
        self.frame, self.run = frame, run

    async def build(self) -> None:
        """Show everything; what needs the server is read last."""
        heading("Settings", 1)
        with box("grid two top"):
            with box("grid"):
                with card("Server"):
                    self.server = ui.element("div").classes("grid")
                with card("Token", note="needed for everything that changes something"):
                    self._token()
                with card("Appearance"):
                    self._theme()
            with card("Limits of a run"):
                await self._limits()
        with card("Audit log", note="what was changed through the server, the newest first"):
            self.audit = ui.element("div").classes("grid")
        await self._server()
        await self._audit()

    async def _server(self) -> None:
        health, system = await self.frame.server.get("health"), await self.frame.server.get("system")
        queue = system.get("queue") or {}
        self.server.clear()
        with self.server:
            rows = [
                ["Address", self.frame.server.address],
                ["Version", str(health.get("version", formats.UNKNOWN))],
                ["Running since", formats.ago(health.get("started"))],
                ["Process", str(health.get("pid", formats.UNKNOWN))],
                ["Python, PyTorch", f"{system.get('python', '?')}, {system.get('torch', '?')}"],
                ["Platform", str(system.get("platform", formats.UNKNOWN))],
                [
                    "Jobs",
                    f"{queue.get('running', 0)} running, {queue.get('queued', 0)} queued, {queue.get('limit', '?')} at a time",
                ],
                ["Disk free", formats.size(system.get("disk_free"))],
            ]
            table([("", ""), ("", "")], rows, "Server")

    def _token(self) -> None:
        access, browser = self.frame.desk.access, self.frame.browser
        self.token_state = text("", "p")
        token_form(self.frame, self._token_changed)
        with box("bar"):
            self.check = button("Check", self._check, icon="verified_user")
            self.forget = button("Forget the pasted token", self._forget, kinds="bare")
        self.token_trouble = Trouble()
        text(
            "The server wrote it into the file `token` of its folder when it started first. A pasted token stays in the dashboard's memory, for this browser only.",
            "p",
            "muted small",
        )
        self._say_token(access.pasted(browser), access.token(browser) is not None)

    def _say_token(self, pasted: bool, there: bool) -> None:
        words = (
            "This browser uses a pasted token."
            if pasted
            else "The dashboard knows the token."
            if there
            else "No token: this page can look, but change nothing."
        )
        self.token_state.set_text(words)
        self.forget.set_visibility(pasted)

    async def _token_changed(self) -> None:
        access, browser = self.frame.desk.access, self.frame.browser
        self._say_token(access.pasted(browser), access.token(browser) is not None)
        await self._audit()

    async def _forget(self) -> None:
        self.frame.desk.access.forget(self.frame.browser)
        await self._token_changed()

    async def _check(self) -> None:
        wrong = await self.frame.desk.check(self.frame.desk.access.token(self.frame.browser) or "")
        if wrong:
            self.token_trouble.show(wrong)
        else:
            self.token_trouble.hide()
            say("The server takes this token")

    def _theme(self) -> None:
        now = app.storage.user.get("dark")
        value = next(name for name, dark in THEMES.items() if dark is now)
        made = ui.toggle({"system": "As the system", "light": "Light", "dark": "Dark"}, value=value).props(SEGMENTED)
        made.classes("segmented").on_value_change(lambda event: self.frame.set_dark(THEMES[event.value]))

    # ---- limits of a run ----

    async def _limits(self) -> None:
        models = await sources.models(self.frame)
        if not models:
            empty("shield", "No run yet", "Its weights of K, C and S, and the limits of its gate, can be set here.")
            return
        value = self.run if self.run in models else next(iter(models))
        choice = ui.select(models, label="Run", value=value, with_input=True).props("outlined dense").classes("w-full")
        self.limits = ui.element("div").classes("grid")
        choice.on_value_change(lambda event: self._show_limits(event.value))
        await self._show_limits(value)

    async def _show_limits(self, run: str) -> None:
        replace_query(run=run)
        self.run = run
        trouble = Trouble()
        with trouble.guard():
            found = await self.frame.server.get(f"runs/{run}")
            self.limits.clear()
            with self.limits:
                self._lambdas(found)
                self._gate(found)

    def _lambdas(self, found: dict[str, Any]) -> None:
        model = {**((found.get("config") or {}).get("model") or {}), **(found.get("steered") or {})}
        text("Weights in the loss", "h3")
        with box("fields"):
            inputs = {
                key: ui.input(key, placeholder=f"now {formats.plain(model.get(key))}").props(
                    "outlined dense stack-label inputmode=decimal"
                )
                for key in LAMBDAS
            }
        trouble = Trouble()

        async def change() -> None:
            for one in inputs.values():
                one.error = None
            trouble.hide()
            try:
                given = {key: number(key, one.value) for key, one in inputs.items() if one.value}
                if not given:
                    raise ConfigError("got no value; at least one is needed. Try 0.01 for lambda_K")
                await self.frame.server.post(f"runs/{self.run}/change", {"settings": given})
            except BitTransformerError as error:
                show_at(inputs, error, trouble)
                return
            say("Changed from the next update on")

        if found["status"] in ("running", "paused"):
            button("Change while it trains", change)
        else:
            text("They can be changed while the run trains.", "p", "muted small")

    def _gate(self, found: dict[str, Any]) -> None:
        text("Limits of its gate", "h3")
        gate = found.get("gate")
        if gate:
            with box("stats"):
                for key, value in limits_of(gate):
                    stat(key, value)
        else:
            text("It is not calibrated, so its gate cannot be used.", "p", "muted")
        alpha = ui.number(
            "False-alarm rate", value=(gate or {}).get("alpha") or 0.01, min=0.0001, max=0.49, step=0.005, format="%.4g"
        ).props("outlined dense")
        trouble = Trouble()

        async def calibrate() -> None:
            with trouble.guard():
                job = await self.frame.server.start("calibrate", run=self.run, alpha=alpha.value or 0.01)
                say(f"Job {job['id']} started; see Checkpoints, Jobs")

        button("Calibrate again" if gate else "Calibrate", calibrate, icon="shield")

    async def _audit(self) -> None:
        self.audit.clear()
        with self.audit:
            try:
                found = await self.frame.server.get("audit")
            except ServerError as refused:
                if refused.status != 401:
                    raise
                text("It is shown to those who have the token.", "p", "muted")
                return
            if not found:
                empty("receipt_long", "Nothing was changed yet", "Every request that writes is listed here.")
                return
            rows = [
                [formats.ago(one["at"]), one["method"], one["path"], str(one["status"]), str(one.get("client", ""))]
                for one in found[:100]
            ]
            table(
                [("When", "slim"), ("Method", "slim"), ("Path", ""), ("Status", "num"), ("From", "slim")],
                rows,
                "Audit log",
            )


def limits_of(gate: dict[str, Any]) -> list[tuple[str, str]]:
    """The limits of a gate, and what is normal, in figures."""
    shown = [
        (f"{key}, normal", f"{gate[key][0]:.2f} to {gate[key][1]:.2f}") for key in ("K", "C", "S") if gate.get(key)
    ]
    shown += [(f"{key}, floor", formats.figure(value)) for key, value in (gate.get("floors") or {}).items()]
    if gate.get("most_copied") is not None:
        shown.append(("Longest loop", f"{gate['most_copied']:,.0f} B"))
    return [*shown, ("False alarms", f"{100 * (gate.get('alpha') or 0):g} %")]
