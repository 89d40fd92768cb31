"use strict";
// Text from the registry is only ever set as textContent, or as the value of an attribute that runs nothing.
const models = JSON.parse(document.getElementById("data").textContent);
const [table, model, metric, chart, point, missing, filter, count] =
  ["models", "model", "metric", "chart", "point", "missing", "filter", "count"].map(id => document.getElementById(id));
const body = table.tBodies[0];
const show = value => typeof value === "number" ? String(Number(value.toPrecision(4))) : String(value);

// Sort: a column's numbers are in data-sort. Empty cells come last.
function sort(heading) {
  const column = heading.cellIndex;
  const down = heading.getAttribute("aria-sort") === "ascending";
  const key = row => row.cells[column].dataset.sort ?? row.cells[column].textContent.trim();
  const isNumber = body.querySelector(`tr > :nth-child(${column + 1})[data-sort]`) !== null;
  const compare = (a, b) => isNumber ? a - b : a.localeCompare(b, undefined, { numeric: true });
  const rows = [...body.rows].map(row => [key(row), row]);
  rows.sort(([a], [b]) => (a === "") - (b === "") || (a === "" ? 0 : down ? compare(b, a) : compare(a, b)));
  body.append(...rows.map(([, row]) => row));
  for (const each of table.tHead.rows[0].cells) each.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", down ? "descending" : "ascending");
}

// A button around the content of a cell.
function button(cell, act) {
  const made = document.createElement("button");
  made.type = "button";
  made.append(...cell.childNodes);
  made.addEventListener("click", act);
  cell.append(made);
  return made;
}

function narrow() {
  const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const row of body.rows) {
    const text = row.textContent.toLowerCase();
    row.hidden = !words.every(word => text.includes(word));
    shown += !row.hidden;
  }
  count.textContent = `${shown} of ${body.rows.length} rows`;
}

function options(select, names) {
  select.replaceChildren(...names.map((name, index) => new Option(name, index)));
}

// A node of the plot.
function node(parent, name, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  parent.append(made);
  return made;
}

// About four to seven round numbers from `low` to `high`.
function ticks(low, high) {
  const rough = (high / 6 - low / 6) || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map(each => each * power).find(each => each >= rough);
  const first = Math.ceil(low / step);
  return Array.from({ length: 12 }, (_, index) => (first + index) * step).filter(each => each <= high && Number.isFinite(each));
}

function draw() {
  const chosen = models[model.value], series = chosen.metrics[metric.value];
  const [wide, high, left, right, top, bottom] = [Math.max(320, chart.clientWidth), 260, 64, 24, 34, 34];
  const values = series ? series.values : [];
  const points = values.map((value, index) => ({ value, index })).filter(({ value }) => typeof value === "number");
  const odd = values.map((value, index) => typeof value === "string" ? `version ${chosen.versions[index]}: ${value}` : "").filter(Boolean);
  missing.textContent = odd.length ? `Not plotted: ${odd.slice(0, 20).join(", ")}${odd.length > 20 ? " …" : ""}` : "";
  point.textContent = "";
  for (const row of body.rows) row.classList.toggle("chosen", row.dataset.model === chosen.name);
  chart.replaceChildren();
  const label = series ? `${series.name} of ${chosen.name} over versions` : `${chosen.name} has no metrics`;
  const svg = node(chart, "svg", { viewBox: `0 0 ${wide} ${high}`, role: "group", "aria-label": label });
  if (!points.length) {
    node(svg, "text", { x: wide / 2, y: high / 2, "text-anchor": "middle" }, series ? "no numbers" : "no metrics");
    return;
  }
  let low = Math.min(...points.map(each => each.value)), most = Math.max(...points.map(each => each.value));
  const margin = (most / 20 - low / 20) || Math.abs(low) / 20 || 1;
  low = Math.max(low - margin, -Number.MAX_VALUE);
  most = Math.min(most + margin, Number.MAX_VALUE);
  const y = value => high - bottom - (value / 2 - low / 2) / (most / 2 - low / 2) * (high - top - bottom);
  const [first, last] = [chosen.versions[0], chosen.versions.at(-1)];
  const x = version => first === last ? (wide + left - right) / 2 : left + (version - first) / (last - first) * (wide - left - right);
  for (const each of ticks(low, most)) {
    node(svg, "line", { class: "grid", x1: left, x2: wide - right, y1: y(each), y2: y(each) });
    node(svg, "text", { x: left - 8, y: y(each) + 4, "text-anchor": "end" }, show(each));
  }
  const every = Math.ceil(chosen.versions.length / Math.max(2, Math.floor((wide - left) / 60)));
  chosen.versions.forEach((version, index) => {
    if (index % every === 0) node(svg, "text", { x: x(version), y: high - bottom + 20, "text-anchor": "middle" }, version);
  });
  node(svg, "text", { x: wide - right, y: high - 2, "text-anchor": "end" }, "version");
  const used = new Map();
  for (const [name, version] of chosen.environments) used.set(version, [...(used.get(version) ?? []), name]);
  for (const [version, names] of used) {
    if (!chosen.versions.includes(version)) continue;
    const near = x(version) > wide - 140 ? "end" : x(version) < 140 ? "start" : "middle";
    const line = [...used.keys()].sort((a, b) => a - b).indexOf(version) % 2;
    node(svg, "line", { class: "mark", x1: x(version), x2: x(version), y1: top - 6 - 14 * line, y2: high - bottom });
    node(svg, "text", { class: "name", x: x(version), y: top - 10 - 14 * line, "text-anchor": near }, names.join(", "));
  }
  // A version without a number is a gap.
  const path = points.map((each, place) => `${place && points[place - 1].index === each.index - 1 ? "L" : "M"}${x(chosen.versions[each.index])},${y(each.value)}`);
  node(svg, "path", { class: "series", d: path.join("") });
  for (const { value, index } of points) {
    const version = chosen.versions[index], names = used.get(version) ?? [];
    const text = [`version ${version}`, `${series.name} ${show(value)}`, chosen.days[index], ...names].join(" · ");
    const group = node(svg, "g", { class: "point", tabindex: 0, role: "img", "aria-label": text });
    node(group, "circle", { class: names.length ? "used" : "", cx: x(version), cy: y(value), r: 4 });
    node(group, "circle", { class: "area", cx: x(version), cy: y(value), r: 11 });
    for (const event of ["mouseenter", "focus"]) group.addEventListener(event, () => { point.textContent = text; });
  }
}

function choose(index) {
  model.value = index;
  options(metric, models[index].metrics.map(each => each.name));
  draw();
}

for (const heading of table.tHead.rows[0].cells) button(heading, () => sort(heading));
for (const row of body.rows) {
  const index = models.findIndex(each => each.name === row.dataset.model);
  if (index >= 0) button(row.cells[0], () => choose(index)).title = "Plot its metrics";
}
filter.addEventListener("input", narrow);
model.addEventListener("change", () => choose(model.value));
metric.addEventListener("change", draw);
window.addEventListener("resize", () => models.length && draw());
document.getElementById("find").hidden = false;
narrow();
if (models.length) {
  document.getElementById("plot").hidden = false;
  options(model, models.map(each => each.name));
  choose(Math.max(0, models.findIndex(each => each.metrics.length)));
}
