"""All runs: a table that stays fast with thousands, because only the rows of one page are in the browser."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from nicegui import ui
from nicegui.events import GenericEventArguments

from bit_transformer.dashboard import formats
from bit_transformer.dashboard.desk import Desk
from bit_transformer.dashboard.layout import Frame, replace_query
from bit_transformer.dashboard.parts import box, empty, heading, link_button, text
from bit_transformer.dashboard.rows import STATUSES, Row, chosen, curve_of, ordered
from bit_transformer.dashboard.sparks import sparkline

COLUMNS = (
    ("id", "Run", "left"),
    ("spark", "Curve", "left"),
    ("status", "Status", "left"),
    ("step", "Step", "right"),
    ("train_bpb", "Train", "right"),
    ("val_bpb", "Validation", "right"),
    ("held_out_bpb", "Held-out", "right"),
    ("bytes_per_s", "Speed", "right"),
    ("eta", "Left", "right"),
    ("created", "Begun", "right"),
)
_LINK = "'/runs/' + encodeURIComponent(props.row.id)"
_METER = (
    "<div v-if=\"props.row.share != null && (props.row.status == 'running' || props.row.status == 'paused')\" class=\"meter\" "
    'style="margin-top:4px"><div :style="{width: (100 * props.row.share) + \'%\'}"></div></div>'
)
_GRID = f"""
<div class="q-pa-xs col-12"><div class="run-card">
  <q-checkbox v-model="props.selected" dense :aria-label="'Select ' + props.row.id" />
  <a class="name" :href="{_LINK}">{{{{ props.row.id }}}}</a>
  <span :class="'badge ' + props.row.status">{{{{ props.row.status }}}}</span>
  <div class="line"><span>step <b>{{{{ props.row.step_text }}}}</b></span><span>train <b>{{{{ props.row.train_bpb_text }}}}</b></span>
    <span>val <b>{{{{ props.row.val_bpb_text }}}}</b></span><span v-if="props.row.status == 'running'">left <b>{{{{ props.row.eta_text }}}}</b></span></div>
  <div class="line" style="color:var(--accent)"><span v-html="props.row.spark"></span></div>
</div></div>"""


def register(desk: Desk) -> None:
    """Add the page."""

    @ui.page("/")
    async def page(q: str = "", status: str = "", page: int = 1, sort: str = "created", up: int = 0) -> None:
        frame = Frame(desk, "Runs", "/")
        view = RunsView(frame, q, [s for s in status.split(",") if s in STATUSES], max(1, page), sort, bool(up))
        await frame.show(view.build)


class RunsView:
    """The table, and what is chosen in it."""

    def __init__(self, frame: Frame, words: str, statuses: list[str], page: int, sort: str, up: bool) -> None:
        self.frame, self.words, self.statuses = frame, words, statuses
        self.pagination: dict[str, Any] = {
            "page": page,
            "rowsPerPage": 25,
            "sortBy": sort if sort in [name for name, *_ in COLUMNS] else "created",
            "descending": not up,
            "rowsNumber": 0,
        }
        self.picked: list[str] = []
        self.seen = -1

    async def build(self) -> None:
        """Read the runs and show them."""
        await self.frame.desk.rows()
        with box("head"):
            heading("Runs", 1)
            self.total = text("", kinds="muted")
            ui.element("div").classes("grow")
            self.compare = link_button("Compare", "/compare", icon="stacked_line_chart")
            link_button("New run", "/new", icon="add", kinds="main")
        with box("bar"):
            search = ui.input("Filter by name or note", value=self.words, on_change=self._search)
            search.props("outlined dense clearable debounce=200").style("flex: 1 1 220px; max-width: 360px")
            select = ui.select(
                list(STATUSES), label="Status", multiple=True, value=self.statuses, on_change=self._status
            )
            select.props("outlined dense use-chips clearable").style("flex: 0 1 260px; min-width: 150px")
        with box("card flush"):
            self.nothing = ui.element("div").style("width: 100%")
            self._table()
        self._refresh()
        self._selection()
        self.frame.every(0.5, self._poll)

    def _table(self) -> None:
        columns = [
            {"name": name, "label": label, "field": f"{name}_text", "align": align, "sortable": name != "spark"}
            for name, label, align in COLUMNS
        ]
        self.table = ui.table(rows=[], columns=columns, row_key="id", selection="multiple", pagination=self.pagination)
        self.table.on_select(lambda _: self._pick())
        self.table.props('flat :grid="Quasar.Screen.lt.md" :rows-per-page-options="[25, 50, 100]" aria-label="Runs"')
        self.table.props(""":selected-rows-label="() => ''" """)
        self.table.add_slot(
            "body-cell-id", f'<q-td :props="props"><a class="name" :href="{_LINK}">{{{{ props.row.id }}}}</a></q-td>'
        )
        self.table.add_slot("body-cell-spark", '<q-td :props="props"><span v-html="props.row.spark"></span></q-td>')
        self.table.add_slot(
            "body-cell-status",
            f'<q-td :props="props"><span :class="\'badge \' + props.row.status">{{{{ props.row.status }}}}</span>{_METER}</q-td>',
        )
        self.table.add_slot("item", _GRID)
        self.table.on("request", self._request)

    def _rows(self) -> list[Row]:
        return chosen(self.frame.desk.runs.every(), self.words, self.statuses)

    def _refresh(self) -> None:
        self.seen = self.frame.desk.runs.version
        found = self._rows()
        p = self.pagination
        key = str(p["sortBy"] or "created")
        if key != "created" or not p["descending"]:
            found = ordered(found, key, bool(p["descending"]))
        pages = max(1, -(-len(found) // p["rowsPerPage"]))
        p["page"] = min(p["page"], pages)
        first = (p["page"] - 1) * p["rowsPerPage"]
        shown = [shown_row(row) for row in found[first : first + p["rowsPerPage"]]]
        if shown != self.table.rows:
            self.table.rows = shown
        self.pagination["rowsNumber"] = len(found)
        if self.table.pagination != self.pagination:
            self.table.pagination = dict(self.pagination)
        every = self.frame.desk.runs.every()
        self.total.set_text(f"{len(found):,} of {len(every):,}" if len(found) < len(every) else f"{len(every):,}")
        self.nothing.set_visibility(not found)
        self.table.set_visibility(bool(found))
        if not found:
            self.nothing.clear()
            with self.nothing:
                nothing(bool(every))

    def _poll(self) -> None:
        if self.frame.desk.runs.version != self.seen:
            self._refresh()

    def _request(self, event: GenericEventArguments) -> None:
        asked = event.args["pagination"]
        self.pagination |= {key: asked[key] for key in ("page", "rowsPerPage", "sortBy", "descending") if key in asked}
        self._keep()
        self._refresh()

    def _search(self, event: Any) -> None:
        self.words, self.pagination["page"] = event.value or "", 1
        self._keep()
        self._refresh()

    def _status(self, event: Any) -> None:
        self.statuses, self.pagination["page"] = list(event.value or []), 1
        self._keep()
        self._refresh()

    def _keep(self) -> None:
        p = self.pagination
        replace_query(
            q=self.words,
            status=",".join(self.statuses),
            page=p["page"] if p["page"] != 1 else "",
            sort=p["sortBy"] if p["sortBy"] and p["sortBy"] != "created" else "",
            up="" if p["descending"] else 1,
        )

    def _pick(self) -> None:
        self.picked = [row["id"] for row in self.table.selected]
        self._selection()

    def _selection(self) -> None:
        count = len(self.picked)
        self.compare.set_text(f"Compare {count}" if count > 1 else "Compare")
        self.compare.set_enabled(count > 1)
        self.compare.props(f'href="/compare?runs={",".join(quote(name) for name in self.picked)}"')
        self.compare.props(
            'title="Select two runs or more"' if count < 2 else "", remove="title" if count > 1 else None
        )


def nothing(filtered: bool) -> None:
    """What is shown instead of an empty table."""
    if filtered:
        empty("filter_alt_off", "No run matches", "Remove a word or a status from the filter.")
    else:
        with empty(
            "show_chart", "No runs yet", "A run is a model in training, with its curves, samples and checkpoints."
        ):
            link_button("Start the first run", "/new", icon="add", kinds="main")


def shown_row(row: Row) -> Row:
    """A row as the table shows it: texts beside values."""
    share = row.get("share")
    return {
        "id": row["id"],
        "id_text": row["id"],
        "status": row.get("status", ""),
        "status_text": row.get("status", ""),
        "share": share,
        "spark": sparkline(curve_of(row)),
        "spark_text": "",
        "step_text": formats.count(row.get("step") or 0),
        "train_bpb_text": formats.figure(row.get("train_bpb")),
        "val_bpb_text": formats.figure(row.get("val_bpb")),
        "held_out_bpb_text": formats.figure(row.get("held_out_bpb")),
        "bytes_per_s_text": formats.speed(row.get("bytes_per_s"))
        if row.get("status") == "running"
        else formats.UNKNOWN,
        "eta_text": formats.duration(row.get("eta")) if row.get("status") == "running" else formats.UNKNOWN,
        "created_text": formats.ago(row.get("created")),
    }
