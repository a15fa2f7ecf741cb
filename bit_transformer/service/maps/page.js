// A map of surprise. The overview is in the page at once; blocks of bytes are unpacked when they are looked at.
(() => {
  "use strict";
  const $ = (id) => document.getElementById(id);
  const facts = JSON.parse($("facts").textContent);
  const { bytes: N, block: BLOCK, cells: K, reach: REACH, segments, marks } = facts;
  const BLOCKS = Math.ceil(N / BLOCK);
  const MONO = 'ui-monospace, "SF Mono", "JetBrains Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace';
  const SANS = getComputedStyle(document.body).fontFamily;
  const KINDS = { text: "text", code: "code", table: "table", markup: "markup", binary: "binary", compressed: "compressed", repeated: "repeated", zeros: "one byte" };

  // ---- numbers ----
  const clamp = (v, low, high) => Math.min(Math.max(v, low), high);
  const count = (v) => v.toLocaleString("en-US");
  const many = (v, one, more = one + "s") => `${count(v)} ${v === 1 ? one : more}`;
  const BASE = facts.begin; // offset in the file of the first byte; all other offsets here count from that byte
  const DIGITS = Math.max(6, Math.max(0, BASE + N - 1).toString(16).length);
  const digitsOf = (v) => (BASE + Math.max(0, Math.floor(v))).toString(16);
  const hex = (v, digits = 1) => "0x" + digitsOf(v).padStart(digits, "0");
  const bits = (v) => (v >= 25.45 ? "25.5+" : v.toFixed(1));
  const percent = (v) => (v > 0 && v < 0.0001 ? "< 0.01 %" : `${(100 * v).toFixed(v < 0.1 ? 2 : 1)} %`);
  function size(v) {
    for (const [limit, unit] of [[1e12, "TB"], [1e9, "GB"], [1e6, "MB"], [1e3, "kB"]])
      if (v >= limit) return `${(v / limit).toPrecision(v / limit >= 100 ? 3 : 2 + (v / limit >= 10))} ${unit}`;
    return `${v} B`;
  }
  function readNumber(text) {
    const found = text.trim().replace(/[,_\s]/g, "");
    if (/^(0x|\$)[0-9a-f]+$/i.test(found)) return parseInt(found.replace(/^(0x|\$)/i, ""), 16) - BASE;
    if (/^[0-9a-f]+h$/i.test(found)) return parseInt(found, 16) - BASE;
    return /^\d+$/.test(found) ? parseInt(found, 10) - BASE : NaN;
  }

  // ---- what is packed ----
  function unpack(text) {
    if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
    const raw = atob(text), found = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) found[i] = raw.charCodeAt(i);
    return found;
  }
  const overview = (() => {
    const raw = unpack($("overview").textContent);
    let at = 0;
    const take = (length) => raw.subarray(at, (at += length));
    const two = take(2 * K), means = new Float32Array(K);
    for (let k = 0; k < K; k++) means[k] = (two[2 * k] + 256 * two[2 * k + 1]) / facts.milli;
    return { means, peaks: take(K), edges: take(K), highest: take(BLOCKS), highestEdge: take(BLOCKS), lowest: facts.gaps.map(() => take(BLOCKS)) };
  })();
  const cellBegin = (k) => Math.floor((k * N) / K);
  const cellOf = (i) => clamp(Math.ceil(((i + 1) * K) / N) - 1, 0, K - 1);

  const cache = new Map(), asked = new Map(); // number -> block; the last used is last
  const KEPT = 96;
  let parsed = document.readyState !== "loading";
  const whenParsed = new Promise((done) => (parsed ? done() : document.addEventListener("DOMContentLoaded", () => { parsed = true; done(); })));
  const complete = (number) => parsed || $(`block-${number + 1}`); // its text may still be arriving otherwise
  function kept(number) {
    const found = cache.get(number);
    if (found) { cache.delete(number); cache.set(number, found); }
    return found;
  }
  function block(number) {
    const found = kept(number);
    if (found) return Promise.resolve(found);
    if (!asked.has(number)) asked.set(number, load(number).finally(() => asked.delete(number)));
    return asked.get(number);
  }
  async function load(number) {
    while (!complete(number)) await Promise.race([whenParsed, new Promise((done) => setTimeout(done, 30))]);
    const packed = unpack($(`block-${number}`).textContent);
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
    const raw = new Uint8Array(await new Response(stream).arrayBuffer());
    const length = Math.min(BLOCK, N - number * BLOCK);
    const found = { begin: number * BLOCK, length, data: raw.subarray(0, length), costs: raw.subarray(length, 2 * length), levels: facts.levels ? raw.subarray(2 * length) : null, edges: null };
    cache.set(number, found);
    for (const old of cache.keys()) {
      if (cache.size <= KEPT) break;
      cache.delete(old);
    }
    return found;
  }
  // Edges of a block, as overview.py computes them.
  async function edgesOf(number) {
    const here = await block(number);
    if (here.edges) return here.edges;
    const [before, after] = await Promise.all([number ? block(number - 1) : null, number + 1 < BLOCKS ? block(number + 1) : null]);
    const margin = 2 * REACH, left = before ? margin : 0, right = after ? Math.min(margin, after.length) : 0;
    const costs = new Uint8Array(left + here.length + right);
    if (before) costs.set(before.costs.subarray(before.length - left), 0);
    costs.set(here.costs, left);
    if (after) costs.set(after.costs.subarray(0, right), left + here.length);
    const sums = new Float64Array(costs.length + 1);
    for (let i = 0; i < costs.length; i++) sums[i + 1] = sums[i] + costs[i];
    const strengths = new Uint8Array(costs.length);
    for (let i = 0; i < costs.length; i++) {
      const offset = here.begin - left + i;
      if (offset < REACH || offset > N - REACH || i < REACH || i + REACH > costs.length) continue;
      strengths[i] = Math.floor((Math.abs(sums[i + REACH] - 2 * sums[i] + sums[i - REACH]) + REACH / 2) / REACH);
    }
    const found = new Uint8Array(here.length);
    next: for (let i = left; i < left + here.length; i++) {
      const strength = strengths[i];
      if (!strength) continue;
      for (let j = 1; j <= REACH; j++) if (strengths[i - j] >= strength || strengths[i + j] > strength) continue next;
      found[i - left] = strength;
    }
    return (here.edges = found);
  }

  // ---- state ----
  const state = { cursor: 0, anchor: -1, hover: -1, top: 0, per: 16, threshold: 80, edgeThreshold: 10, edges: false, dim: false, peak: false, hilbert: false, gap: 1, grey: false, from: 0, to: N };
  const threshold = () => (state.edges ? state.edgeThreshold : state.threshold);
  const values = (found) => (state.edges ? found.edges : found.costs); // null: not known yet
  const above = (() => { // bytes at or above each threshold
    const sums = (counts) => { const found = counts.slice(); for (let t = 254; t >= 0; t--) found[t] += found[t + 1]; return found; };
    return { bytes: sums(facts.counts), edges: sums(facts.edgeCounts) };
  })();
  const maximum = (() => { let t = 255; while (t > 0 && !facts.counts[t]) t--; return t; })();
  const maximumEdge = (() => { let t = 255; while (t > 0 && !facts.edgeCounts[t]) t--; return t; })();

  function inside(list, offset) { // the entry of a sorted list that an offset is in
    let low = 0, high = list.length - 1;
    while (low <= high) {
      const middle = (low + high) >> 1;
      if (offset < list[middle][0]) high = middle - 1;
      else if (offset >= list[middle][1]) low = middle + 1;
      else return middle;
    }
    return -1;
  }
  const sortedMarks = marks.map((mark, at) => [...mark, at]).sort((a, b) => a[0] - b[0]);
  const marksIn = (from, to) => sortedMarks.filter((mark) => mark[0] < to && mark[1] > from);
  const markAt = (offset) => sortedMarks.find((mark) => mark[0] <= offset && offset < mark[1]);
  const segmentAt = (offset) => segments[inside(segments, offset)];

  // ---- colours ----
  const scales = Object.fromEntries(Object.entries(facts.scales).map(([name, text]) => [name, unpack(text)]));
  let tones = {}, fills = [], inks = [], scale = null;
  const root = document.documentElement;
  const dark = () => root.dataset.theme === "dark";
  function luminance(r, g, b) {
    const line = (v) => ((v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * line(r) + 0.7152 * line(g) + 0.0722 * line(b);
  }
  function readColours() {
    const style = getComputedStyle(root);
    tones = {};
    for (const name of ["ground", "surface", "raised", "line", "grid", "text", "muted", "accent", "accent-soft", "bad", "edge"]) tones[name] = style.getPropertyValue(`--${name}`).trim();
    tones.kinds = {};
    for (const kind of Object.keys(KINDS)) tones.kinds[kind] = style.getPropertyValue(kind === "text" ? "--text-kind" : `--${kind}`).trim();
    scale = scales[(state.grey ? "grey-" : "") + (dark() ? "dark" : "light")];
    fills = []; inks = [];
    for (let q = 0; q < 256; q++) {
      const [r, g, b] = scale.subarray(3 * q, 3 * q + 3);
      fills.push(`rgb(${r},${g},${b})`);
      inks.push(luminance(r, g, b) > 0.179 ? "#000" : "#fff"); // whichever has more contrast: 4.5 to 1 at least
    }
  }
  const rgbOf = (css) => [1, 3, 5].map((at) => parseInt(css.slice(at, at + 2), 16));

  function fit(canvas, width, height) {
    const ratio = window.devicePixelRatio || 1, context = canvas.getContext("2d");
    const w = Math.round(width * ratio), h = Math.round(height * ratio);
    if (canvas.width !== w || canvas.height !== h) {
      canvas.width = w; canvas.height = h;
      canvas.style.width = `${width}px`; canvas.style.height = `${height}px`;
    }
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    return context;
  }
  const queued = new Set();
  function draw(...parts) {
    if (!queued.size) requestAnimationFrame(() => { const now = [...queued]; queued.clear(); now.forEach((part) => part()); });
    parts.forEach((part) => queued.add(part));
  }

  // ---- bytes ----
  const ROW = 20, HEAD = 24;
  const rowsBox = $("rows"), tall = $("tall"), hexCanvas = $("hex");
  const TALLEST = 8e6; // browsers limit the height of an element; beyond this the scroll bar is proportional
  let shape = null, lastScroll = 0, settle = 0;
  function layOut() {
    const width = rowsBox.clientWidth, height = rowsBox.clientHeight;
    state.per = width >= 520 ? 16 : 8;
    const probe = hexCanvas.getContext("2d");
    probe.font = `12.5px ${MONO}`;
    const left = 12, offsets = Math.ceil(DIGITS * probe.measureText("0").width) + 14;
    const groups = state.per === 16 ? 8 : 0, between = 14;
    const cell = clamp(Math.floor((width - left - offsets - groups - between - 10) / (state.per * 1.52)), 18, 31);
    const letter = clamp(Math.floor((width - left - offsets - groups - between - 6 - state.per * cell) / state.per), 9, 17);
    const x = left + offsets, text = x + state.per * cell + groups + between;
    shape = { width, height, left, x, cell, letter, groups, text, rows: Math.ceil(N / state.per) };
    shape.total = shape.rows * ROW + 8;
    shape.seen = Math.max(ROW, height - HEAD);
    shape.most = Math.max(0, shape.total - shape.seen);
    const tallest = Math.min(shape.total + HEAD, TALLEST);
    tall.style.height = `${tallest}px`;
    shape.scroll = Math.max(0, tallest - height);
    state.top = clamp(state.top, 0, shape.most);
    pushScroll();
  }
  const cellX = (column) => shape.x + column * shape.cell + (column >= 8 ? shape.groups : 0);
  function pushScroll() {
    const wanted = shape.most ? (state.top / shape.most) * shape.scroll : 0;
    if (Math.abs(rowsBox.scrollTop - wanted) >= 1) rowsBox.scrollTop = wanted;
    lastScroll = rowsBox.scrollTop;
  }
  function scrollTo(top, push = true) {
    state.top = clamp(top, 0, shape.most);
    if (push) pushScroll();
    draw(drawHex, drawMap, drawCurve);
  }
  rowsBox.addEventListener("scroll", () => {
    const now = rowsBox.scrollTop, by = now - lastScroll;
    if (Math.abs(by) < 0.5) return;
    lastScroll = now;
    // A finger moves rows; the scroll bar of a large file moves by so much that it can only mean a place.
    const near = Math.abs(by) < shape.height && now > 0 && now < shape.scroll;
    scrollTo(near && shape.scroll < shape.most ? state.top + by : (now / Math.max(1, shape.scroll)) * shape.most, false);
    clearTimeout(settle);
    settle = setTimeout(pushScroll, 200);
  });
  rowsBox.addEventListener("wheel", (event) => {
    if (event.ctrlKey) return;
    const by = event.deltaY * [1, ROW, shape.seen][event.deltaMode];
    if ((by < 0 && state.top <= 0) || (by > 0 && state.top >= shape.most)) return; // the page scrolls on
    event.preventDefault();
    scrollTo(state.top + by);
  }, { passive: false });
  const firstSeen = () => Math.floor(state.top / ROW) * state.per;
  const lastSeen = () => Math.min(N, Math.ceil((state.top + shape.seen) / ROW) * state.per);
  const selection = () => (state.anchor < 0 ? [state.cursor, state.cursor + 1] : [Math.min(state.anchor, state.cursor), Math.max(state.anchor, state.cursor) + 1]);

  function drawHex() {
    const context = fit(hexCanvas, shape.width, shape.height), { per, edges } = state, least = threshold();
    const middle = ROW / 2 + 0.5, first = Math.floor(state.top / ROW), last = Math.min(shape.rows, Math.ceil((state.top + shape.seen) / ROW));
    context.textBaseline = "middle";
    context.font = `12.5px ${MONO}`;
    const [chosen, chosenEnd] = selection(), outlined = marksIn(first * per, last * per);
    let missing = false;
    for (let row = first; row < last; row++) {
      const y = HEAD + row * ROW - state.top, offset = row * per;
      const segment = segmentAt(offset);
      if (segment) { context.fillStyle = tones.kinds[segment[2]]; context.fillRect(0, y, 4, ROW); }
      context.textAlign = "left";
      context.fillStyle = tones.muted;
      context.fillText(digitsOf(offset).padStart(DIGITS, "0"), shape.left, y + middle);
      const found = kept(Math.floor(offset / BLOCK)), shown = found && values(found);
      context.textAlign = "center";
      for (let column = 0; column < per && offset + column < N; column++) {
        const x = cellX(column), t = shape.text + column * shape.letter, i = offset + column;
        if (!shown) {
          missing = true;
          context.fillStyle = tones.raised;
          context.fillRect(x + 4, y + 6, shape.cell - 8, ROW - 12);
          continue;
        }
        const value = found.data[i - found.begin], cost = shown[i - found.begin];
        const lit = edges ? cost >= least && cost > 0 : !state.dim || cost >= least;
        if (lit) {
          context.fillStyle = fills[cost];
          context.fillRect(x, y, shape.cell, ROW);
          context.fillRect(t, y, shape.letter, ROW);
        }
        context.fillStyle = lit ? inks[cost] : tones.muted;
        context.fillText(HEXES[value], x + shape.cell / 2, y + middle);
        context.fillText(value >= 32 && value < 127 ? String.fromCharCode(value) : "·", t + shape.letter / 2, y + middle);
      }
    }
    for (const [from, to] of outlined) outline(context, Math.max(from, first * per), Math.min(to, last * per), from, to, tones.bad);
    if (state.anchor >= 0) outline(context, Math.max(chosen, first * per), Math.min(chosenEnd, last * per), chosen, chosenEnd, tones.accent);
    for (const [at, width] of [[state.hover, 1], [state.cursor, 2]]) {
      if (at < first * per || at >= last * per) continue;
      const y = HEAD + Math.floor(at / per) * ROW - state.top, column = at % per;
      for (const [colour, thick] of [[tones.surface, width + 1.5], [width === 2 ? tones.accent : tones.text, width]]) { // seen on every colour
        context.strokeStyle = colour;
        context.lineWidth = thick;
        context.strokeRect(cellX(column) + thick / 2, y + thick / 2, shape.cell - thick, ROW - thick);
        context.strokeRect(shape.text + column * shape.letter + thick / 2, y + thick / 2, shape.letter - thick, ROW - thick);
      }
    }
    context.fillStyle = tones.surface;
    context.fillRect(0, 0, shape.width, HEAD);
    context.fillStyle = tones.line;
    context.fillRect(0, HEAD - 1, shape.width, 1);
    context.fillStyle = tones.muted;
    context.font = `11px ${MONO}`;
    context.textAlign = "left";
    context.fillText("offset", shape.left, HEAD / 2);
    context.fillText("text", shape.text + 2, HEAD / 2);
    context.textAlign = "center";
    const under = (state.hover >= 0 ? state.hover : state.cursor) % per;
    for (let column = 0; column < per; column++) {
      context.fillStyle = column === under ? tones.text : tones.muted;
      context.fillText(HEXES[column], cellX(column) + shape.cell / 2, HEAD / 2);
    }
    if (missing) {
      const wanted = [...new Set([first * per, Math.min(last * per, N) - 1].map((i) => Math.floor(i / BLOCK)))];
      Promise.all(wanted.map((number) => (edges ? edgesOf(number) : block(number)))).then(() => draw(drawHex, say));
    } else if (!window.btlm.ready) {
      window.btlm.ready = true;
      window.btlm.readyAfter = performance.now();
      root.dataset.ready = "yes";
    }
    drawn = missing ? drawn : drawn + 1;
  }
  let drawn = 0;
  const HEXES = Array.from({ length: 256 }, (_, v) => v.toString(16).padStart(2, "0"));
  function outline(context, from, to, begin, end, colour) {
    edge(context, from, to, begin, end, tones.surface, 3.5);
    edge(context, from, to, begin, end, colour, 2);
  }
  function edge(context, from, to, begin, end, colour, width) {
    const { per } = state;
    context.fillStyle = colour;
    for (let i = from; i < to; i++) {
      const y = HEAD + Math.floor(i / per) * ROW - state.top, column = i % per;
      for (const [x, w] of [[cellX(column), shape.cell], [shape.text + column * shape.letter, shape.letter]]) {
        if (i - per < begin) context.fillRect(x, y, w, width);
        if (i + per >= end) context.fillRect(x, y + ROW - width, w, width);
        if (i === begin || column === 0) context.fillRect(x, y, width, ROW);
        if (i === end - 1 || column === per - 1) context.fillRect(x + w - width, y, width, ROW);
      }
    }
  }
  function byteUnder(event, near = false) {
    const box = rowsBox.getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top - HEAD;
    if (!near && (y < 0 || x >= shape.width)) return -1;
    const row = clamp(Math.floor((y + state.top) / ROW), 0, Math.max(0, shape.rows - 1));
    const end = shape.x + state.per * shape.cell + shape.groups;
    let column = -1;
    if (x >= shape.x && x < end) column = Math.floor((x - shape.x - (x >= cellX(8) - shape.groups / 2 && state.per === 16 ? shape.groups : 0)) / shape.cell);
    else if (x >= shape.text && x < shape.text + state.per * shape.letter) column = Math.floor((x - shape.text) / shape.letter);
    else if (near) column = x < shape.x ? 0 : state.per - 1;
    if (column < 0) return -1;
    const i = row * state.per + clamp(column, 0, state.per - 1);
    return i < N ? i : near ? N - 1 : -1;
  }
  let selecting = false;
  hexCanvas.addEventListener("click", (event) => { // a finger: one that scrolls makes no click
    const at = byteUnder(event);
    if (at < 0 || event.pointerType === "mouse" || !event.pointerType) return;
    state.anchor = -1;
    setCursor(at, { show: false });
  });
  hexCanvas.addEventListener("pointerdown", (event) => {
    const at = byteUnder(event);
    if (at < 0 || event.button || event.pointerType !== "mouse") return;
    if (event.shiftKey) { if (state.anchor < 0) state.anchor = state.cursor; } else state.anchor = -1;
    setCursor(at, { show: false });
    rowsBox.focus({ preventScroll: true });
    selecting = true;
    hexCanvas.setPointerCapture(event.pointerId);
  });
  hexCanvas.addEventListener("pointermove", (event) => {
    if (selecting) {
      const at = byteUnder(event, true);
      if (at === state.cursor) return;
      if (state.anchor < 0) state.anchor = state.cursor;
      setCursor(at, { show: true });
      return;
    }
    const at = event.pointerType === "mouse" ? byteUnder(event) : -1;
    if (at !== state.hover) { state.hover = at; draw(drawHex, say); }
  });
  hexCanvas.addEventListener("pointerup", () => (selecting = false));
  hexCanvas.addEventListener("pointercancel", () => (selecting = false));
  hexCanvas.addEventListener("pointerleave", () => { if (state.hover >= 0) { state.hover = -1; draw(drawHex, say); } });

  function setCursor(at, { show = true, centre = false } = {}) {
    if (!N) return;
    state.cursor = clamp(Math.floor(at), 0, N - 1);
    state.hover = -1;
    const y = Math.floor(state.cursor / state.per) * ROW;
    if (centre) scrollTo(y - (shape.seen - ROW) / 2);
    else if (show && y < state.top) scrollTo(y);
    else if (show && y + ROW > state.top + shape.seen) scrollTo(y + ROW - shape.seen);
    draw(drawHex, drawMap, drawCurve, say, drawList);
    speakSoon();
  }
  async function jump(at, more = {}) {
    if (!N) return;
    state.anchor = -1;
    setCursor(at, { centre: true });
    const goal = Math.floor(state.cursor / BLOCK), now = drawn;
    if (more.end > at + 1) { state.anchor = clamp(more.end - 1, 0, N - 1); }
    if (state.cursor < state.from || state.cursor >= state.to) {
      const span = state.to - state.from;
      zoom(clamp(state.cursor - span / 2, 0, N - span), span);
    }
    await (state.edges ? edgesOf(goal) : block(goal));
    while (drawn === now) await new Promise(requestAnimationFrame);
  }

  // ---- the byte ----
  const row = (name, ...parts) => {
    const term = document.createElement("dt"), said = document.createElement("dd");
    term.textContent = name;
    said.append(...parts);
    return [term, said];
  };
  const part = (tag, text, kind = "") => {
    const made = document.createElement(tag);
    made.textContent = text;
    if (kind) made.className = kind;
    return made;
  };
  const letterOf = (value) => (value >= 32 && value < 127 ? `'${String.fromCharCode(value)}'` : { 0: "NUL", 9: "TAB", 10: "LF", 13: "CR", 27: "ESC", 127: "DEL" }[value] || "");
  const share = (cost) => { // of the bytes that cost less
    let less = 0;
    for (let q = 0; q < cost; q++) less += facts.counts[q];
    return less / Math.max(1, N);
  };
  const compared = segments.some((s) => s[4] !== null);
  const segmentWords = (s) => `${KINDS[s[2]]} ${hex(s[0])} – ${hex(s[1])}, ${s[3].toFixed(2)} bits per byte`;
  const likeWords = (like) => (like === null || like === undefined ? "" : like ? "like the reference" : "not like the reference");
  function say() {
    const at = state.hover >= 0 ? state.hover : state.cursor, found = N ? kept(Math.floor(at / BLOCK)) : null;
    $("byte-title").textContent = state.hover >= 0 ? "Byte under the pointer" : "Byte at the cursor";
    if (!found) return;
    const i = at - found.begin, value = found.data[i], cost = found.costs[i] / facts.steps, segment = segmentAt(at), mark = markAt(at);
    const chip = part("span", "", "meter");
    chip.style.background = fills[found.costs[i]];
    const lines = [
      ...row("Offset", part("b", hex(at, DIGITS), "mono"), part("span", `  ${count(BASE + at)}`, "sub mono")),
      ...row("Value", part("b", `0x${HEXES[value]}  ${letterOf(value)}`, "mono"), part("span", `  ${value}  ${value.toString(2).padStart(8, "0")}`, "sub mono")),
      ...row("Surprise", chip, part("b", `${bits(cost)} bits`), part("span", `  above ${percent(share(found.costs[i]))} of all`, "sub")),
    ];
    if (segment) {
      const swatch = part("span", "", "chip");
      swatch.style.background = tones.kinds[segment[2]];
      lines.push(...row("Segment", swatch, part("b", KINDS[segment[2]]), part("span", `  ${segment[3].toFixed(2)} bits/byte`, "sub")));
    } else lines.push(...row("Segment", part("span", "none", "sub")));
    if (compared) lines.push(...row("Reference", part("span", segment ? likeWords(segment[4]) : "none", segment && segment[4] !== null ? (segment[4] ? "yes" : "no") : "sub")));
    if (marks.length) lines.push(...row("Mark", mark ? part("b", mark[2]) : part("span", "none", "sub"), mark ? part("span", `  ${mark[3].toFixed(1)} bits`, "sub") : ""));
    const [from, to] = selection();
    lines.push(...row("Selected", ...(to - from > 1 ? [part("b", many(to - from, "byte")), part("span", " …", "sub")] : [part("span", "1 byte", "sub")])));
    $("facts-of-byte").replaceChildren(...lines);
    if (to - from > 1) sumUp(from, to, $("facts-of-byte").lastChild.lastChild);
    const box = $("bits");
    if (found.levels) {
      box.className = "bits";
      box.replaceChildren(...Array.from({ length: 8 }, (_, bit) => {
        const pair = found.levels[4 * i + (bit >> 1)], level = bit & 1 ? pair & 15 : pair >> 4, price = facts.levels[level];
        const cell = document.createElement("div"), q = Math.min(255, Math.round(price * 10 * 2)); // a bit is dear at half of what a byte is
        cell.append(part("b", String((value >> (7 - bit)) & 1), "mono"), part("span", price >= 12 ? "12+" : price < 0.1 && price ? price.toFixed(2) : price.toFixed(1)));
        cell.style.background = fills[q];
        cell.style.color = inks[q];
        cell.title = `Bit ${7 - bit}: about ${price} bits`;
        return cell;
      }));
    } else {
      box.className = "bits none";
      box.textContent = "Costs of single bits were not kept.";
    }
    const status = $("status");
    status.replaceChildren(part("b", hex(at, DIGITS)), `  ${HEXES[value]} ${letterOf(value)}  `, part("b", `${bits(cost)} bits`), `  ${segment ? KINDS[segment[2]] : ""}${mark ? `  ${mark[2]}` : ""}`);
    if (busy) status.replaceChildren(busy);
  }
  let summing = 0;
  async function sumUp(from, to, into) {
    const mine = ++summing;
    let total = 0;
    const exact = to - from <= 32 * BLOCK;
    if (exact) {
      for (let number = Math.floor(from / BLOCK); number * BLOCK < to; number++) {
        const found = await block(number);
        if (mine !== summing) return;
        for (let i = Math.max(0, from - found.begin); i < Math.min(found.length, to - found.begin); i++) total += found.costs[i];
      }
      total /= facts.steps;
    } else total = between(from, to).mean * (to - from);
    into.textContent = `  ${exact ? "" : "about "}${(total / (to - from)).toFixed(2)} bits/byte`;
    into.title = `${exact ? "" : "About "}${count(Math.round(total))} bits`;
  }
  let speaking = 0;
  function speakSoon() {
    clearTimeout(speaking);
    speaking = setTimeout(() => {
      const found = kept(Math.floor(state.cursor / BLOCK));
      if (!found) return;
      const i = state.cursor - found.begin, segment = segmentAt(state.cursor);
      $("spoken").textContent = `Offset ${hex(state.cursor)}, byte ${HEXES[found.data[i]]} ${letterOf(found.data[i])}, ${bits(found.costs[i] / facts.steps)} bits${segment ? `, ${KINDS[segment[2]]}` : ""}`;
    }, 400);
  }

  // ---- the overview of a range ----
  function between(from, to) {
    let total = 0, weight = 0, peak = 0, edge = 0;
    for (let k = cellOf(from), last = cellOf(Math.max(from, to - 1)); k <= last; k++) {
      const begin = Math.max(from, cellBegin(k)), part = Math.max(1, Math.min(to, cellBegin(k + 1)) - begin);
      total += overview.means[k] * part;
      weight += part;
      if (overview.peaks[k] > peak) peak = overview.peaks[k];
      if (overview.edges[k] > edge) edge = overview.edges[k];
    }
    return { mean: weight ? total / weight : 0, peak, edge };
  }

  // ---- the map ----
  const mapBox = $("map-box"), mapCanvas = $("map"), picture = document.createElement("canvas"), kindsPicture = document.createElement("canvas");
  const ORDER = clamp(Math.floor(Math.log2(Math.max(1, Math.min(N, K))) / 2), 0, 8);
  let curveX = null, curveY = null, curveD = null;
  function makeHilbert() { // columns and rows along the curve, and back
    if (curveX) return;
    const side = 1 << ORDER;
    curveX = new Uint16Array(side * side); curveY = new Uint16Array(side * side); curveD = new Uint32Array(side * side);
    for (let d = 0; d < side * side; d++) {
      let x = 0, y = 0;
      for (let s = 1, t = d; s < side; s *= 2, t = Math.floor(t / 4)) {
        const rx = 1 & (t >> 1), ry = 1 & (t ^ rx);
        if (!ry) { if (rx) { x = s - 1 - x; y = s - 1 - y; } [x, y] = [y, x]; }
        x += s * rx; y += s * ry;
      }
      curveX[d] = x; curveY[d] = y; curveD[y * side + x] = d;
    }
  }
  let map = null, mapStale = true;
  function layOutMap() {
    const width = mapBox.clientWidth, height = mapBox.clientHeight;
    if (state.hilbert) {
      makeHilbert();
      const side = 1 << ORDER, wide = width > height * 1.4;
      const span = Math.max(40, Math.floor(wide ? Math.min(height, (width - 12) / 2) : Math.min(width, (height - 30) / 2)));
      const second = wide ? [span + 12, 0] : [0, span + 26];
      map = { width, height, side, span, second, cells: side * side, x: 0, y: 0 };
    } else {
      const strip = 12, ticks = marks.length ? 10 : 0, x = strip + 4, w = Math.max(8, width - x - ticks - (ticks ? 4 : 0));
      let unit = 2;
      while (unit < 16 && Math.floor(w / unit) * Math.floor(height / unit) > Math.max(64, Math.min(N, K))) unit++;
      const columns = Math.max(1, Math.floor(w / unit)), rows = Math.max(1, Math.floor(height / unit));
      map = { width, height, unit, columns, rows, cells: columns * rows, x, w: columns * unit, h: rows * unit, strip, ticks };
    }
    mapStale = true;
  }
  const mapCell = (offset) => clamp(Math.floor(((offset + 0.5) * map.cells) / N), 0, map.cells - 1);
  const mapBegin = (cell) => Math.ceil((cell * N) / map.cells - 1e-9);
  function paintMap() {
    mapStale = false;
    const side = map.side, columns = side || map.columns, rows = side || map.rows;
    picture.width = columns; picture.height = rows;
    const context = picture.getContext("2d"), image = context.createImageData(columns, rows), pixels = image.data;
    const empty = rgbOf(tones.raised), least = threshold();
    const kinds = side ? new ImageData(columns, rows) : null, shades = Object.fromEntries(Object.entries(tones.kinds).map(([kind, css]) => [kind, rgbOf(css)]));
    let segment = 0;
    for (let cell = 0; cell < map.cells; cell++) {
      const from = Math.floor((cell * N) / map.cells), to = Math.max(from + 1, Math.floor(((cell + 1) * N) / map.cells));
      const { mean, peak, edge } = between(from, Math.min(to, N)), at = 4 * (side ? curveY[cell] * side + curveX[cell] : cell);
      const value = state.edges ? edge : state.peak ? peak : Math.min(255, Math.round(mean * facts.steps));
      const lit = state.edges ? edge >= least && edge > 0 : !state.peak || !state.dim || peak >= least;
      pixels[at] = lit ? scale[3 * value] : empty[0];
      pixels[at + 1] = lit ? scale[3 * value + 1] : empty[1];
      pixels[at + 2] = lit ? scale[3 * value + 2] : empty[2];
      pixels[at + 3] = 255;
      if (!kinds) continue;
      while (segment < segments.length - 1 && segments[segment][1] <= from) segment++;
      kinds.data.set([...(segments.length ? shades[segments[segment][2]] : empty), 255], at);
    }
    context.putImageData(image, 0, 0);
    if (kinds) {
      kindsPicture.width = columns; kindsPicture.height = rows;
      kindsPicture.getContext("2d").putImageData(kinds, 0, 0);
    }
  }
  function drawMap() {
    if (!map || !N) return;
    if (mapStale) paintMap();
    const context = fit(mapCanvas, map.width, map.height), from = firstSeen(), to = lastSeen();
    const rings = sortedMarks.length <= 200; // more would hide the map
    context.imageSmoothingEnabled = false;
    mapCanvas.setAttribute("aria-valuemax", N - 1);
    mapCanvas.setAttribute("aria-valuenow", state.cursor);
    mapCanvas.setAttribute("aria-valuetext", `offset ${hex(state.cursor)}`);
    if (state.hilbert) {
      const [sx, sy] = map.second, { span, side } = map, unit = span / side;
      context.imageSmoothingEnabled = unit < 1;
      context.drawImage(picture, 0, 0, span, span);
      context.drawImage(kindsPicture, sx, sy, span, span);
      if (!sx) {
        context.fillStyle = tones.muted;
        context.font = `11px ${SANS}`;
        context.textBaseline = "middle";
        context.fillText("Segments, in the same order", 0, sy - 11);
      }
      context.strokeStyle = tones.line;
      context.lineWidth = 1;
      for (const [x, y] of [[0, 0], [sx, sy]]) context.strokeRect(x + 0.5, y + 0.5, span - 1, span - 1);
      const dot = (cell, colour, least) => {
        const w = Math.max(unit, least);
        for (const [x, y] of [[0, 0], [sx, sy]]) {
          context.strokeStyle = colour;
          context.strokeRect(x + (curveX[cell] + 0.5) * unit - w / 2, y + (curveY[cell] + 0.5) * unit - w / 2, w, w);
        }
      };
      context.lineWidth = 1.5;
      for (const mark of sortedMarks) dot(mapCell(mark[0]), tones.bad, rings ? 6 : 1);
      const first = mapCell(from), last = mapCell(Math.max(from, to - 1));
      context.lineWidth = 2;
      let [left, right, up, down] = [side, 0, side, 0];
      for (let cell = first; cell <= last && cell < first + 4096; cell++) {
        left = Math.min(left, curveX[cell]); right = Math.max(right, curveX[cell]);
        up = Math.min(up, curveY[cell]); down = Math.max(down, curveY[cell]);
      }
      for (const [x, y] of [[0, 0], [sx, sy]]) {
        const w = Math.max(9, (right - left + 1) * unit + 4), h = Math.max(9, (down - up + 1) * unit + 4);
        const cx = clamp(((left + right + 1) / 2) * unit, w / 2, span - w / 2), cy = clamp(((up + down + 1) / 2) * unit, h / 2, span - h / 2);
        frame(context, x + cx - w / 2, y + cy - h / 2, w, h);
      }
    } else {
      const { x, w, h, strip, unit } = map;
      context.drawImage(picture, x, 0, w, h);
      let lastY = -1;
      for (const [begin, end, kind] of segments) {
        const y = (begin / N) * h, bottom = (end / N) * h;
        if (bottom - lastY < 0.25 && bottom - y < 0.25) continue; // thinner than can be seen
        lastY = bottom;
        context.fillStyle = tones.kinds[kind];
        context.fillRect(0, y, strip, Math.max(0.5, bottom - y));
      }
      context.fillStyle = tones.bad;
      for (const mark of sortedMarks) context.fillRect(map.width - map.ticks, (mark[0] / N) * h, map.ticks, Math.max(2, ((mark[1] - mark[0]) / N) * h));
      context.strokeStyle = tones.bad;
      context.lineWidth = 1.5;
      for (const mark of sortedMarks) {
        const cell = mapCell(mark[0]), room = rings ? 2 : 0;
        context.strokeRect(x + (cell % map.columns) * unit - room, Math.floor(cell / map.columns) * unit - room, unit + 2 * room, unit + 2 * room);
      }
      const first = mapCell(from), last = mapCell(Math.max(from, to - 1));
      const y = Math.floor(first / map.columns) * unit, bottom = (Math.floor(last / map.columns) + 1) * unit;
      frame(context, 2, Math.max(2, y - 1), x + w - 4, Math.min(map.height - 2, Math.max(bottom + 1, 6)) - Math.max(2, y - 1));
      if (first >= 0 && last - first < map.columns) { // where in the row
        context.fillStyle = tones.accent;
        const cx = x + ((first + last) / 2 % map.columns) * unit + unit / 2;
        context.beginPath();
        context.moveTo(cx - 4, y - 8 < 0 ? bottom + 8 : y - 8); context.lineTo(cx + 4, y - 8 < 0 ? bottom + 8 : y - 8); context.lineTo(cx, y - 8 < 0 ? bottom + 2 : y - 2);
        context.fill();
      }
    }
  }
  function frame(context, x, y, w, h) { // seen on every colour
    context.lineWidth = 4;
    context.strokeStyle = tones.surface;
    context.strokeRect(x, y, w, h);
    context.lineWidth = 2;
    context.strokeStyle = tones.accent;
    context.strokeRect(x, y, w, h);
  }
  function mapUnder(event, near = false) { // the cell under the pointer
    const box = mapCanvas.getBoundingClientRect();
    let x = event.clientX - box.left, y = event.clientY - box.top;
    if (state.hilbert) {
      const [sx, sy] = map.second, { span, side } = map;
      if (sx && x >= sx) x -= sx;
      if (sy && y >= sy) y -= sy;
      if (!near && (x < 0 || y < 0 || x >= span || y >= span)) return -1;
      return curveD[clamp(Math.floor((y / span) * side), 0, side - 1) * side + clamp(Math.floor((x / span) * side), 0, side - 1)];
    }
    const line = clamp(Math.floor(y / map.unit), 0, map.rows - 1);
    return line * map.columns + clamp(Math.floor((x - map.x) / map.unit), 0, map.columns - 1);
  }
  let dragging = false;
  const jumpMap = (event) => { const cell = mapUnder(event, true); if (cell >= 0) jump(Math.min(N - 1, mapBegin(cell))); };
  mapCanvas.addEventListener("pointerdown", (event) => { if (!N || event.button) return; dragging = true; mapCanvas.setPointerCapture(event.pointerId); if (event.pointerType !== "touch") jumpMap(event); });
  mapCanvas.addEventListener("pointerup", (event) => { if (dragging && event.pointerType === "touch") { jumpMap(event); hideTip(); } });
  mapCanvas.addEventListener("pointermove", (event) => {
    if (!N) return;
    if (dragging) jumpMap(event);
    const cell = mapUnder(event);
    if (cell < 0) return hideTip();
    const from = Math.min(N - 1, Math.floor((cell * N) / map.cells)), to = Math.max(from + 1, Math.floor(((cell + 1) * N) / map.cells));
    tip(event, rangeWords(from, to));
  });
  for (const name of ["pointerup", "pointercancel"]) mapCanvas.addEventListener(name, () => (dragging = false));
  mapCanvas.addEventListener("pointerleave", hideTip);
  mapCanvas.addEventListener("keydown", (event) => {
    const by = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1, PageDown: 10, PageUp: -10 }[event.key];
    if (!by && event.key !== "Home" && event.key !== "End") return;
    event.preventDefault(); event.stopPropagation();
    jump(event.key === "Home" ? 0 : event.key === "End" ? N - 1 : clamp(state.cursor + (by * N) / 100, 0, N - 1));
  });
  function rangeWords(from, to) {
    const { mean, peak, edge } = between(from, to), segment = segmentAt(from), mark = marksIn(from, to)[0];
    const place = to - from > 1 ? `${hex(from, DIGITS)} – ${hex(to - 1, DIGITS)}  ${size(to - from)}` : hex(from, DIGITS);
    const lines = [place, `mean ${mean.toFixed(2)}  peak ${bits(peak / facts.steps)} bits${edge ? `  edge ${bits(edge / facts.steps)}` : ""}`];
    if (segment) lines.push(segmentWords(segment));
    if (mark) lines.push(mark[2]);
    return lines.join("\n");
  }
  function tip(event, words) {
    const box = $("tip");
    box.textContent = words;
    box.hidden = false;
    const x = event.clientX + 14, y = event.clientY + 16;
    box.style.left = `${Math.max(8, x + box.offsetWidth > innerWidth - 8 ? event.clientX - box.offsetWidth - 10 : x)}px`;
    box.style.top = `${y + box.offsetHeight > innerHeight - 8 ? event.clientY - box.offsetHeight - 10 : y}px`;
  }
  function hideTip() { $("tip").hidden = true; }

  // ---- the curve ----
  const curveBox = $("curve-box"), curveCanvas = $("curve");
  let plot = null, crosshair = -1;
  const LEAST = 32; // bytes in view at most zoom
  function zoom(from, span) {
    span = clamp(span, Math.min(LEAST, N), N);
    state.from = clamp(Math.round(from), 0, N - Math.round(span));
    state.to = state.from + Math.round(span);
    draw(drawCurve);
  }
  function zoomAt(factor, at = state.cursor >= state.from && state.cursor < state.to ? state.cursor : (state.from + state.to) / 2) {
    const span = clamp((state.to - state.from) * factor, Math.min(LEAST, N), N);
    zoom(at - ((at - state.from) / (state.to - state.from)) * span, span);
  }
  function gather(width) { // mean, peak and edge of each column
    const { from, to } = state, per = (to - from) / width, first = Math.floor(from / BLOCK), last = Math.floor(Math.max(from, to - 1) / BLOCK);
    const close = per < N / K && last - first < 40; // cells are too coarse: bytes themselves
    const blocks = [];
    if (close) {
      for (let number = first; number <= last; number++) blocks.push(kept(number));
      const missing = blocks.map((found, at) => (found && (!state.edges || found.edges) ? -1 : first + at)).filter((number) => number >= 0);
      if (missing.length) Promise.all(missing.map((number) => (state.edges ? edgesOf(number) : block(number)))).then(() => draw(drawCurve));
    }
    const exact = close && blocks.every((found) => found && (!state.edges || found.edges));
    const means = new Float32Array(width), peaks = new Float32Array(width), edges = new Float32Array(width);
    for (let x = 0; x < width; x++) {
      const begin = Math.min(N - 1, Math.floor(from + x * per)), end = clamp(Math.floor(from + (x + 1) * per), begin + 1, N);
      if (!exact) {
        const found = between(begin, end);
        means[x] = found.mean; peaks[x] = found.peak / facts.steps; edges[x] = found.edge;
        continue;
      }
      let total = 0, peak = 0, edge = 0;
      for (let i = begin; i < end; i++) {
        const found = blocks[Math.floor(i / BLOCK) - first], cost = found.costs[i - found.begin];
        total += cost;
        if (cost > peak) peak = cost;
        if (state.edges && found.edges[i - found.begin] > edge) edge = found.edges[i - found.begin];
      }
      means[x] = total / (end - begin) / facts.steps; peaks[x] = peak / facts.steps; edges[x] = edge;
    }
    return { means, peaks, edges, exact };
  }
  function ticksOf(from, to, most) { // round in hex
    let step = 1;
    for (const grow of [2, 2, 4]) while ((to - from) / step > most && step * grow <= 2 ** 40) { step *= grow; if ((to - from) / step <= most) break; }
    while ((to - from) / step > most) step *= 2;
    const found = [];
    for (let at = Math.ceil(from / step) * step; at < to; at += step) found.push(at);
    return found;
  }
  function drawCurve() {
    if (!N) return;
    const full = curveBox.clientWidth, height = curveBox.clientHeight, context = fit(curveCanvas, full, height);
    const left = 26, top = 6, bottom = 26, w = Math.max(10, full - left - 2), h = height - top - bottom, { from, to } = state;
    const { means, peaks, edges, exact } = gather(w);
    let highest = 0;
    for (let x = 0; x < w; x++) highest = Math.max(highest, peaks[x]);
    const most = clamp(Math.ceil(highest / 4) * 4, 8, 28), y = (v) => top + h - (Math.min(v, most) / most) * h, x = (offset) => left + ((offset - from) / (to - from)) * w;
    plot = { left, top, w, h, from, to };
    context.font = `11px ${SANS}`;
    context.textBaseline = "middle";
    context.textAlign = "right";
    for (let v = 0; v <= most; v += 4) {
      context.fillStyle = tones.grid;
      context.fillRect(left, Math.round(y(v)), w, 1);
      context.fillStyle = tones.muted;
      context.fillText(v, left - 6, y(v));
    }
    const seen = [x(firstSeen()), x(lastSeen())];
    if (seen[1] > left && seen[0] < left + w) {
      const begin = Math.max(left, seen[0]), span = Math.max(2, Math.min(left + w, seen[1]) - begin);
      context.fillStyle = tones["accent-soft"];
      context.fillRect(begin, top, span, h);
      context.fillStyle = tones.accent;
      context.fillRect(begin, top - 4, span, 3);
    }
    context.fillStyle = tones.edge;
    context.globalAlpha = 0.38;
    for (let i = 0; i < w; i++) { const a = y(peaks[i]), b = y(means[i]); context.fillRect(left + i, a, 1, Math.max(0.5, b - a)); }
    context.globalAlpha = 1;
    if (state.edges) {
      for (let i = 0; i < w; i++) {
        if (!edges[i] || edges[i] < threshold()) continue;
        context.fillStyle = tones.accent;
        context.fillRect(left + i, y(edges[i] / facts.steps), 1.5, h + top - y(edges[i] / facts.steps));
      }
    }
    context.strokeStyle = state.edges ? tones.muted : tones.accent;
    context.lineWidth = 1.25;
    context.lineJoin = "round";
    context.beginPath();
    for (let i = 0; i < w; i++) context[i ? "lineTo" : "moveTo"](left + i + 0.5, y(means[i]));
    context.stroke();
    const line = threshold() / facts.steps;
    if (line <= most) {
      context.strokeStyle = tones.text;
      context.lineWidth = 1;
      context.setLineDash([4, 3]);
      context.beginPath(); context.moveTo(left, Math.round(y(line)) + 0.5); context.lineTo(left + w, Math.round(y(line)) + 0.5); context.stroke();
      context.setLineDash([]);
    }
    let lastX = -1;
    for (let at = Math.max(0, inside(segments, from)); at < segments.length && segments[at][0] < to; at++) {
      const a = Math.max(left, x(segments[at][0])), b = Math.min(left + w, x(segments[at][1]));
      if (b - lastX < 0.25) continue;
      lastX = b;
      context.fillStyle = tones.kinds[segments[at][2]];
      context.fillRect(a, top + h + 1, Math.max(0.5, b - a), 6);
    }
    let marked = left;
    for (const mark of marksIn(from, to)) {
      const a = Math.max(marked, x(mark[0])), b = Math.max(Math.min(left + w, x(mark[1])), x(mark[0]) + 1.5);
      if (b <= a) continue;
      marked = b;
      context.fillStyle = tones.bad;
      context.fillRect(a, top, b - a, 4);
      context.globalAlpha = 0.18;
      context.fillRect(a, top, b - a, h);
      context.globalAlpha = 1;
    }
    context.fillStyle = tones.muted;
    context.textAlign = "left";
    let free = left;
    for (const at of ticksOf(from, to, w / 90)) {
      const words = hex(at), here = x(at), wide = context.measureText(words).width, begin = clamp(here - wide / 2, left, left + w - wide);
      if (begin < free) continue;
      free = begin + wide + 14;
      context.fillRect(Math.round(here), top + h + 7, 1, 4);
      context.fillText(words, begin, height - 7);
    }
    if (crosshair >= from && crosshair < to) { context.fillStyle = tones.text; context.fillRect(Math.round(x(crosshair)), top, 1, h); }
    $("curve-range").textContent = to - from < N ? `${hex(from)} – ${hex(to)}  ${size(to - from)}` : "";
    $("curve-title").textContent = full < 480 ? "Bits per byte" : state.edges ? "Edges and bits per byte, by offset" : "Bits per byte by offset: mean, and peak in grey";
    $("zoom-all").disabled = $("zoom-out").disabled = to - from >= N;
    curveCanvas.dataset.exact = exact;
  }
  const curveOffset = (event) => clamp(Math.floor(plot.from + ((event.clientX - curveCanvas.getBoundingClientRect().left - plot.left) / plot.w) * (plot.to - plot.from)), plot.from, plot.to - 1);
  curveCanvas.addEventListener("wheel", (event) => {
    if (!plot) return;
    event.preventDefault();
    if (Math.abs(event.deltaX) > Math.abs(event.deltaY)) zoom(state.from + (event.deltaX / plot.w) * (state.to - state.from), state.to - state.from);
    else zoomAt(1.0018 ** (event.deltaY * [1, ROW, 400][event.deltaMode]), curveOffset(event));
  }, { passive: false });
  let pull = null;
  curveCanvas.addEventListener("pointerdown", (event) => { if (plot && !event.button) { pull = { x: event.clientX, from: state.from, moved: false }; curveCanvas.setPointerCapture(event.pointerId); } });
  curveCanvas.addEventListener("pointermove", (event) => {
    if (!plot) return;
    if (pull && Math.abs(event.clientX - pull.x) > 4) pull.moved = true;
    if (pull && pull.moved) zoom(pull.from - ((event.clientX - pull.x) / plot.w) * (state.to - state.from), state.to - state.from);
    crosshair = curveOffset(event);
    tip(event, rangeWords(crosshair, Math.min(N, crosshair + Math.max(1, Math.floor((plot.to - plot.from) / plot.w)))));
    draw(drawCurve);
  });
  curveCanvas.addEventListener("pointerup", (event) => { if (pull && !pull.moved) jump(curveOffset(event)); pull = null; });
  curveCanvas.addEventListener("pointercancel", () => (pull = null));
  curveCanvas.addEventListener("pointerleave", () => { crosshair = -1; hideTip(); draw(drawCurve); });
  curveCanvas.addEventListener("dblclick", () => zoom(0, N));
  $("zoom-in").onclick = () => zoomAt(0.5);
  $("zoom-out").onclick = () => zoomAt(2);
  $("zoom-all").onclick = () => zoom(0, N);

  // ---- threshold and ranges ----
  const slider = $("threshold"), number = $("threshold-number");
  function sayAbove() {
    const t = threshold(), edges = state.edges, bytes = edges ? above.edges[Math.max(t, 1)] : above.bytes[t], ranges = edges ? bytes : facts.starts[state.gap][t];
    const words = edges ? [part("span", many(bytes, "edge")), part("span", `of ${bits(t / facts.steps)} bits or more`)] : [part("span", `${many(bytes, "byte")}, ${percent(bytes / Math.max(1, N))}`), part("span", `in ${many(ranges, "range")}`)];
    $("above").replaceChildren(...words);
    slider.max = Math.max(10, edges ? maximumEdge : maximum);
    slider.value = t;
    slider.setAttribute("aria-valuetext", `${bits(t / facts.steps)} bits`);
    if (document.activeElement !== number) number.value = (t / facts.steps).toFixed(1);
    $("next").disabled = $("previous").disabled = !ranges;
    $("next").title = edges ? "Next edge (n)" : "Next range above the threshold (n)";
    $("previous").title = edges ? "Previous edge (p)" : "Previous range above the threshold (p)";
    $("gap").disabled = $("dim").disabled = edges;
    const stat = $("stat-above");
    if (stat) {
      stat.querySelector("dt").textContent = `At ${bits(state.threshold / facts.steps)} bits or more`;
      stat.querySelector("dd").textContent = percent(above.bytes[state.threshold] / Math.max(1, N));
    }
  }
  function setThreshold(t) {
    t = clamp(Math.round(t), 0, 255);
    if (state.edges) state.edgeThreshold = t; else state.threshold = t;
    mapStale = mapStale || state.edges || state.peak;
    sayAbove();
    draw(drawHex, drawCurve, drawMap);
  }
  // Whoever moves the threshold wants to see what is above it.
  slider.addEventListener("input", () => { setDim(true); setThreshold(+slider.value); });
  number.addEventListener("input", () => { if (number.value !== "" && isFinite(+number.value)) { setDim(true); setThreshold(+number.value * facts.steps); } });
  number.addEventListener("change", () => { number.value = (threshold() / facts.steps).toFixed(1); });
  $("gap").append(...facts.gaps.map((gap, at) => { const made = part("option", `${gap} B`); made.value = at; return made; }));
  $("gap").value = state.gap;
  $("gap").addEventListener("change", () => { state.gap = +$("gap").value; sayAbove(); });

  // Long work shows how far it is, and ends when other work begins.
  let work = 0, busy = "";
  async function working(words, steps) {
    const mine = ++work;
    let rested = performance.now();
    try {
      for await (const [share, found] of steps()) {
        if (mine !== work) return null;
        if (found !== undefined) return found;
        if (performance.now() - rested > 60) {
          busy = `${words} … ${Math.round(100 * share)} %  (Esc stops)`;
          say();
          await new Promise((done) => setTimeout(done));
          rested = performance.now();
        }
      }
      return -1;
    } finally {
      if (mine === work) { busy = ""; say(); }
    }
  }
  function report(words) { $("status").replaceChildren(words); $("spoken").textContent = words; }
  // Where ranges start in a block: at or above the threshold, with nothing so high among the gap + 1 bytes before. Edges are single bytes.
  async function startsIn(number, t, gap) {
    const found = [];
    if (state.edges) {
      if (overview.highestEdge[number] < t) return found;
      const edges = await edgesOf(number);
      for (let i = 0; i < edges.length; i++) if (edges[i] >= t) found.push(number * BLOCK + i);
      return found;
    }
    const reach = facts.gaps[gap] + 1;
    if (overview.highest[number] < t || overview.lowest[gap][number] >= t) return found;
    let since = reach; // bytes under the threshold before this one
    if (number) {
      const before = (await block(number - 1)).costs;
      since = 0;
      while (since < reach && before[before.length - 1 - since] < t) since++;
    }
    const { costs, begin } = await block(number);
    for (let i = 0; i < costs.length; i++) {
      if (costs[i] < t) { since++; continue; }
      if (since >= reach) found.push(begin + i);
      since = 0;
    }
    return found;
  }
  async function rangeEnd(begin, t, reach) { // far enough to show; very long ranges are cut
    let end = begin + 1;
    for (let number = Math.floor(begin / BLOCK); number < Math.min(BLOCKS, Math.floor(begin / BLOCK) + 4); number++) {
      const { costs, begin: base } = await block(number);
      for (let i = Math.max(0, begin - base); i < costs.length; i++) {
        if (costs[i] >= t) end = base + i + 1;
        else if (base + i - end >= reach) return end;
      }
    }
    return end;
  }
  async function step(forward) {
    if (!N) return;
    const t = Math.max(1, threshold()), gap = state.gap, here = selection()[0];
    const found = await working(forward ? "Looking for the next" : "Looking for the previous", async function* () {
      const first = Math.floor(here / BLOCK);
      for (let number = first; forward ? number < BLOCKS : number >= 0; number += forward ? 1 : -1) {
        const starts = await startsIn(number, t, gap);
        const hits = starts.filter((at) => (forward ? at > here : at < here));
        if (hits.length) yield [1, forward ? hits[0] : hits[hits.length - 1]];
        else yield [Math.abs(number - first) / Math.max(1, forward ? BLOCKS - first : first)];
      }
    });
    if (found === null) return;
    if (found < 0) return report(`There is no ${state.edges ? "edge" : "range"} at ${bits(t / facts.steps)} bits or more ${forward ? "after" : "before"} this.`);
    await jump(found, state.edges ? {} : { end: await rangeEnd(found, t, facts.gaps[gap] + 1) });
  }
  $("next").onclick = () => step(true);
  $("previous").onclick = () => step(false);

  // ---- go to, find ----
  $("go-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const at = readNumber($("go").value);
    if (!(at >= 0 && at < N)) return report(`Give an offset from ${hex(0)} to ${hex(Math.max(0, N - 1))}, such as 0x1f00 or 7936.`);
    jump(at);
    rowsBox.focus({ preventScroll: true });
  });
  $("find-as").addEventListener("change", () => { $("find").placeholder = $("find-as").value === "hex" ? "de ad be ef" : "text"; $("find").focus(); });
  $("find").addEventListener("input", () => $("find").classList.remove("missed"));
  function pattern() {
    const text = $("find").value;
    if ($("find-as").value === "text") return new TextEncoder().encode(text);
    const digits = text.replace(/0x|[\s,]/gi, "");
    return /^([0-9a-f]{2})*$/i.test(digits) ? Uint8Array.from(digits.match(/../g) || [], (pair) => parseInt(pair, 16)) : null;
  }
  $("find-form").addEventListener("submit", async (event) => {
    event.preventDefault();
    if (!N) return;
    const wanted = pattern();
    if (!wanted || !wanted.length || wanted.length > BLOCK) return report("Give a text, or bytes in hex such as 7f 45 4c 46.");
    const after = selection()[0];
    const found = await working("Searching", async function* () {
      const first = Math.floor(after / BLOCK);
      for (let done = 0; done <= BLOCKS; done++) { // the first block is read again at the end: its beginning
        const number = (first + done) % BLOCKS, here = await block(number), next = number + 1 < BLOCKS && wanted.length > 1 ? await block(number + 1) : null;
        const tail = next ? Math.min(wanted.length - 1, next.length) : 0;
        let data = here.data;
        if (tail) { data = new Uint8Array(here.length + tail); data.set(here.data); data.set(next.data.subarray(0, tail), here.length); }
        for (let at = data.indexOf(wanted[0], done ? 0 : after + 1 - here.begin); at >= 0 && at + wanted.length <= data.length; at = data.indexOf(wanted[0], at + 1)) {
          let same = 1;
          while (same < wanted.length && data[at + same] === wanted[same]) same++;
          if (same === wanted.length) { yield [1, here.begin + at]; break; }
        }
        yield [done / BLOCKS];
      }
    });
    if (found === null) return;
    $("find").classList.toggle("missed", found < 0);
    if (found < 0) return report("Not found.");
    await jump(found, { end: found + wanted.length });
  });

  // ---- lists ----
  const list = $("list"), listTall = $("list-tall"), ITEM = 26;
  let shown = segments.length || !marks.length ? "segments" : "marks";
  const entries = () => (shown === "segments" ? segments : marks);
  function showList(which) {
    shown = which;
    const some = which === "marks";
    for (const name of ["segments", "marks"]) {
      $(`tab-${name}`).setAttribute("aria-selected", name === which);
      $(`tab-${name}`).tabIndex = name === which ? 0 : -1;
    }
    list.setAttribute("aria-labelledby", `tab-${which}`);
    $("list-head").className = some ? "list-head mark" : "list-head";
    $("list-head").replaceChildren(...(some ? ["offset", "size", "bits", "what"] : ["kind", "offset", "size", "bits", compared ? "ref." : ""]).map((word) => part("span", word)));
    listTall.style.height = `${entries().length * ITEM}px`;
    list.scrollTop = 0;
    lastHere = -1;
    drawList();
  }
  let lastHere = -1;
  function drawList() {
    const all = entries(), some = shown === "marks";
    const mark = markAt(state.cursor), here = some ? (mark ? mark[4] : -1) : inside(segments, state.cursor);
    if (here !== lastHere && here >= 0 && !list.matches(":hover")) {
      const y = here * ITEM;
      if (y < list.scrollTop || y + ITEM > list.scrollTop + list.clientHeight) list.scrollTop = y - list.clientHeight / 2;
    }
    lastHere = here;
    const first = Math.max(0, Math.floor(list.scrollTop / ITEM) - 2), last = Math.min(all.length, Math.ceil((list.scrollTop + list.clientHeight) / ITEM) + 2);
    const focused = document.activeElement && document.activeElement.dataset ? document.activeElement.dataset.at : undefined;
    const made = [];
    for (let at = first; at < last; at++) {
      const entry = all[at], item = document.createElement("button");
      item.type = "button";
      item.className = `item${some ? " mark" : ""}${at === here ? " here" : ""}`;
      item.style.top = `${at * ITEM}px`;
      item.dataset.at = at;
      if (some) item.append(part("span", digitsOf(entry[0]).padStart(DIGITS, "0"), "mono"), part("span", size(entry[1] - entry[0])), part("span", entry[3].toFixed(1)), part("span", entry[2]));
      else {
        const kind = part("span", ""), chip = part("span", "", "chip");
        chip.style.background = tones.kinds[entry[2]];
        kind.append(chip, KINDS[entry[2]]);
        item.append(kind, part("span", digitsOf(entry[0]).padStart(DIGITS, "0"), "mono"), part("span", size(entry[1] - entry[0])), part("span", entry[3].toFixed(2)), entry[4] === null ? part("span", "") : part("span", entry[4] ? "like" : "unlike", entry[4] ? "tag yes" : "tag no"));
      }
      item.title = some ? `${hex(entry[0])} – ${hex(entry[1])}, ${count(entry[1] - entry[0])} bytes: ${entry[2]}` : `${segmentWords(entry)}${likeWords(entry[4]) && ", "}${likeWords(entry[4])}`;
      made.push(item);
    }
    listTall.replaceChildren(...made);
    if (focused !== undefined) { const again = listTall.querySelector(`[data-at="${focused}"]`); if (again) again.focus({ preventScroll: true }); }
  }
  list.addEventListener("scroll", () => draw(drawList));
  listTall.addEventListener("click", (event) => {
    const item = event.target.closest(".item");
    if (!item) return;
    const entry = entries()[+item.dataset.at];
    jump(entry[0], shown === "marks" ? { end: entry[1] } : {});
  });
  for (const name of ["segments", "marks"]) {
    $(`tab-${name}`).onclick = () => showList(name);
    $(`tab-${name}`).addEventListener("keydown", (event) => {
      if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
      const other = name === "segments" ? "marks" : "segments";
      if ($(`tab-${other}`).hidden) return;
      showList(other);
      $(`tab-${other}`).focus();
    });
  }
  $("tab-segments").textContent = many(segments.length, "segment");
  $("tab-marks").textContent = many(marks.length, "mark");
  $("tab-marks").hidden = !marks.length;

  // ---- switches, keys ----
  const press = (id, on) => $(id).setAttribute("aria-pressed", on);
  function everything() {
    layOut(); layOutMap();
    draw(drawHex, drawMap, drawCurve, drawLegend, say, drawList);
  }
  function setHilbert(on) {
    state.hilbert = on;
    press("linear", !on); press("hilbert", on);
    document.querySelector(".map").classList.toggle("hilbert", on);
    layOutMap();
    draw(drawMap);
  }
  function setPeak(on) { state.peak = on; press("mean", !on); press("peak", on); mapStale = true; draw(drawMap); }
  function setDim(on) { state.dim = on; $("dim").checked = on; mapStale = mapStale || state.peak; draw(drawHex, drawMap); }
  function setEdges(on) { state.edges = on; $("edges").checked = on; mapStale = true; sayAbove(); everything(); }
  function recolour() { readColours(); mapStale = true; drawKinds(); everything(); }
  function setTheme(name) { root.dataset.theme = name; $("theme").textContent = name === "dark" ? "Light" : "Dark"; recolour(); }
  $("linear").onclick = () => setHilbert(false);
  $("hilbert").onclick = () => setHilbert(true);
  $("mean").onclick = () => setPeak(false);
  $("peak").onclick = () => setPeak(true);
  $("dim").addEventListener("change", () => setDim($("dim").checked));
  $("edges").addEventListener("change", () => setEdges($("edges").checked));
  $("theme").onclick = () => setTheme(dark() ? "light" : "dark");
  $("grey").onclick = () => { state.grey = !state.grey; press("grey", state.grey); recolour(); };
  const system = matchMedia("(prefers-color-scheme: dark)");
  system.addEventListener("change", () => setTheme(system.matches ? "dark" : "light"));
  async function copy() {
    if (!N) return;
    const [from, to] = selection();
    if (to - from > 16 * BLOCK) return report("Select 1 MB or less to copy it.");
    const found = [];
    for (let i = from; i < to; i++) { const here = await block(Math.floor(i / BLOCK)); found.push(HEXES[here.data[i - here.begin]]); }
    try { await navigator.clipboard.writeText(found.join(" ")); report(`${many(to - from, "byte")} copied as hex.`); } catch { report("The browser does not allow copying."); }
  }
  $("copy").onclick = copy;

  document.addEventListener("keydown", (event) => {
    const typing = event.target.matches("input:not([type=range]):not([type=checkbox]), select");
    if (event.key === "Escape") { work++; busy = ""; state.anchor = -1; if (typing) rowsBox.focus({ preventScroll: true }); draw(drawHex, say); return; }
    if (typing || event.altKey || event.metaKey || event.ctrlKey) return;
    const act = { n: () => step(true), p: () => step(false), e: () => setEdges(!state.edges), d: () => setDim(!state.dim), h: () => setHilbert(!state.hilbert), g: () => $("go").select(), "/": () => $("find").select(), t: () => setTheme(dark() ? "light" : "dark") }[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  });
  rowsBox.addEventListener("keydown", (event) => {
    if ((event.ctrlKey || event.metaKey) && event.key === "c") { event.preventDefault(); return copy(); }
    const page = Math.max(1, Math.floor(shape.seen / ROW) - 1) * state.per, { cursor, per } = state, all = event.ctrlKey || event.metaKey;
    const to = {
      ArrowRight: cursor + 1, ArrowLeft: cursor - 1, ArrowDown: cursor + per, ArrowUp: cursor - per, PageDown: cursor + page, PageUp: cursor - page,
      Home: all ? 0 : cursor - (cursor % per), End: all ? N - 1 : cursor - (cursor % per) + per - 1,
    }[event.key];
    if (to === undefined || event.altKey) return;
    event.preventDefault();
    if (!event.shiftKey) state.anchor = -1;
    else if (state.anchor < 0) state.anchor = cursor;
    const far = event.key.startsWith("Page");
    if (far) scrollTo(state.top + (event.key === "PageDown" ? 1 : -1) * (page / per) * ROW);
    setCursor((event.key === "ArrowDown" && to >= N) || (event.key === "ArrowUp" && to < 0) ? cursor : to);
  });

  // ---- what does not change ----
  function drawLegend() {
    const canvas = $("legend"), width = canvas.clientWidth, context = canvas.getContext("2d");
    canvas.width = 512; canvas.height = 1;
    const end = 1 - 2 ** -4, tenth = (share) => Math.round(-4 * Math.log2(1 - share * end) * 10);
    for (let x = 0; x < 512; x++) { context.fillStyle = fills[Math.min(255, tenth(x / 511))]; context.fillRect(x, 0, 1, 1); }
    const at = (v) => ((1 - 2 ** (-v / 4)) / end) * width;
    $("ticks").replaceChildren(...[0, 1, 2, 4, 8, 16].map((v) => { const made = part("span", v === 8 && width > 230 ? "8 bits" : v === 16 ? "16+" : String(v)); made.style.left = `${at(v)}px`; return made; }));
  }
  function drawKinds() {
    const used = Object.keys(KINDS).filter((kind) => segments.some((s) => s[2] === kind));
    $("kinds").replaceChildren(...used.map((kind) => {
      const item = document.createElement("li"), chip = part("span", "", "chip");
      chip.style.background = tones.kinds[kind];
      item.append(chip, KINDS[kind]);
      return item;
    }));
  }
  function heading() {
    $("name").textContent = $("name").title = facts.name;
    const stat = (name, words, kind = "") => {
      const box = document.createElement("div");
      box.className = kind;
      box.append(part("dt", name), part("dd", words));
      return box;
    };
    const shareStat = stat("", "");
    shareStat.id = "stat-above";
    const sized = stat("Size", size(N));
    sized.title = many(N, "byte");
    $("stats").replaceChildren(sized, stat("Bits per byte", facts.bpb.toFixed(3)), shareStat, stat("Read by", facts.reader, "words"));
  }

  // For tests, and for whoever scripts this page.
  window.btlm = { ready: false, readyAfter: 0, jump, get cursor() { return state.cursor; }, get seen() { return [firstSeen(), lastSeen()]; }, get range() { return [state.from, state.to]; }, whenParsed, block };
  if (typeof DecompressionStream === "undefined") {
    report("This browser cannot unpack the bytes. Try one of 2023 or later.");
    return;
  }
  while (above.edges[state.edgeThreshold] > 256) state.edgeThreshold++; // few enough to look at
  state.threshold = Math.min(state.threshold, Math.max(10, maximum));
  heading();
  readColours();
  layOut();
  showList(shown);
  setTheme(system.matches ? "dark" : "light");
  sayAbove();
  new ResizeObserver(() => everything()).observe(rowsBox);
  new ResizeObserver(() => { layOutMap(); draw(drawMap, drawCurve, drawLegend); }).observe(mapBox);
  new ResizeObserver(() => draw(drawCurve)).observe(curveBox);
  const wanted = readNumber(location.hash.slice(1));
  if (wanted >= 0 && wanted < N) jump(wanted);
  else setCursor(0);
})();
