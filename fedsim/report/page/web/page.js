"use strict";
// The page: one task at a time, the legend that filters, the axis that all curves share, and what stands where.

const data = JSON.parse(document.getElementById("data").textContent);
const main = document.getElementById("main");
const state = { task: 0, hidden: new Set(), axis: null, measures: [], cost: null, log: [null, null] };
const THEMES = ["auto", "light", "dark"];

function radios(title, name, options, chosen, act) {
  return make("fieldset", {}, make("legend", {}, title), ...options.map(([value, text]) => make("label", {}, make("input", { type: "radio", name, value, checked: value === chosen, onchange: () => act(value) }), text)));
}

function section(title, ...content) {
  return make("section", { "aria-label": title }, make("h2", {}, title), ...content);
}

const redraw = () => charts.forEach((chart) => chart.redraw());
const shown = (v) => !state.hidden.has(v);
const plural = (number, noun) => `${number.toLocaleString("en-US")} ${noun}${number === 1 ? "" : "s"}`;

function theme() {
  const button = document.getElementById("theme");
  let chosen = "auto";
  try { chosen = localStorage.getItem("fedsim-theme") || "auto"; } catch { /* a file may have no storage */ }
  const show = () => {
    if (chosen === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = chosen;
    button.textContent = `${{ auto: "◐", light: "☀", dark: "☾" }[chosen]} ${chosen}`;
    button.setAttribute("aria-label", `colours: ${chosen}; change`);
  };
  button.addEventListener("click", () => {
    chosen = THEMES[(THEMES.indexOf(chosen) + 1) % THEMES.length];
    try { localStorage.setItem("fedsim-theme", chosen); } catch { /* then it holds for now */ }
    show();
  });
  show();
}

function legend(task) {
  const bar = make("div", { class: "legend", role: "toolbar", "aria-label": "variants that are shown" });
  const buttons = task.variants.map((variant, v) => {
    const line = make("svg", { width: 22, height: 10, "aria-hidden": "true" }, make("path", { d: "M0 5H22", stroke: colour(v), "stroke-width": 3, "stroke-dasharray": dash(v), fill: "none" }));
    return make("button", { type: "button", "aria-pressed": "true", title: `${variant.name}: click to hide or show, double click to show it alone`, onclick: () => set(v, !shown(v)), ondblclick: () => only(v) }, line, make("span", {}, variant.name));
  });
  const all = make("button", { type: "button", onclick: () => { state.hidden.clear(); update(); } }, "all");
  function set(v, on) {
    if (on) state.hidden.delete(v);
    else state.hidden.add(v);
    update();
  }
  function only(v) {
    state.hidden = new Set(task.variants.map((_, one) => one).filter((one) => one !== v));
    update();
  }
  function update() {
    buttons.forEach((button, v) => button.setAttribute("aria-pressed", String(shown(v))));
    redraw();
  }
  bar.addEventListener("keydown", (event) => {
    const every = [...bar.querySelectorAll("button")], step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step) { every[(every.indexOf(document.activeElement) + step + every.length) % every.length].focus(); event.preventDefault(); }
  });
  bar.append(...(task.variants.length > 1 ? [all] : []), ...buttons);
  return bar;
}

function coloured(table, task) {
  const rows = table.rows.map(([first, ...rest]) => { const v = task.variants.findIndex((variant) => variant.name === first[0]); return [[first[0], null, v < 0 ? null : colour(v)], ...rest]; });
  return sortable(table.columns.map((column, place) => ({ ...column, text: !place || ["ended by", "hash", "folder"].includes(column.title) })), rows, { label: "results" });
}

function settings(task) {
  const { keys, rows, common } = task.settings;
  const whole = make("details", {}, make("summary", {}, `${plural(common.length, "setting")} in common`), sortable([{ title: "setting", text: true }, { title: "value", text: true }], common, { label: "settings in common" }));
  if (!keys.length) return section("Settings", make("div", { class: "card" }, task.variants.length > 1 ? "No setting differs." : "One variant.", whole));
  const columns = [{ title: "setting", text: true }, ...task.variants.map((variant) => ({ title: variant.name, text: true }))];
  return section("Settings that differ", make("div", { class: "card" }, sortable(columns, keys.map((key, place) => [[key, null], ...rows[place]]), { label: "settings that differ", fixed: true }), whole));
}

function curve(task, place) {
  const select = make("select", { "aria-label": "what is drawn", onchange: () => { state.measures[place] = select.value; state.log[place] = null; chart.redraw(); } }, ...task.measures.map((one) => make("option", { value: one.key, selected: one.key === state.measures[place] }, one.title)));
  const box = make("input", { type: "checkbox", onchange: () => { state.log[place] = box.checked; chart.redraw(); } });
  const chart = curves("", () => {
    const axis = task.axes.find((one) => one.key === state.axis), measure = task.measures.find((one) => one.key === state.measures[place]);
    const runs = task.runs.filter((run) => shown(run.v) && run.curves[measure.key] && run.curves[axis.key]);
    const values = runs.flatMap((run) => run.curves[measure.key]).filter((one) => one > 0);
    const wide = measure.falls && values.length && values.reduce((a, b) => Math.max(a, b)) > 30 * values.reduce((a, b) => Math.min(a, b));
    const log = state.log[place] ?? Boolean(wide);
    box.checked = log;
    chart.rename(measure.title);
    return { lines: runs.map((run) => ({ v: run.v, x: run.curves[axis.key], y: run.curves[measure.key] })), x: axis, y: { ...measure, log }, goals: measure.key === task.accuracy ? task.targets : [] };
  }, { names: () => task.variants.map((one) => one.name), controls: [select, make("label", {}, box, " log")], quiet: true });
  return chart.card;
}

function costs(task) {
  const metric = { seconds: "time/seconds", round: "round", bytes: "traffic/bytes", joules: "energy/joules", updates: "work/updates" };
  const known = Object.entries(metric).map(([name, key]) => [name, task.axes.find((axis) => axis.key === key)]).filter(([, axis]) => axis).sort(([a], [b]) => (a === "round") - (b === "round"));
  const measure = task.measures.find((one) => one.key === (task.accuracy || "test/loss"));
  if (!known.length || !measure) return null;
  const last = (run) => run.curves[measure.key] && run.curves[measure.key].at(-1), mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;
  const median = (values) => { const own = [...values].sort((a, b) => a - b), half = (own.length - 1) / 2; return (own[Math.floor(half)] + own[Math.ceil(half)]) / 2; };
  const spent = { end: (run) => run.end[state.cost] ?? Infinity, target: (run) => run.reached[state.cost] ?? Infinity };
  const differs = ([name]) => { const ends = task.runs.map((run) => run.end[name] || 0); return Math.max(...ends) > 1.05 * Math.min(...ends); };
  state.cost = (known.find(differs) || known[0])[0];
  const find = (when) => () => {
    const axis = known.find(([name]) => name === state.cost)[1], cost = spent[when], points = [], missing = [];
    task.variants.forEach((variant, v) => {
      const own = task.runs.filter((run) => run.v === v && (last(run) ?? null) !== null), at = own.length ? (when === "target" ? median : mean)(own.map(cost)) : NaN;
      if (!shown(v)) return;
      if (isFinite(at)) points.push({ v, x: at, y: mean(own.map(last)), seeds: own.length > 1 ? own.filter((run) => isFinite(cost(run))).map((run) => [cost(run), last(run)]) : [] });
      else missing.push(variant.name);
    });
    const words = when === "target" ? "Median cost where the curve crosses the target" : "Mean cost of the whole run";
    return { points, x: { ...axis, title: axis.title + (when === "target" ? " to the target" : " in all") }, y: { ...measure, title: `final ${measure.title}` }, missing: words + ". Dashed: nothing cheaper is as good; small dots: seeds." + (missing.length ? ` Not reached: ${missing.join(", ")}.` : "") };
  };
  const names = () => task.variants.map((one) => one.name), pictures = [scatter("What it costs in all", find("end"), { names })];
  if (task.targets.length) pictures.push(scatter("What it costs to the target", find("target"), { names }));
  const bar = make("div", { class: "bar" }, radios("cost", "cost", known.map(([name, axis]) => [name, axis.title]), state.cost, (value) => { state.cost = value; pictures.forEach((one) => one.redraw()); }));
  return section("Cost", bar, make("div", { class: "cards" }, ...pictures.map((one) => one.card)));
}

function clients(task) {
  const names = () => task.variants.map((one) => one.name), own = (key) => task.runs.filter((run) => shown(run.v) && run[key]), has = (key) => task.runs.some((run) => run[key]);
  const share = { title: "clients, from worst to best", kind: "percent" }, cards = [];
  if (has("clients")) cards.push(curves("Accuracy of each client", () => ({ lines: own("clients").map((run) => ({ v: run.v, x: run.clients[0], y: run.clients[1] })), x: share, y: { title: "accuracy", kind: "percent" } }), { names, about: "At the last evaluation, on test data like the client's own; band: least and greatest over seeds. A flat line is a fair model." }).card);
  if (has("merged")) cards.push(curves("Participation", () => ({ lines: own("merged").map((run) => ({ v: run.v, x: run.merged[0], y: run.merged[1] })), x: { title: "clients, from rarest to most frequent", kind: "percent" }, y: { title: "updates merged of a client", kind: "count", zero: true } }), { names, about: "How often updates of each client were merged. A flat line: all took part alike." }).card);
  if (task.runs.some((run) => (run.staleness || []).length > 1)) cards.push(curves("Staleness", () => ({ lines: own("staleness").map((run) => ({ v: run.v, x: run.staleness.map((_, age) => age), y: run.staleness })).map((line) => (line.x.length > 1 ? line : { ...line, x: [0, 1], y: [line.y[0], 0] })), x: { title: "merges between model and update", kind: "count" }, y: { title: "share of updates", kind: "percent", zero: true } }), { names, about: "How old updates were when merged" + (task.runs.some((run) => (run.staleness || []).length > 40) ? "; at 40: all that were at least as old." : ".") }).card);
  if (task.at_work.length) cards.push(curves("Clients at work", () => ({ lines: task.at_work.filter((line) => shown(line.v)), x: { title: "simulated time", kind: "seconds" }, y: { title: "clients at work", kind: "count", zero: true } }), { names, about: "Of each variant's first seed, over the whole run." }).card);
  return cards.length ? section("Clients", make("div", { class: "cards" }, ...cards)) : null;
}

function work(task) {
  if (!task.gantt.length) return null;
  const holder = make("div"), select = make("select", { "aria-label": "whose work is shown", onchange: () => show() }, ...task.gantt.map((one, at) => make("option", { value: at }, one.name)));
  function show() {
    const one = task.gantt[Number(select.value)];
    remove(holder);
    holder.replaceChildren(gantt(`Work of clients: ${one.name}`, one, task.gantt.length > 1 ? select : null).card);
    select.focus({ preventScroll: true });
  }
  show();
  select.blur();
  return section("Work over time", holder, make("p", { class: "note" }, "Each variant's first seed. Drag, or use the buttons or keys, to move; double click, + or Ctrl and the wheel enlarge."));
}

function waits(task) {
  if (!task.waits.length) return null;
  const cards = task.waits.map((map) => slowness(`Slowness of clients: ${map.name}`, map).card);
  return section("Where time went", make("div", { class: "cards" }, ...cards), make("p", { class: "note" }, "Each variant's first seed. Usual: the geometric mean of all jobs that began at that time."));
}

function remove(holder) {
  for (let at = charts.length - 1; at >= 0; at--) if (holder.contains(charts[at].card)) charts.splice(at, 1);
}

function split(task) {
  const cards = [...task.labels.maps.map((map) => heatmap(map.name ? `Labels: ${map.name}` : "Labels of clients", map)), ...task.graphs.maps.map((map) => graph(`Topology: ${map.name}`, map))];
  const notes = [task.labels.note, task.graphs.note].filter(Boolean);
  return cards.length ? section("Data and topology", make("div", { class: "cards" }, ...cards.map((one) => one.card)), ...notes.map((note) => make("p", { class: "note" }, note))) : null;
}

function left() {
  if (!data.left.length) return null;
  const counts = plural(data.left.length, "run") + (data.left.length === 1 ? " is" : " are");
  return make("div", { class: "notice", role: "note" }, make("strong", {}, `${counts} listed here only: neither drawn nor averaged`), make("ul", {}, ...data.left.map((one) => make("li", {}, `${one.label}: ${one.status}${one.why ? ` (${one.why})` : ""}`))));
}

function show() {
  charts.length = 0;
  const task = data.tasks[state.task], parts = [left()];
  if (data.tasks.length > 1) parts.push(make("div", { class: "notice" }, make("p", {}, `These runs are of ${data.tasks.length} different tasks, whose results can't be compared: one is shown at a time.`), radios("task", "task", data.tasks.map((one, at) => [at, one.name]), state.task, (at) => { state.task = at; show(); })));
  if (!task) return main.replaceChildren(...parts.filter(Boolean), make("p", { class: "notice" }, "No run has finished yet, so there is nothing to compare."));
  Object.assign(state, { hidden: new Set(), log: [null, null], axis: (task.axes.find((one) => one.key === state.axis) || task.axes[0] || {}).key });
  const known = task.measures.map((one) => one.key), keep = (key) => (known.includes(key) ? key : known[0]);
  state.measures = [keep(task.accuracy), known.includes("clients/accuracy_worst_10") && task.accuracy ? "clients/accuracy_worst_10" : known.find((key) => key === "test/loss" && task.accuracy) || known[1]].filter(Boolean);
  const axis = radios("against", "axis", task.axes.map((one) => [one.key, one.title]), state.axis, (value) => { state.axis = value; redraw(); });
  const notes = [task.runs.some((run, at) => task.runs.findIndex((one) => one.v === run.v) !== at) ? "Line: mean over seeds; band: least and greatest. Where seeds end far apart each has its own line." : "", task.thinned ? "Some evaluations are left out to keep this file small; tables tell the last ones exactly." : ""].filter(Boolean).join(" ");
  parts.push(settings(task), legend(task), section("Results", make("div", { class: "card" }, coloured(task.table, task), make("details", {}, make("summary", {}, `each of ${plural(task.runs.length, "run")}`), coloured(task.each, task)))));
  if (task.axes.length && known.length) parts.push(section("Curves", make("div", { class: "bar" }, axis), make("div", { class: "cards" }, ...state.measures.map((_, place) => curve(task, place))), notes ? make("p", { class: "note" }, notes) : null));
  parts.push(costs(task), clients(task), work(task), waits(task), split(task));
  main.replaceChildren(...parts.filter(Boolean));
  redraw();
}

document.getElementById("title").textContent = data.title;
const every = data.tasks.flatMap((task) => task.runs).length, several = data.tasks.reduce((sum, task) => sum + task.variants.length, 0);
document.getElementById("subtitle").textContent = [`${plural(every, "finished run")}, ${plural(several, "variant")}`, data.left.length ? `${data.left.length} not counted` : "", data.tasks.length === 1 && data.tasks[0].targets.length ? `target ${data.tasks[0].targets.map((goal) => written(goal, "percent").replace(".0 %", " %")).join(", ")}` : ""].filter(Boolean).join(" · ");
theme();
show();
