// Charts that grow, and bytes that can be walked through. The page sends only new points; all points of a curve are kept here.
(() => {
  const charts = new Map(); // element id -> {spec, chart, dirty}
  const curves = new Map(); // name -> {x, mean, low, high}
  const CAP = 1200;

  const css = (name) => getComputedStyle(document.body).getPropertyValue(name).trim();
  const tone = (name) => css(`--${name}`) || css("--accent");
  const isArray = Array.isArray;

  // ---- numbers ----
  const round = (v) => (Math.abs(v) >= 1e6 ? v.toExponential(2) : String(+v.toPrecision(4)));
  function bytes(v) {
    for (const [limit, unit] of [[1e12, "TB"], [1e9, "GB"], [1e6, "MB"], [1e3, "kB"]])
      if (Math.abs(v) >= limit) return `${+(v / limit).toPrecision(3)} ${unit}`;
    return `${Math.round(v)} B`;
  }
  function short(v) {
    const size = Math.abs(v);
    if (size >= 1e9) return `${+(v / 1e9).toPrecision(3)}G`;
    if (size >= 1e6) return `${+(v / 1e6).toPrecision(3)}M`;
    if (size >= 1e4) return `${+(v / 1e3).toPrecision(3)}k`;
    return size && size < 1e-3 ? v.toExponential(1) : String(+v.toPrecision(4));
  }
  const formats = {
    number: round,
    bytes,
    speed: (v) => `${bytes(v)}/s`,
    percent: (v) => `${round(v)} %`,
    short,
  };
  const said = (spec, v) => (formats[spec.unit] || round)(v);

  // ---- curves ----
  function curve(name) {
    if (!curves.has(name)) curves.set(name, { x: [], mean: [], low: [], high: [] });
    return curves.get(name);
  }
  function append(c, more) {
    let last = c.x.length ? c.x[c.x.length - 1] : -Infinity;
    for (let i = 0; i < more.step.length; i++) {
      if (!(more.step[i] > last)) continue;
      last = more.step[i];
      c.x.push(last);
      c.mean.push(more.mean[i]);
      c.low.push(more.min ? more.min[i] : more.mean[i]);
      c.high.push(more.max ? more.max[i] : more.mean[i]);
    }
    while (c.x.length > CAP) thin(c);
  }
  // Pairs of the older two thirds become one point each: the mean of means, the least and the largest.
  function thin(c) {
    const kept = { x: [], mean: [], low: [], high: [] };
    const until = Math.floor(c.x.length / 3) * 2;
    for (let i = 0; i < until; i += 2) {
      kept.x.push(c.x[i + 1]);
      kept.mean.push((c.mean[i] + c.mean[i + 1]) / 2);
      kept.low.push(Math.min(c.low[i], c.low[i + 1]));
      kept.high.push(Math.max(c.high[i], c.high[i + 1]));
    }
    for (const part of ["x", "mean", "low", "high"]) c[part] = kept[part].concat(c[part].slice(until));
  }

  // ---- drawing ----
  const waiting = new Set();
  function later(entry) {
    waiting.add(entry);
    if (waiting.size === 1) requestAnimationFrame(() => { for (const one of waiting) draw(one); waiting.clear(); });
  }
  function axis(extra) {
    return {
      axisLine: { lineStyle: { color: css("--line") } },
      axisTick: { show: false },
      axisLabel: { color: css("--muted"), fontSize: 11, hideOverlap: true, ...(extra.axisLabel || {}) },
      splitLine: { lineStyle: { color: css("--grid") }, ...(extra.splitLine || {}) },
      nameTextStyle: { color: css("--muted"), fontSize: 11 },
    };
  }
  function lineSeries(entry) {
    const made = [];
    for (const s of entry.spec.series) {
      const c = curve(s.name), color = tone(s.tone);
      if (s.band && c.x.some((_, i) => c.high[i] > c.low[i])) {
        const hidden = { type: "line", symbol: "none", silent: true, lineStyle: { opacity: 0 }, stack: `band ${s.name}`, stackStrategy: "all", z: 1, tooltip: { show: false } };
        made.push({ ...hidden, id: `${s.name}|low`, data: c.x.map((x, i) => [x, c.low[i]]) });
        made.push({ ...hidden, id: `${s.name}|high`, data: c.x.map((x, i) => [x, c.high[i] - c.low[i]]), areaStyle: { color, opacity: 0.16 } });
      }
      made.push({
        id: s.name, name: s.label, type: "line", z: 3, showSymbol: c.x.length < 2 || !!s.dots, symbol: "circle", symbolSize: 5,
        data: c.x.map((x, i) => [x, c.mean[i]]), color, lineStyle: { width: s.width || 1.75, color, type: s.dash ? [5, 4] : "solid" },
        emphasis: { disabled: true },
      });
    }
    made.push(extras(entry));
    return made;
  }
  // What is drawn over the curves: events as lines, what is normal as an area.
  function extras({ spec, chart }) {
    const ends = spec.series.map((s) => curve(s.name).x).filter((x) => x.length);
    const first = Math.min(...ends.map((x) => x[0])), last = Math.max(...ends.map((x) => x[x.length - 1]));
    const room = (64 * (last - first)) / Math.max(200, chart.getWidth() - 60); // a label's width in steps
    let before = -Infinity;
    const written = (m) => (m.x - before < room ? "" : ((before = m.x), m.label));
    const marks = (spec.marks || []).map((m) => ({
      xAxis: m.x, lineStyle: { color: tone(m.tone), type: "dashed", width: 1, opacity: 0.9 },
      label: { formatter: written(m) || " ", color: tone(m.tone), fontSize: 10, rotate: 0, distance: 2 },
    }));
    const areas = (spec.areas || []).map((a) => [
      { yAxis: a.low, itemStyle: { color: tone(a.tone), opacity: 0.1 }, label: { show: !!a.label, formatter: a.label || "", color: css("--muted"), fontSize: 10, position: "insideTopRight" } },
      { yAxis: a.high },
    ]);
    return {
      id: "extras", type: "line", data: [], silent: true, z: 2,
      markLine: { symbol: "none", silent: true, animation: false, data: marks },
      markArea: { silent: true, animation: false, data: areas },
    };
  }
  function barSeries(entry) {
    return [{
      id: "bars", type: "bar", data: entry.spec.values || [], itemStyle: { color: tone(entry.spec.tone || "accent"), borderRadius: entry.spec.values && entry.spec.values.length > 40 ? 0 : [3, 3, 0, 0] },
      barCategoryGap: entry.spec.values && entry.spec.values.length > 40 ? "5%" : "30%", emphasis: { disabled: true },
    }];
  }
  function tooltip(entry) {
    const spec = entry.spec;
    const rows = (found) => {
      const shown = found.filter((p) => p.seriesId !== "extras" && !String(p.seriesId).includes("|"));
      if (!shown.length) return "";
      const head = spec.kind === "bar" ? esc(spec.names ? spec.names[shown[0].dataIndex] : shown[0].name) : `${esc(spec.x || "step")} ${Number(shown[0].value[0]).toLocaleString("en")}`;
      const lines = shown.map((p) => {
        const v = isArray(p.value) ? p.value[1] : p.value;
        const c = curves.get(p.seriesId);
        const range = c && c.high[p.dataIndex] > c.low[p.dataIndex] ? ` <span class="tip-range">${said(spec, c.low[p.dataIndex])} to ${said(spec, c.high[p.dataIndex])}</span>` : "";
        return `<div>${p.marker}${spec.kind === "bar" ? "" : esc(p.seriesName) + " "}<b>${v == null ? "–" : said(spec, v)}</b>${range}</div>`;
      });
      return `<div class="tip-head">${head}</div>${lines.join("")}`;
    };
    return {
      trigger: "axis", confine: true, formatter: rows, backgroundColor: css("--surface"), borderColor: css("--line"), padding: [6, 10],
      textStyle: { color: css("--text"), fontSize: 12 }, axisPointer: { type: spec.kind === "bar" ? "shadow" : "line", lineStyle: { color: css("--muted") }, shadowStyle: { color: css("--line"), opacity: 0.35 } },
    };
  }
  const esc = (text) => String(text).replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);

  function draw(entry) {
    const { spec, chart } = entry;
    if (!chart || chart.isDisposed()) return;
    const bar = spec.kind === "bar";
    const many = !bar && spec.series.length > 1;
    chart.setOption({
      animation: false,
      textStyle: { fontFamily: getComputedStyle(document.body).fontFamily },
      grid: { left: 8, right: 14, top: many ? 34 : 16, bottom: 6, outerBoundsMode: "same", outerBoundsContain: "axisLabel" },
      legend: { show: many, top: 0, left: 4, type: "scroll", icon: "roundRect", itemWidth: 12, itemHeight: 4, textStyle: { color: css("--text"), fontSize: 11 }, pageTextStyle: { color: css("--muted") }, inactiveColor: css("--muted"), data: bar ? [] : spec.series.map((s) => s.label) },
      xAxis: { type: bar ? "category" : "value", data: bar ? spec.categories || [] : undefined, min: bar ? undefined : "dataMin", max: bar ? undefined : "dataMax", ...axis({ axisLabel: bar ? {} : { formatter: short }, splitLine: { show: false } }) },
      yAxis: { type: spec.log ? "log" : "value", scale: !bar, min: spec.min, max: spec.max, ...axis({ axisLabel: { formatter: (v) => (spec.unit && spec.unit !== "number" ? said(spec, v) : short(v)) } }) },
      tooltip: tooltip(entry),
      series: bar ? barSeries(entry) : lineSeries(entry),
    }, { replaceMerge: ["series"], lazyUpdate: false });
  }
  const uses = (entry, names) => entry.spec.kind !== "bar" && entry.spec.series.some((s) => names.has(s.name));
  function redraw(names) {
    for (const entry of charts.values()) if (uses(entry, names)) later(entry);
  }

  const btlm = {
    updates: 0, points: 0, // received so far
    // A chart's element is there; it draws the curves that its spec names.
    adopt(id, spec, tries = 200) {
      const found = getElement(id);
      if (!found || !found.chart) {
        if (tries) setTimeout(() => btlm.adopt(id, spec, tries - 1), 25);
        return;
      }
      const entry = { spec, chart: found.chart };
      charts.set(id, entry);
      later(entry);
    },
    // New points: {name: {step, mean, min, max}}.
    add(found) {
      for (const [name, more] of Object.entries(found)) {
        append(curve(name), more);
        btlm.points += more.step.length;
      }
      redraw(new Set(Object.keys(found)));
      btlm.updates += 1;
    },
    // Whole curves, in place of what was there.
    set(found) {
      for (const name of Object.keys(found)) curves.delete(name);
      btlm.add(found);
    },
    // Other marks, areas, values or names for a chart.
    change(id, more, tries = 200) {
      const entry = charts.get(id);
      if (!entry) {
        if (tries) setTimeout(() => btlm.change(id, more, tries - 1), 25);
        return;
      }
      Object.assign(entry.spec, more);
      later(entry);
    },
    size(name) { return curves.has(name) ? curves.get(name).x.length : 0; },
    last(name) { return curves.has(name) ? curves.get(name).x.at(-1) : undefined; },
    paint() {
      for (const [id, entry] of charts) entry.chart.isDisposed() ? charts.delete(id) : later(entry);
    },

    // ---- bytes: one is chosen by click or arrow keys; the element gets the event "pick" with its place ----
    pick(event) {
      const box = event.currentTarget, now = box.querySelector(".picked");
      const all = [...box.querySelectorAll("[data-at]")];
      if (!all.length) return null;
      let at = now ? all.indexOf(now) : -1;
      if (event.type === "click") {
        const hit = event.target.closest("[data-at]");
        if (!hit) return null;
        at = all.indexOf(hit);
      } else {
        const move = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 16, ArrowUp: -16, Home: -1e9, End: 1e9 }[event.key];
        if (!move) return null;
        event.preventDefault();
        at = Math.max(0, Math.min(all.length - 1, at + move));
      }
      if (now) now.classList.remove("picked");
      all[at].classList.add("picked");
      all[at].scrollIntoView({ block: "nearest" });
      return Number(all[at].dataset.at);
    },
    dark() { return document.body.classList.contains("body--dark"); },
  };
  window.btlm = btlm;

  document.addEventListener("DOMContentLoaded", () => {
    new MutationObserver(() => btlm.paint()).observe(document.body, { attributes: true, attributeFilter: ["class"] });
  });
})();
