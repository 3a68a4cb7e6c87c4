"use strict";
// Charts as SVG: elements, numbers, axes, the frame with its cursor and data table, sortable tables. Texts are set as text, never as HTML.

const SVG = "http://www.w3.org/2000/svg";
const SHAPES = new Set(["svg", "path", "line", "rect", "circle", "text", "g", "title", "clipPath"]);
let serial = 0;

function make(name, attributes = {}, ...children) {
  const node = SHAPES.has(name) ? document.createElementNS(SVG, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value !== undefined && value !== null && value !== false) node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

// Numbers as people read them; the same words as in fedsim's tables.

const UNITS = {
  bytes: [[1, "B"], [1e3, "kB"], [1e6, "MB"], [1e9, "GB"], [1e12, "TB"], [1e15, "PB"]],
  joules: [[1e-3, "mJ"], [1, "J"], [1e3, "kJ"], [1e6, "MJ"], [1e9, "GJ"]],
  seconds: [[1e-3, "ms"], [1, "s"], [60, "min"], [3600, "h"], [86400, "d"]],
};

function unitFor(greatest, kind) {
  if (!UNITS[kind]) return kind === "percent" ? [0.01, "%"] : [1, ""];
  const least = kind === "seconds" ? 3 : 1;
  return UNITS[kind].filter(([size]) => greatest >= size * (size > 1 ? least : 1)).pop() || UNITS[kind][0];
}

function digits(value, most = 4) {
  if (!value) return "0";
  if (Math.abs(value) >= 10 ** most) return Math.round(value).toLocaleString("en-US");
  return Math.abs(value) < 1e-4 ? value.toExponential(1) : String(Number(value.toPrecision(most)));
}

function written(value, kind) {
  if (value === null || value === undefined || !isFinite(value)) return "-";
  if (kind === "percent") return (100 * value).toFixed(1) + " %";
  if (kind === "count") return (value % 1 ? Number(value.toFixed(1)) : value).toLocaleString("en-US");
  const [size, unit] = value || !UNITS[kind] ? unitFor(Math.abs(value), kind) : UNITS[kind].find(([one]) => one === 1);
  return digits(value / size, 3 + !UNITS[kind]) + (unit ? " " + unit : "");
}

// A scale from values to pixels, with ticks.

function scale(low, high, from, to, kind, log, many) {
  if (log) return logarithmic(low, high, from, to, kind, many);
  if (!(high > low)) high = low + (Math.abs(low) || 1);
  const [size, unit] = unitFor(Math.max(Math.abs(low), Math.abs(high)), kind);
  const rough = (high - low) / size / many, power = 10 ** Math.floor(Math.log10(rough));
  let step = power * [1, 2, 5, 10].find((one) => one * power >= rough * 0.999);
  if (kind === "seconds" && (unit === "s" || unit === "min") && rough > 5) step = [10, 15, 30, 60, 120, 300].find((one) => one >= rough) || step;
  if (kind === "count") step = Math.max(1, step);
  const ticks = [];
  for (let at = Math.ceil(low / size / step - 1e-9); at * step <= high / size * (1 + 1e-9); at++) ticks.push(Number((at * step).toPrecision(12)));
  const map = (value) => from + ((value - low) / (high - low)) * (to - from);
  return { map, unit, low, high, back: (pixel) => low + ((pixel - from) / (to - from)) * (high - low), ticks: ticks.map((one) => [one * size, digits(one, 6)]) };
}

function logarithmic(low, high, from, to, kind, many) {
  if (!(high > low)) high = low * 10;
  const a = Math.log10(low), b = Math.log10(high), every = Math.max(1, Math.ceil((b - a) / many)), ticks = [];
  const marks = b - a < 2 ? [1, 2, 5] : [1];
  for (let power = Math.floor(a); power <= b; power += every)
    for (const mark of marks) if (mark * 10 ** power >= low * 0.999 && mark * 10 ** power <= high * 1.001) ticks.push(mark * 10 ** power);
  const map = (value) => from + ((Math.log10(value) - a) / (b - a)) * (to - from);
  return { map, unit: "", low, high, back: (pixel) => 10 ** (a + ((pixel - from) / (to - from)) * (b - a)), ticks: ticks.map((one) => [one, written(one, kind).replace(".0 %", " %")]) };
}

// The frame of all charts: title, controls, drawing, what the cursor reads, and the data as a table.

const charts = [];

function frame({ title, height = 300, about = "", controls = [], draw, move, rows, keys, help, quiet }) {
  const id = "chart" + ++serial;
  const svg = make("svg", { class: "chart", tabindex: 0, role: "img", "aria-roledescription": "chart", "aria-describedby": id + "help" });
  const readout = make("div", { class: "readout", "aria-live": "polite" });
  const caption = make("p", { class: "about" }, about);
  const hint = make("span", { id: id + "help", hidden: true }, help || "Arrow keys move the cursor, Enter opens the data as a table.");
  const inside = make("div");
  const details = make("details", { ontoggle: () => fill() }, make("summary", {}, "Data table"), inside);
  const heading = make("h3", { id, class: quiet ? "hidden" : undefined }, title); // where a control says the same, for readers of the page only
  const card = make("figure", { class: "card" }, make("div", { class: "head" }, heading, ...controls), svg, readout, caption, hint, details);
  const chart = { card, svg, readout, caption, heading, height, redraw, rename: (text) => (heading.textContent = text) };
  let cursor = null;

  function fill() {
    if (!details.open) return;
    const table = rows();
    inside.replaceChildren(...(table ? [sortable(table.columns, table.rows)] : []), ...(table && table.note ? [make("p", { class: "note" }, table.note)] : []));
  }
  function redraw() {
    const width = Math.floor(svg.getBoundingClientRect().width || svg.parentNode.clientWidth);
    if (width < 50) return;
    svg.setAttribute("viewBox", `0 0 ${width} ${chart.height}`);
    svg.setAttribute("height", chart.height);
    svg.replaceChildren();
    draw(svg, width, chart.height, chart);
    if (cursor !== null) at(cursor);
    fill();
  }
  function at(place) {
    svg.querySelectorAll(".cursor").forEach((one) => one.remove());
    cursor = place;
    const said = place === null || !move ? null : move(svg, place, chart);
    readout.replaceChildren(...(said || []));
  }
  chart.at = at;
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    if (!chart.dragging) at({ x: event.clientX - box.left, y: event.clientY - box.top });
  });
  svg.addEventListener("pointerleave", () => at(null));
  svg.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -1, ArrowDown: 1, Home: -Infinity, End: Infinity }[event.key];
    if (keys && keys(event, chart)) event.preventDefault();
    else if (event.key === "Enter") details.open = !details.open;
    else if (event.key === "Escape") at(null);
    else if (step && move) {
      event.preventDefault();
      at({ step: Math.max(0, (cursor && cursor.step !== undefined ? cursor.step : step > 0 && isFinite(step) ? -1 : 0) + step) });
    }
  });
  new ResizeObserver(() => redraw()).observe(card);
  charts.push(chart);
  return chart;
}

function axes(svg, width, height, x, y, options) {
  const { left, top, right, bottom } = options, path = (d, name) => svg.append(make("path", { d, class: name }));
  for (const [value, text] of y.ticks) {
    const place = Math.round(y.map(value)) + 0.5;
    path(`M${left} ${place}H${width - right}`, "grid");
    svg.append(make("text", { x: left - 8, y: place + 4, "text-anchor": "end" }, text));
  }
  let last = -Infinity;
  for (const [value, text] of x.ticks) {
    const place = x.map(value), room = 3.6 * text.length + 4;
    path(`M${Math.round(place) + 0.5} ${top}V${height - bottom}`, "grid");
    if (place - room < last || place + room > width + 4) continue;
    last = place + room;
    svg.append(make("text", { x: place, y: height - bottom + 18, "text-anchor": "middle" }, text));
  }
  path(`M${left} ${height - bottom + 0.5}H${width - right}`, "axis");
  svg.append(make("text", { x: (left + width - right) / 2, y: height - 4, "text-anchor": "middle" }, options.xTitle + (x.unit ? ` (${x.unit})` : "")));
  svg.append(make("text", { x: 2, y: 11 }, options.yTitle + (y.unit ? ` (${y.unit})` : "")));
}

const MARGIN = { left: 46, top: 22, right: 12, bottom: 40 };

function clip(svg, width, height) {
  const id = "clip" + ++serial;
  svg.append(make("clipPath", { id }, make("rect", { x: MARGIN.left, y: MARGIN.top - 4, width: Math.max(0, width - MARGIN.left - MARGIN.right + 4), height: height - MARGIN.top - MARGIN.bottom + 5 })));
  const group = make("g", { "clip-path": `url(#${id})` });
  svg.append(group);
  return group;
}

// Tables: a cell is [text, number or null]. A column is sorted by numbers where it has any; what has none comes last.

function sortable(columns, rows, options = {}) {
  const body = make("tbody");
  let by = null, falling = false;
  const heads = columns.map((column, place) => make("th", { scope: "col", class: column.text ? "text" : undefined }, options.fixed ? column.title : make("button", { type: "button", onclick: () => sort(place) }, column.title)));
  const groups = columns.some((column) => column.group) ? [make("tr", { class: "groups" }, ...spans(columns))] : [];

  function sort(place) {
    falling = by === place ? !falling : false;
    by = place;
    heads.forEach((head, at) => (at === place ? head.setAttribute("aria-sort", falling ? "descending" : "ascending") : head.removeAttribute("aria-sort")));
    fill();
  }
  function fill() {
    const order = [...rows];
    const numbers = by !== null && rows.some((row) => row[by][1] !== null);
    const compare = (a, b) => (numbers ? a[1] - b[1] : String(a[0]).localeCompare(String(b[0]), undefined, { numeric: true }));
    if (by !== null)
      order.sort((a, b) => {
        const lacks = numbers ? (a[by][1] === null) - (b[by][1] === null) : 0;
        return lacks || (falling ? -1 : 1) * compare(a[by], b[by]);
      });
    body.replaceChildren(...order.map((row) => make("tr", {}, ...row.map(([text, number, colour], place) => make(place ? "td" : "th", { scope: place ? undefined : "row", class: (columns[place].text ? "text " : "") + (String(text).length > 34 ? "wide" : "") }, ...(colour ? [make("span", { class: "swatch", style: `background:${colour}` })] : []), String(text))))));
  }
  fill();
  return make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": options.label || "table" }, make("table", {}, make("thead", {}, ...groups, make("tr", {}, ...heads)), body));
}

function spans(columns) {
  const found = [];
  for (const { group = "" } of columns) {
    if (found.length && found.at(-1)[0] === group) found.at(-1)[1]++;
    else found.push([group, 1]);
  }
  return found.map(([group, span]) => make("th", { colspan: span, scope: "colgroup" }, group));
}
