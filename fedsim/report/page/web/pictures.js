"use strict";
// The kinds of pictures: curves with bands over seeds, points with a Pareto front, a heat map, a graph, and bars of work that can be enlarged.

const DASHES = ["", "7 4", "9 3 2 3", "2 3"];
const colour = (place) => `var(--c${place % 7})`;
const dash = (place) => DASHES[Math.floor(place / 7) % 4];
const APART = 1.2, GRID = 400, ROWS = 2000;

// Lines are {v: variant, x, y}. Several of a variant are one with the mean, least and greatest in the range that all of them cover, or each
// its own where they end far apart: nothing is extrapolated.

function together(lines) {
  const found = [];
  for (const v of [...new Set(lines.map((line) => line.v))].sort((a, b) => a - b)) {
    const own = lines.filter((line) => line.v === v), ends = own.map((line) => line.x.at(-1));
    if (own.length === 1 || Math.max(...ends) > APART * Math.min(...ends)) own.forEach((line) => found.push({ ...line, low: line.y, high: line.y, n: 1, thin: own.length > 1 }));
    else found.push(band(v, own));
  }
  return found;
}

function band(v, lines) {
  const first = Math.max(...lines.map((line) => line.x[0])), last = Math.min(...lines.map((line) => line.x.at(-1)));
  let x = [...new Set(lines.flatMap((line) => line.x))].filter((one) => one >= Math.min(first, last) && one <= last).sort((a, b) => a - b);
  if (x.length > GRID) x = Array.from({ length: GRID }, (_, at) => x[Math.round((at * (x.length - 1)) / (GRID - 1))]);
  const values = lines.map((line) => between(line, x)), at = (place) => values.map((one) => one[place]);
  return { v, x, n: lines.length, y: x.map((_, p) => at(p).reduce((a, b) => a + b) / lines.length), low: x.map((_, p) => Math.min(...at(p))), high: x.map((_, p) => Math.max(...at(p))) };
}

function between(line, x) {
  let place = 0;
  return x.map((one) => {
    while (place < line.x.length - 1 && line.x[place + 1] <= one) place++;
    const next = Math.min(place + 1, line.x.length - 1), gap = line.x[next] - line.x[place];
    return gap > 0 ? line.y[place] + ((line.y[next] - line.y[place]) * Math.min(1, Math.max(0, one - line.x[place]) / gap)) : line.y[place];
  });
}

// `find` gives {lines, x: {title, kind, log}, y: {title, kind, log, zero}, goals, empty} each time the chart is drawn.
function curves(title, find, options = {}) {
  let seen = null;
  const name = (v) => options.names()[v];

  function draw(svg, width, height, chart) {
    const given = find(), { x, y } = given;
    const ok = (a, b) => a !== null && b !== null && (!x.log || a > 0) && (!y.log || b > 0);
    const lines = given.lines.map((line) => {
      const kept = line.x.map((_, p) => p).filter((p) => ok(line.x[p], line.y[p]));
      return { ...line, x: kept.map((p) => line.x[p]), y: kept.map((p) => line.y[p]) };
    });
    const drawn = together(lines.filter((line) => line.x.length));
    svg.setAttribute("aria-label", `${chart.heading.textContent}: ${y.title} against ${x.title}, ${drawn.length} lines`);
    seen = null;
    if (!drawn.length) return svg.append(make("text", { x: width / 2, y: height / 2, "text-anchor": "middle" }, given.empty || "nothing to show: no variant is chosen, or none has these values"));
    const all = drawn.flatMap((line) => [...line.low, ...line.high]), ends = drawn.flatMap((line) => [line.x[0], line.x.at(-1)]);
    const least = all.reduce((a, b) => Math.min(a, b)), most = all.reduce((a, b) => Math.max(a, b));
    const room = y.log ? 0 : 0.04 * (most - least || Math.abs(most) || 1);
    const bottom = y.zero ? 0 : least >= 0 ? Math.max(0, least - room) : least - room;
    const across = scale(x.log ? Math.min(...ends) : 0, x.kind === "percent" ? 1 : Math.max(...ends), MARGIN.left, width - MARGIN.right, x.kind, x.log, Math.max(2, width / 90));
    const up = scale(bottom, y.kind === "percent" ? Math.min(1, most + room) : most + room, height - MARGIN.bottom, MARGIN.top, y.kind, y.log, 6);
    axes(svg, width, height, across, up, { ...MARGIN, xTitle: x.title + (x.log ? ", logarithmic" : ""), yTitle: y.title });
    const inner = clip(svg, width, height);
    for (const goal of given.goals || []) if (goal >= up.low && goal <= up.high) inner.append(make("path", { class: "goal", d: `M${MARGIN.left} ${up.map(goal)}H${width - MARGIN.right}` }));
    for (const line of drawn) {
      const to = (values) => line.x.map((one, p) => `${across.map(one).toFixed(1)} ${up.map(values[p]).toFixed(1)}`);
      if (line.n > 1) inner.append(make("path", { d: `M${to(line.high).join("L")}L${to(line.low).reverse().join("L")}Z`, fill: colour(line.v), "fill-opacity": 0.16 }));
      inner.append(make("path", { d: `M${to(line.y).join("L")}`, fill: "none", stroke: colour(line.v), "stroke-width": line.thin ? 1.1 : 2, "stroke-dasharray": dash(line.v), "stroke-linejoin": "round", class: "curve" }));
      if (line.x.length < 9) line.x.forEach((one, p) => inner.append(make("circle", { cx: across.map(one), cy: up.map(line.y[p]), r: 3, fill: colour(line.v) })));
    }
    seen = { drawn, across, up, x, y, width, height };
  }

  function move(svg, place) {
    if (!seen) return null;
    const { drawn, across, up, x, y, width, height } = seen, grid = drawn.reduce((a, line) => (line.x.length > a.length ? line.x : a), []);
    if (place.step !== undefined) place.step = Math.min(grid.length - 1, place.step);
    const value = place.step !== undefined ? grid[place.step] : Math.min(across.high, Math.max(across.low, across.back(place.x))), pixel = across.map(value);
    svg.append(make("path", { class: "axis cursor", d: `M${pixel} ${MARGIN.top}V${height - MARGIN.bottom}` }));
    const said = [make("span", {}, `${x.title} `, make("b", {}, written(value, x.kind)))];
    for (const line of drawn) {
      if (value < line.x[0] - 1e-9 || value > line.x.at(-1) * (1 + 1e-9)) continue;
      const [mean] = between(line, [value]), [low] = between({ x: line.x, y: line.low }, [value]), [high] = between({ x: line.x, y: line.high }, [value]);
      svg.append(make("circle", { class: "cursor", cx: pixel, cy: up.map(mean), r: 4, fill: colour(line.v) }));
      const span = line.n > 1 ? ` (${written(low, y.kind)} to ${written(high, y.kind)})` : "";
      said.push(make("span", {}, make("i", { style: `background:${colour(line.v)}` }), `${name(line.v)} `, make("b", {}, written(mean, y.kind)), span));
    }
    return said;
  }

  function rows() {
    if (!seen) return null;
    const { drawn, x, y } = seen, several = drawn.some((line) => line.n > 1), total = drawn.reduce((sum, line) => sum + line.x.length, 0), every = Math.ceil(total / ROWS);
    const columns = [{ title: "variant", text: true }, { title: x.title }, { title: y.title + (several ? ", mean" : "") }, ...(several ? [{ title: "least" }, { title: "greatest" }, { title: "seeds" }] : [])];
    const cell = (value, kind) => [written(value, kind), value];
    const found = drawn.flatMap((line) => line.x.map((one, p) => [[name(line.v), null, colour(line.v)], cell(one, x.kind), cell(line.y[p], y.kind), ...(several ? [cell(line.low[p], y.kind), cell(line.high[p], y.kind), [String(line.n), line.n]] : [])]).filter((_, p) => p % every === 0 || p === line.x.length - 1));
    return { columns, rows: found, note: every > 1 ? `Each ${every}th of ${total.toLocaleString("en-US")} points.` : "" };
  }
  return frame({ title, draw, move, rows, ...options });
}

// `find` gives {points: [{v, x, y, seeds: [[x, y]]}], x, y, missing}; less x and more y is better.
function scatter(title, find, options) {
  let seen = null;
  function draw(svg, width, height, chart) {
    const { points, x, y, missing } = find();
    chart.caption.textContent = missing;
    svg.setAttribute("aria-label", `${chart.heading.textContent}: ${y.title} against ${x.title}, ${points.length} points`);
    seen = null;
    if (!points.length) return svg.append(make("text", { x: width / 2, y: height / 2, "text-anchor": "middle" }, "no variant to show: none is chosen, or none got so far"));
    const dots = points.flatMap((point) => [[point.x, point.y], ...point.seeds]), xs = dots.map((dot) => dot[0]), ys = dots.map((dot) => dot[1]);
    const spread = Math.max(...ys) - Math.min(...ys) || Math.abs(ys[0]) || 1, log = Math.min(...xs) > 0 && Math.max(...xs) > 20 * Math.min(...xs);
    const across = scale(log ? Math.min(...xs) / 1.6 : 0, Math.max(...xs) * (log ? 1.6 : 1.12), MARGIN.left, width - MARGIN.right, x.kind, log, Math.max(2, width / 90));
    const up = scale(Math.max(0, Math.min(...ys) - 0.15 * spread), y.kind === "percent" ? Math.min(1, Math.max(...ys) + 0.15 * spread) : Math.max(...ys) + 0.15 * spread, height - MARGIN.bottom, MARGIN.top, y.kind, false, 6);
    axes(svg, width, height, across, up, { ...MARGIN, xTitle: x.title + (log ? ", logarithmic" : ""), yTitle: y.title });
    const ordered = [...points].sort((a, b) => a.x - b.x || better(y, b.y, a.y)), front = [];
    for (const point of ordered) if (!front.length || better(y, point.y, front.at(-1).y) > 0) front.push(point);
    const steps = front.map((point, p) => (p ? `H${across.map(point.x)}V${up.map(point.y)}` : `M${across.map(point.x)} ${up.map(point.y)}`)).join("");
    svg.append(make("path", { class: "goal", d: steps + `H${width - MARGIN.right}` }));
    const taken = ordered.map((point) => [across.map(point.x) - 5, up.map(point.y) - 5, 10, 10]), apart = (one, other) => one[0] > other[0] + other[2] || other[0] > one[0] + one[2] || one[1] > other[1] + other[3] || other[1] > one[1] + one[3];
    for (const point of ordered) {
      const cx = across.map(point.x), cy = up.map(point.y), text = options.names()[point.v], shown = text.length > 26 ? text.slice(0, 25) + "…" : text;
      for (const [a, b] of point.seeds) svg.append(make("circle", { cx: across.map(a), cy: up.map(b), r: 2.5, fill: colour(point.v), "fill-opacity": 0.55 }));
      svg.append(make("circle", { cx, cy, r: 6, fill: colour(point.v), class: "point", stroke: front.includes(point) ? "var(--text)" : "var(--card)", "stroke-width": 1.5 }));
      const length = 6.3 * shown.length, right = cx + 12 + length < width, box = [right ? cx + 6 : cx - 6 - length, cy - 21, length, 13];
      if (box[0] < MARGIN.left || !taken.every((one) => apart(one, box))) continue; // the cursor tells its name
      taken.push(box);
      svg.append(make("text", { class: "name", x: right ? cx + 6 : cx - 6, y: cy - 10, "text-anchor": right ? "start" : "end" }, shown));
    }
    seen = { ordered, front, across, up, x, y };
  }
  const better = (y, a, b) => (y.falls ? b - a : a - b);
  function move(svg, place) {
    if (!seen) return null;
    const { ordered, front, across, up, x, y } = seen, far = (point) => Math.hypot(across.map(point.x) - place.x, up.map(point.y) - place.y);
    if (place.step !== undefined) place.step = Math.min(ordered.length - 1, place.step);
    const point = place.step !== undefined ? ordered[place.step] : ordered.reduce((a, b) => (far(b) < far(a) ? b : a));
    if (place.step === undefined && far(point) > 40) return null;
    svg.append(make("circle", { class: "axis cursor", cx: across.map(point.x), cy: up.map(point.y), r: 10 }));
    return [make("span", {}, make("i", { style: `background:${colour(point.v)}` }), options.names()[point.v], ": ", make("b", {}, written(point.y, y.kind)), ` for ${written(point.x, x.kind)}`, front.includes(point) ? "; nothing cheaper is as good" : "")];
  }
  function rows() {
    if (!seen) return null;
    const { ordered, front, x, y } = seen;
    return {
      columns: [{ title: "variant", text: true }, { title: x.title }, { title: y.title }, { title: "seeds" }, { title: "on the front" }],
      rows: ordered.map((point) => [[options.names()[point.v], null, colour(point.v)], [written(point.x, x.kind), point.x], [written(point.y, y.kind), point.y], [String(point.seeds.length), point.seeds.length], [front.includes(point) ? "yes" : "no", null]]),
    };
  }
  return frame({ title, draw, move, rows, help: "Arrow keys go from point to point, Enter opens the data as a table.", ...options });
}

// Which labels lie on which clients: {about, shares: [clients][labels] in per cent, sizes, starts}.
function heatmap(title, map) {
  const LEVELS = 24, clients = map.shares.length, labels = map.starts.length, most = Math.max(...map.sizes, 1);
  let seen = null;
  function draw(svg, width, height) {
    const left = 40, top = 64, bottom = 40, wide = (width - left - 8) / clients, high = (height - top - bottom) / labels;
    svg.setAttribute("aria-label", `${title}: share of each label in the samples of ${map.about}`);
    const levels = Array.from({ length: LEVELS + 1 }, () => ""), bars = [];
    map.shares.forEach((row, c) => {
      row.forEach((share, l) => (levels[Math.min(LEVELS, Math.ceil((share / 100) * LEVELS))] += `M${(left + c * wide).toFixed(2)} ${(height - bottom - (l + 1) * high).toFixed(2)}h${(wide + 0.3).toFixed(2)}v${(high + 0.3).toFixed(2)}h${(-wide - 0.3).toFixed(2)}z`));
      bars.push(`M${(left + c * wide).toFixed(2)} ${top - 8}h${(wide * 0.85).toFixed(2)}v${((-34 * map.sizes[c]) / most).toFixed(1)}h${(-wide * 0.85).toFixed(2)}z`);
    });
    levels.forEach((d, level) => d && svg.append(make("path", { d, fill: `rgba(var(--heat), ${(level / LEVELS).toFixed(3)})` })));
    svg.append(make("path", { d: bars.join(""), fill: "var(--soft)", "fill-opacity": 0.7 }), make("text", { x: 2, y: 11 }, `samples a client, at most ${written(most, "count")}`));
    svg.append(make("path", { class: "axis", d: `M${left} ${height - bottom + 0.5}H${width - 8}` }), make("text", { x: (left + width) / 2, y: height - 6, "text-anchor": "middle" }, "client"));
    svg.append(make("text", { x: 2, y: height - bottom + 18 }, "label"));
    const every = Math.ceil(labels / 12);
    for (let l = 0; l < labels; l += every) svg.append(make("text", { x: left - 6, y: height - bottom - (l + 0.5) * high + 4, "text-anchor": "end" }, String(map.starts[l])));
    const marks = Math.ceil(clients / Math.max(2, Math.floor(width / 60)) / 5) * 5 || 1;
    for (let c = 0; c < clients; c += marks) svg.append(make("text", { x: left + (c + 0.5) * wide, y: height - bottom + 16, "text-anchor": "middle" }, String(c)));
    seen = { left, wide, high, height, bottom };
  }
  function move(svg, place) {
    if (place.step !== undefined) place.step = Math.min(clients - 1, place.step);
    const c = place.step !== undefined ? place.step : Math.floor((place.x - seen.left) / seen.wide);
    if (c < 0 || c >= clients) return null;
    svg.append(make("rect", { class: "axis cursor", x: seen.left + c * seen.wide, y: 20, width: seen.wide, height: seen.height - seen.bottom - 20 }));
    const best = map.shares[c].map((share, l) => [share, l]).sort((a, b) => b[0] - a[0]).slice(0, 4).filter(([share]) => share);
    return [make("span", {}, `client ${c}: `, make("b", {}, `${written(map.sizes[c], "count")} samples`), best.map(([share, l]) => `, label ${map.starts[l]} ${share} %`).join(""))];
  }
  const rows = () => ({ columns: [{ title: "client" }, { title: "samples" }, ...map.starts.map((l) => ({ title: String(l), group: "share of label in %" }))], rows: map.shares.map((row, c) => [[String(c), c], [written(map.sizes[c], "count"), map.sizes[c]], ...row.map((share) => [String(share), share])]) });
  return frame({ title, height: Math.min(420, 130 + Math.max(120, 20 * labels)), about: map.about, draw, move, rows, help: "Arrow keys go from client to client, Enter opens the data as a table." });
}

// How slow who was when: {about, rows: [name], cells: [[tenths of doublings]], seconds, top: [[client, share, seconds]]}.
function slowness(title, map) {
  const left = 92, top = 12, bottom = 40, rows = map.cells.length, columns = map.cells[0].length, most = 30, LEVELS = 12;
  const times = (tenths) => `${2 ** (tenths / 10) < 10 ? (2 ** (tenths / 10)).toPrecision(2) : Math.round(2 ** (tenths / 10))} x`;
  let seen = null;
  function draw(svg, width, height) {
    const wide = (width - left - 8) / columns, high = (height - top - bottom) / rows, levels = {};
    svg.setAttribute("aria-label", `${title}: how long the jobs of ${rows} rows of clients took, beside what is usual, over time`);
    map.cells.forEach((row, r) => row.forEach((cell, c) => {
      if (cell === null) return;
      const level = Math.round((Math.max(-most, Math.min(most, cell)) / most) * LEVELS);
      levels[level] = (levels[level] || "") + `M${(left + c * wide).toFixed(2)} ${(top + r * high).toFixed(2)}h${(wide + 0.3).toFixed(2)}v${(high + 0.3).toFixed(2)}h${(-wide - 0.3).toFixed(2)}z`;
    }));
    svg.append(make("rect", { x: left, y: top, width: width - left - 8, height: height - top - bottom, fill: "var(--soft)", "fill-opacity": 0.16 }));
    Object.entries(levels).forEach(([level, d]) => svg.append(make("path", { d, fill: "var(--card)" }), make("path", { d, fill: level > 0 ? "var(--c3)" : "var(--c0)", "fill-opacity": Math.abs(level) / LEVELS })));
    const every = Math.ceil(rows / Math.max(2, Math.floor((height - top - bottom) / 16)));
    for (let r = 0; r < rows; r += every) svg.append(make("text", { x: left - 6, y: top + (r + 0.5) * high + 4, "text-anchor": "end" }, map.rows[r]));
    for (let mark = 0; mark <= 4; mark++) svg.append(make("text", { x: left + (mark / 4) * (width - left - 8), y: height - bottom + 16, "text-anchor": mark === 4 ? "end" : mark ? "middle" : "start" }, written((map.seconds * mark) / 4, "seconds")));
    svg.append(make("text", { x: (left + width) / 2, y: height - 6, "text-anchor": "middle" }, "when jobs began"));
    seen = { wide, high };
  }
  function move(svg, place) {
    if (place.step !== undefined) place.step = Math.min(rows - 1, place.step);
    const r = place.step !== undefined ? place.step : Math.floor((place.y - top) / seen.high), c = place.step !== undefined ? -1 : Math.floor((place.x - left) / seen.wide);
    if (!(r >= 0 && r < rows && c < columns)) return null;
    svg.append(make("rect", { class: "axis cursor", x: left, y: top + r * seen.high, width: seen.wide * columns, height: seen.high }));
    const known = map.cells[r].filter((cell) => cell !== null), cell = c >= 0 ? map.cells[r][c] : null;
    const text = cell !== null && cell !== undefined ? `${times(cell)} the usual time` : `from ${times(Math.min(...known))} to ${times(Math.max(...known))} the usual time`;
    return [make("span", {}, `client ${map.rows[r]}: `, make("b", {}, text))];
  }
  const table = () => ({ columns: [{ title: "client that rounds waited for" }, { title: "share of rounds" }, { title: "for it alone" }], rows: map.top.map(([node, share, alone]) => [[String(node), node], [written(share, "percent"), share], [written(alone, "seconds"), alone]]) });
  return frame({ title, height: Math.min(460, 80 + Math.max(120, 9 * rows)), about: map.about.join(". ") + ". Orange: slower than usual, blue: faster, plain: as usual, grey: none began.", draw, move, rows: table, help: "Arrow keys go from client to client, Enter opens whom rounds waited for as a table." });
}

// Who hears whom: {about, at: [[x, y]], edges: [[a, b]]}.
function graph(title, map) {
  const nodes = map.at.length, near = map.at.map(() => []);
  map.edges.forEach(([a, b]) => (near[a].push(b), near[b].push(a)));
  let place = null;
  function draw(svg, width, height) {
    const xs = map.at.map((one) => one[0]), ys = map.at.map((one) => one[1]), size = Math.min(width, height) - 40;
    const fit = (values, middle) => { const low = Math.min(...values), span = Math.max(...values) - low || 1; return values.map((one) => middle + ((one - low) / span - 0.5) * size); };
    const x = fit(xs, width / 2), y = fit(ys, height / 2);
    svg.setAttribute("aria-label", `${title}: ${map.about}`);
    svg.append(make("path", { class: "axis", "stroke-opacity": map.edges.length > 400 ? 0.2 : 0.6, d: map.edges.map(([a, b]) => `M${x[a].toFixed(1)} ${y[a].toFixed(1)}L${x[b].toFixed(1)} ${y[b].toFixed(1)}`).join("") }));
    const r = Math.max(2, Math.min(9, (size * 1.6) / nodes));
    place = { x, y, r };
    for (let n = 0; n < nodes; n++) {
      svg.append(make("circle", { cx: x[n], cy: y[n], r, fill: "var(--c0)" }));
      if (r > 7) svg.append(make("text", { x: x[n], y: y[n] + 3.5, "text-anchor": "middle", style: "fill:#fff;font-size:10px" }, String(n)));
    }
  }
  function move(svg, at) {
    if (at.step !== undefined) at.step = Math.min(nodes - 1, at.step);
    const far = (n) => Math.hypot(place.x[n] - at.x, place.y[n] - at.y);
    const n = at.step !== undefined ? at.step : place.x.reduce((best, _, one) => (far(one) < far(best) ? one : best), 0);
    if (at.step === undefined && far(n) > 30) return null;
    svg.append(make("path", { class: "cursor", stroke: "var(--c3)", "stroke-width": 2, fill: "none", d: near[n].map((b) => `M${place.x[n]} ${place.y[n]}L${place.x[b]} ${place.y[b]}`).join("") || "M0 0" }), make("circle", { class: "cursor", cx: place.x[n], cy: place.y[n], r: place.r + 3, fill: "var(--c3)" }));
    return [make("span", {}, `node ${n}: `, make("b", {}, `${near[n].length} neighbours`), near[n].length <= 12 ? ` (${near[n].join(", ")})` : "")];
  }
  const rows = () => ({ columns: [{ title: "node" }, { title: "neighbours" }, { title: "who", text: true }], rows: near.map((own, n) => [[String(n), n], [String(own.length), own.length], [own.slice(0, 30).join(", ") + (own.length > 30 ? ", …" : ""), null]]) });
  return frame({ title, height: 320, about: map.about, draw, move, rows, help: "Arrow keys go from node to node, Enter opens the data as a table." });
}

// Bars of work, see fedsim/report/page/bars.py; times are steps of a millionth of what is kept.
function gantt(title, one, select) {
  const FINE = 1e6, unit = (one.to - one.from) / FINE, seconds = (steps) => one.from + steps * unit;
  const all = [0, FINE], first = [Math.max(0, (one.show[0] - one.from) / unit), Math.min(FINE, (one.show[1] - one.from) / unit)];
  const dropped = new Set(one.dropped), shades = [0.4, 1, 0.7];
  let view = first[1] > first[0] ? [...first] : [...all], seen = null;

  function zoom(factor, about = 0.5) {
    const length = Math.min(FINE, Math.max(FINE / 2000, (view[1] - view[0]) * factor)), middle = view[0] + about * (view[1] - view[0]);
    set(middle - about * length, length);
  }
  function set(start, length = view[1] - view[0]) {
    const from = Math.max(0, Math.min(FINE - length, start));
    view = [from, from + length];
    chart.redraw();
  }
  const shift = (share) => set(view[0] + share * (view[1] - view[0]));
  const button = (text, label, act) => make("button", { type: "button", "aria-label": label, title: label, onclick: act }, text);
  const controls = make("div", { class: "zoom" }, button("−", "show more time", () => zoom(2)), " ", button("+", "enlarge", () => zoom(0.5)), " ", button("‹", "earlier", () => shift(-0.5)), " ", button("›", "later", () => shift(0.5)), " ", button("all", "all that is kept", () => set(0, FINE)));

  function draw(svg, width, height) {
    const high = (height - MARGIN.top - MARGIN.bottom) / one.nodes.length;
    const x = scale(seconds(view[0]), seconds(view[1]), MARGIN.left, width - MARGIN.right, "seconds", false, Math.max(2, width / 90));
    axes(svg, width, height, x, { ticks: [], unit: "" }, { ...MARGIN, xTitle: "simulated time", yTitle: "client" });
    const parts = ["", "", ""], crosses = [], map = (steps) => x.map(seconds(steps)), inner = clip(svg, width, height);
    for (let j = 0; j < one.row.length; j++) {
      if (one.stop[j] < view[0] || one.start[j] > view[1]) continue;
      const top = (MARGIN.top + one.row[j] * high + 0.1 * high).toFixed(1), tall = (0.8 * high).toFixed(1);
      const ends = [one.start[j], one.start[j] + one.down[j], one.start[j] + one.down[j] + one.work[j], one.stop[j]].map((end) => map(Math.min(end, one.stop[j])));
      ends[0] += Math.min(0.6, (ends[3] - ends[0]) / 4); // so that two jobs are two bars
      for (let part = 0; part < 3; part++) if (ends[part + 1] - ends[part] > 0.05) parts[part] += `M${ends[part].toFixed(1)} ${top}H${ends[part + 1].toFixed(1)}v${tall}H${ends[part].toFixed(1)}z`;
      if (dropped.has(j)) crosses.push(`M${ends[3] - 3} ${+top + tall / 2 - 3}l6 6m0 -6l-6 6`);
    }
    parts.forEach((d, part) => d && inner.append(make("path", { d, fill: colour(one.variant), "fill-opacity": shades[part], class: "work" })));
    const merges = one.merges.filter((at) => at >= view[0] && at <= view[1]);
    if (merges.length <= width / 8) inner.append(make("path", { class: "goal", d: merges.map((at) => `M${map(at)} ${MARGIN.top}V${height - MARGIN.bottom}`).join("") || "M0 0" }));
    inner.append(make("path", { d: crosses.join("") || "M0 0", stroke: "var(--drop)", "stroke-width": 1.8 }));
    const every = Math.ceil(13 / high);
    for (let row = 0; row < one.nodes.length; row += every) svg.append(make("text", { x: MARGIN.left - 6, y: MARGIN.top + (row + 0.5) * high + 4, "text-anchor": "end" }, String(one.nodes[row])));
    svg.setAttribute("aria-label", `${title}: work of ${one.nodes.length} clients from ${written(x.low, "seconds")} to ${written(x.high, "seconds")}`);
    seen = { x, high, map };
  }
  function move(svg, place) {
    if (place.y === undefined) return null;
    const row = Math.floor((place.y - MARGIN.top) / seen.high), at = (seen.x.back(place.x) - one.from) / unit;
    const job = one.row.findIndex((own, j) => own === row && one.start[j] <= at && one.stop[j] >= at);
    const said = [make("span", {}, make("b", {}, written(seconds(at), "seconds")))];
    if (job >= 0) said.push(make("span", {}, `client ${one.nodes[row]}: work of ${written(one.work[job] * unit, "seconds")} from ${written(seconds(one.start[job]), "seconds")} to ${written(seconds(one.stop[job]), "seconds")}${dropped.has(job) ? ", dropped" : ""}`));
    return said;
  }
  function rows() {
    const shown = one.row.map((_, j) => j).filter((j) => one.stop[j] >= view[0] && one.start[j] <= view[1]), cell = (value) => [written(value, "seconds"), value];
    return { columns: [{ title: "client" }, { title: "from" }, { title: "to" }, { title: "model down" }, { title: "work" }, { title: "dropped", text: true }], rows: shown.slice(0, 1000).map((j) => [[String(one.nodes[one.row[j]]), one.nodes[one.row[j]]], cell(seconds(one.start[j])), cell(seconds(one.stop[j])), cell(one.down[j] * unit), cell(one.work[j] * unit), [dropped.has(j) ? "yes" : "no", null]]), note: shown.length > 1000 ? "The first 1,000 jobs of the stretch that is shown; enlarge it for others." : "The jobs of the stretch that is shown." };
  }
  function keys(event) {
    const act = { "+": () => zoom(0.5), "=": () => zoom(0.5), "-": () => zoom(2), ArrowLeft: () => shift(-0.25), ArrowRight: () => shift(0.25), Home: () => set(0), End: () => set(FINE), 0: () => set(0, FINE) }[event.key];
    if (act) act();
    return Boolean(act);
  }
  const part = one.from > 0 || one.to < one.whole ? `${written(one.from, "seconds")} to ${written(one.to, "seconds")} of ${written(one.whole, "seconds")} are kept` : `the whole run (${written(one.whole, "seconds")}) is kept`;
  const about = `${one.nodes.length} of ${one.of} clients; ${part}. Pale: model down, full: work, between: update up; cross: dropped; dotted line: merge.`;
  const chart = frame({ title, height: Math.max(150, Math.min(560, 70 + 16 * one.nodes.length)), about, controls: [...(select ? [select] : []), controls], quiet: Boolean(select), draw, move, rows, keys, help: "Plus and minus change how much is shown, arrow keys go earlier and later, 0 shows all, Enter opens the data as a table." });
  const share = (event) => (event.clientX - chart.svg.getBoundingClientRect().left - MARGIN.left) / (chart.svg.clientWidth - MARGIN.left - MARGIN.right);
  chart.svg.addEventListener("wheel", (event) => (event.ctrlKey || event.shiftKey) && (event.preventDefault(), zoom(event.deltaY + event.deltaX > 0 ? 1.25 : 0.8, share(event))), { passive: false });
  chart.svg.addEventListener("dblclick", (event) => zoom(0.5, share(event)));
  chart.svg.addEventListener("pointerdown", (event) => { chart.dragging = { at: share(event), from: view[0] }; chart.svg.setPointerCapture(event.pointerId); });
  chart.svg.addEventListener("pointermove", (event) => chart.dragging && set(chart.dragging.from - (share(event) - chart.dragging.at) * (view[1] - view[0])));
  for (const end of ["pointerup", "pointercancel"]) chart.svg.addEventListener(end, () => (chart.dragging = null));
  return chart;
}
