"use strict";
// Draws a layered graph on a canvas: only what is visible is drawn, names only where they can be read.
const found = JSON.parse(document.getElementById("found").textContent);
const drawn = JSON.parse(document.getElementById("drawn").textContent);
const { nodes, edges } = drawn, { spaces, sites, weights, declined } = found;
const COLUMN = 200, ROW = 62, WIDTH = 168, HEIGHT = 36, MOST = 400, FAR = 16, MANY = 4;
const $ = id => document.getElementById(id);
const dark = matchMedia("(prefers-color-scheme: dark)");

// -- what belongs together ------------------------------------------------------------------------------------------

const siteOf = new Map(sites.map(site => [site.name, site]));
const reasonsOf = new Map();
for (const entry of declined) reasonsOf.set(entry.site, [...(reasonsOf.get(entry.site) || []), entry]);
const layers = Array.from({ length: drawn.layers }, () => []);
nodes.forEach((node, i) => {
  node.index = i; node.px = node.x * COLUMN; node.py = node.layer * ROW;
  node.site = node.kind === "node" ? siteOf.get(node.name) : undefined;
  node.module = node.site?.module ?? node.module; node.ins = []; node.outs = []; node.set = new Set(node.spaces);
  layers[node.layer].push(node);
});
for (const edge of edges) { nodes[edge[0]].outs.push(edge); nodes[edge[1]].ins.push(edge); }
const order = spaces.map((space, i) => i).sort((a, b) => weight(b) - weight(a) || a - b);
const rank = new Map(order.map((space, i) => [space, i]));
function weight(i) { const s = spaces[i]; return (s.readers.length + s.writers.length) * 1e6 + s.values.length; }
function isUsed(i) { return spaces[i].readers.length + spaces[i].writers.length > 0; }
function color(i) {
  if (i < 0 || !isUsed(i)) return dark.matches ? "#4b5666" : "#aab3c0";
  const hue = (215 + rank.get(i) * 137.508) % 360;
  return spaces[i].freedom === "none" ? `hsl(${hue} 14% ${dark.matches ? 48 : 66}%)` : `hsl(${hue} ${dark.matches ? "58% 58%" : "64% 50%"})`;
}
const colors = new Map();
function colorOf(i) { if (!colors.has(i)) colors.set(i, color(i)); return colors.get(i); }

// -- the view -------------------------------------------------------------------------------------------------------

let view = { x: 0, y: 0, zoom: 1 }, showAux = false, chosen = { space: -1, node: -1 }, hits = null, waiting = false;
const main = nodes.filter(node => !node.aux);
const box = extent(main.length ? main : nodes);
function extent(list) {
  const xs = list.map(n => n.px), ys = list.map(n => n.py);
  const low = a => a.reduce((p, v) => Math.min(p, v), Infinity), high = a => a.reduce((p, v) => Math.max(p, v), -Infinity);
  return list.length ? { x0: low(xs) - WIDTH, x1: high(xs) + WIDTH, y0: low(ys) - ROW, y1: high(ys) + ROW } : { x0: 0, x1: 1, y0: 0, y1: 1 };
}
function redraw() { if (!waiting) { waiting = true; requestAnimationFrame(() => { waiting = false; paint(); paintMap(); }); } }
function context(canvas) {
  const ratio = devicePixelRatio || 1, area = canvas.getBoundingClientRect();
  if (canvas.width !== Math.round(area.width * ratio)) canvas.width = Math.round(area.width * ratio);
  if (canvas.height !== Math.round(area.height * ratio)) canvas.height = Math.round(area.height * ratio);
  const pen = canvas.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, area.width, area.height);
  return [pen, area.width, area.height];
}
function ink(name) { return getComputedStyle(document.documentElement).getPropertyValue(name).trim(); }
function faded(node) {
  if (hits) return !hits.has(node.index);
  return chosen.space >= 0 && !node.set.has(chosen.space);
}

function paint() {
  const [pen, width, height] = context($("graph"));
  pen.translate(width / 2, height / 2); pen.scale(view.zoom, view.zoom); pen.translate(-view.x, -view.y);
  const half = { x: width / 2 / view.zoom, y: height / 2 / view.zoom };
  const seen = { x0: view.x - half.x - WIDTH, x1: view.x + half.x + WIDTH, y0: view.y - half.y - HEIGHT, y1: view.y + half.y + HEIGHT };
  for (const edge of edges) paintEdge(pen, edge, seen);
  const first = Math.max(0, Math.floor(seen.y0 / ROW)), last = Math.min(layers.length - 1, Math.ceil(seen.y1 / ROW));
  const theme = { ink: ink("--ink"), dim: ink("--dim"), card: ink("--card"), accent: ink("--accent") };
  for (let layer = first; layer <= last; layer++)
    for (const node of layers[layer])
      if ((showAux || !node.aux) && node.px > seen.x0 && node.px < seen.x1) paintNode(pen, node, theme);
}
function paintEdge(pen, [from, to, , space], seen) {
  const a = nodes[from], b = nodes[to];
  if (!showAux && (a.aux || b.aux)) return;
  const y0 = a.py + HEIGHT / 2, y1 = b.py - HEIGHT / 2, span = b.layer - a.layer;
  const bend = span > 1 ? Math.min(70 + span * 5, 260) * (b.px + a.px >= box.x0 + box.x1 ? 1 : -1) : 0;
  if (y1 < seen.y0 || y0 > seen.y1 || Math.max(a.px, b.px) + 260 < seen.x0 || Math.min(a.px, b.px) - 260 > seen.x1) return;
  const active = chosen.space === space && space >= 0 || chosen.node === from || chosen.node === to;
  if (span > FAR && a.outs.length > MANY && !active) return paintStubs(pen, a, b, space, y0, y1);
  pen.globalAlpha = hits || chosen.space >= 0 && !active ? 0.12 : 0.85;
  pen.strokeStyle = colorOf(space);
  pen.lineWidth = (active ? 3.2 : isWide(space) ? 2 : 1.1) * Math.max(1, 0.35 / view.zoom);
  pen.beginPath(); pen.moveTo(a.px, y0);
  if (bend) pen.bezierCurveTo(a.px + bend, y0 + ROW * 0.8, b.px + bend, y1 - ROW * 0.8, b.px, y1);
  else pen.bezierCurveTo(a.px, y0 + (y1 - y0) * 0.6, b.px, y1 - (y1 - y0) * 0.6, b.px, y1);
  pen.stroke(); pen.globalAlpha = 1;
}
// What is read all over the graph (positions, masks) would hide everything else: only its ends are drawn until asked for.
function paintStubs(pen, a, b, space, y0, y1) {
  pen.globalAlpha = hits || chosen.space >= 0 ? 0.12 : 0.6; pen.strokeStyle = colorOf(space); pen.lineWidth = 1.1;
  pen.setLineDash([3, 4]); pen.beginPath();
  pen.moveTo(a.px, y0); pen.lineTo(a.px, y0 + 14); pen.moveTo(b.px + WIDTH * 0.3, y1 - 14); pen.lineTo(b.px + WIDTH * 0.3, y1);
  pen.stroke(); pen.setLineDash([]); pen.globalAlpha = 1;
}
function isWide(space) { return space >= 0 && isUsed(space); }
function paintNode(pen, node, theme) {
  const wide = Math.max(WIDTH, 7 / view.zoom), x = node.px - wide / 2, y = node.py - HEIGHT / 2, tone = colorOf(node.main);
  pen.globalAlpha = faded(node) ? 0.18 : 1;
  pen.beginPath(); pen.roundRect(x, y, wide, HEIGHT, node.kind === "node" ? 8 : 18);
  pen.fillStyle = view.zoom < 0.3 ? tone : theme.card; pen.fill();
  pen.lineWidth = node.index === chosen.node ? 4 : node.site ? 2.6 : 1.2; pen.strokeStyle = node.index === chosen.node ? theme.accent : tone; pen.stroke();
  if (view.zoom >= 0.3) {
    if (node.site) { pen.fillStyle = tone; pen.globalAlpha *= 0.2; pen.fill(); pen.globalAlpha = faded(node) ? 0.18 : 1; }
    pen.fillStyle = tone; pen.beginPath(); pen.roundRect(x, y, 7, HEIGHT, [8, 0, 0, 8]); pen.fill();
    pen.fillStyle = theme.ink; pen.font = "600 13px system-ui, sans-serif"; pen.textBaseline = "middle";
    pen.fillText(cut(pen, node.kind === "node" ? node.op : `${node.op}: ${node.name}`, WIDTH - 22), x + 15, y + (view.zoom < 0.55 ? HEIGHT / 2 : 12));
    if (view.zoom >= 0.55) {
      pen.fillStyle = theme.dim; pen.font = "11px ui-monospace, monospace";
      pen.fillText(cut(pen, node.site ? `${node.site.weight_shape.join("x")}  ${node.site.space_in ?? "·"} → ${node.site.space_out ?? "·"}` : node.shape || "scalar", WIDTH - 22), x + 15, y + 26);
    }
  }
  pen.globalAlpha = 1;
}
function cut(pen, text, width) {
  if (pen.measureText(text).width <= width) return text;
  let n = text.length;
  while (n > 1 && pen.measureText(text.slice(0, n) + "…").width > width) n = Math.ceil(n * 0.85) - 1;
  return text.slice(0, n) + "…";
}

// -- the map on the side --------------------------------------------------------------------------------------------

function mapScale(width, height) { return { x: width / (box.x1 - box.x0), y: height / (box.y1 - box.y0) }; }
function paintMap() {
  const [pen, width, height] = context($("mini")), s = mapScale(width, height);
  for (const node of main) {
    pen.globalAlpha = faded(node) ? 0.12 : 1; pen.fillStyle = colorOf(node.main);
    pen.fillRect((node.px - box.x0) * s.x - 3, (node.py - box.y0) * s.y, 6, Math.max(1, Math.min(4, ROW * s.y * 0.7)));
  }
  const area = $("graph").getBoundingClientRect(), tall = area.height / view.zoom;
  pen.globalAlpha = 1; pen.strokeStyle = ink("--accent"); pen.lineWidth = 1.5;
  pen.strokeRect(1, (view.y - tall / 2 - box.y0) * s.y, width - 2, Math.max(4, tall * s.y));
}
function onMap(event) {
  if (event.type === "pointermove" && !event.buttons) return;
  const area = $("mini").getBoundingClientRect();
  view.y = box.y0 + (event.clientY - area.top) / area.height * (box.y1 - box.y0); redraw();
}
$("map").addEventListener("pointerdown", onMap); $("map").addEventListener("pointermove", onMap);

// -- moving about ---------------------------------------------------------------------------------------------------

const stage = $("graph");
let drag = null;
function place(event) {
  const area = stage.getBoundingClientRect();
  return { x: view.x + (event.clientX - area.left - area.width / 2) / view.zoom, y: view.y + (event.clientY - area.top - area.height / 2) / view.zoom };
}
stage.addEventListener("pointerdown", event => { drag = { x: event.clientX, y: event.clientY, far: false }; stage.setPointerCapture(event.pointerId); });
stage.addEventListener("pointermove", event => {
  if (!drag) return;
  const dx = event.clientX - drag.x, dy = event.clientY - drag.y;
  if (!drag.far && Math.hypot(dx, dy) < 4) return;
  drag = { x: event.clientX, y: event.clientY, far: true };
  view.x -= dx / view.zoom; view.y -= dy / view.zoom; redraw();
});
stage.addEventListener("pointerup", event => { if (drag && !drag.far) pick(nodeAt(place(event))); drag = null; });
stage.addEventListener("wheel", event => {
  event.preventDefault();
  const before = place(event);
  view.zoom = Math.min(4, Math.max(0.004, view.zoom * Math.exp(-event.deltaY * 0.0015)));
  const after = place(event);
  view.x += before.x - after.x; view.y += before.y - after.y; redraw();
}, { passive: false });
function nodeAt(point) {
  const layer = layers[Math.round(point.y / ROW)] || [];
  return layer.find(n => (showAux || !n.aux) && Math.abs(n.px - point.x) <= WIDTH / 2 && Math.abs(n.py - point.y) <= HEIGHT / 2);
}
function fit() {
  const area = stage.getBoundingClientRect();
  view = { x: (box.x0 + box.x1) / 2, y: (box.y0 + box.y1) / 2, zoom: Math.min(1.2, area.width / (box.x1 - box.x0), area.height / (box.y1 - box.y0)) };
  redraw();
}
function start() {
  const area = stage.getBoundingClientRect(), first = main[0] || nodes[0];
  view = { x: first ? (box.x0 + box.x1) / 2 : 0, y: 0, zoom: Math.max(0.5, Math.min(1, area.width / (box.x1 - box.x0))) };
  if (area.width / (box.x1 - box.x0) < 0.5 && first) view.x = first.px;
  view.y = box.y0 + area.height / 2 / view.zoom; redraw();
}
function show(node) { view.x = node.px; view.y = node.py; view.zoom = Math.max(view.zoom, 0.7); if (node.aux) toggleAux(true); redraw(); }
function pick(node) {
  chosen = { space: -1, node: node ? node.index : -1 };
  detail(node ? nodeDetail(node) : []); fill(); redraw();
}
function pickSpace(i, move) {
  chosen = { space: chosen.space === i && !move ? -1 : i, node: -1 };
  detail(chosen.space < 0 ? [] : spaceDetail(i));
  const first = nodes.find(n => n.main === i && !n.aux) || nodes.find(n => n.set.has(i));
  if (chosen.space >= 0 && first && ![...visible()].some(n => n.set.has(i))) show(first);
  fill(); redraw();
}
function* visible() {
  const area = stage.getBoundingClientRect(), half = area.height / 2 / view.zoom;
  for (let layer = Math.max(0, Math.floor((view.y - half) / ROW)); layer <= Math.min(layers.length - 1, (view.y + half) / ROW); layer++) yield* layers[layer];
}
function toggleAux(on) { showAux = on; $("aux").setAttribute("aria-pressed", on); redraw(); }
$("aux").addEventListener("click", () => toggleAux(!showAux));
$("fit").addEventListener("click", fit);
addEventListener("resize", redraw); dark.addEventListener("change", () => { colors.clear(); fill(); redraw(); });

// -- the side -------------------------------------------------------------------------------------------------------

function el(tag, properties, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children.filter(child => child !== null && child !== undefined));
  return made;
}
function swatch(i) { const s = el("span", { className: "swatch" }); s.style.background = colorOf(i); return s; }
function detail(parts) { $("detail").replaceChildren(...parts); }
function facts(...pairs) {
  return el("dl", {}, ...pairs.filter(([, value]) => value !== "" && value != null && value.length !== 0).flatMap(([name, value]) => [el("dt", { textContent: name }), el("dd", {}, ...[value].flat())]));
}
function spaceLinks(list) {
  return list.map(i => { const b = el("button", { onclick: () => pickSpace(i, true) }, swatch(i), `${spaces[i].id} (${spaces[i].size}, ${spaces[i].freedom})`); b.style.margin = "0 4px 4px 0"; return b; });
}
function nodeDetail(node) {
  const reasons = reasonsOf.get(node.name) || [];
  const names = list => [...new Set(list)].join(", ");
  return [
    el("b", { textContent: `${node.op} ${node.name}` }),
    facts(["module", node.module], ["reads", names(node.ins.map(e => e[2]))], ["gives", names(node.outs.map(e => e[2])) + (node.shape ? ` [${node.shape}]` : "")],
      ["site", node.site ? `weight ${node.site.weight} ${node.site.weight_shape.join("x")}, ${node.site.space_in ?? "indices"} → ${node.site.space_out}${node.site.quantizable ? "" : ", not quantized"}` : ""],
      ["spaces", spaceLinks(node.spaces)], ["left alone", reasons.map(r => el("div", { textContent: `${r.what}: ${r.reason}` }))]),
  ];
}
function title(site) { return siteOf.get(site)?.module ?? site; }
function spaceDetail(i) {
  const s = spaces[i], some = list => list.slice(0, 40).join(", ") + (list.length > 40 ? ` … and ${list.length - 40} more` : "");
  return [
    el("b", {}, swatch(i), `${s.id}: ${s.size} features, ${s.freedom}`),
    facts(["limited by", s.limited_by.length ? s.limited_by.map(l => el("div", { textContent: `${l.freedom}: ${l.reason}` })) : "nothing: any invertible matrix"],
      ["written by", some(s.writers.map(title))], ["read by", some(s.readers.map(title))], ["values", some(s.values)]),
  ];
}
const TABS = {
  spaces: () => order.map(i => ({ text: [spaces[i].id, spaces[i].freedom, ...spaces[i].limited_by.map(l => l.reason), ...spaces[i].values].join(" "), on: chosen.space === i, pick: () => pickSpace(i), make: () => spaceRow(i) })),
  sites: () => sites.map(s => ({ text: [s.name, s.module, s.op, s.weight, s.space_in, s.space_out].join(" "), on: nodes[chosen.node]?.site === s, pick: () => goTo(s.name), make: () => siteRow(s) })),
  weights: () => weights.map(w => ({ text: [w.name, w.module, w.kind, w.status, w.format, w.reason, ...w.readers].join(" "), on: w.readers.includes(nodes[chosen.node]?.name), pick: () => goTo(w.readers[0]), make: () => weightRow(w) })),
  declined: () => declined.map(d => ({ text: [d.site, d.module, d.what, d.reason].join(" "), on: nodes[chosen.node]?.name === d.site, pick: () => goTo(d.site), make: () => declinedRow(d) })),
  nodes: () => nodes.map(n => ({ text: [n.op, n.name, n.module, n.shape, ...n.outs.map(e => e[2])].join(" "), on: chosen.node === n.index, pick: () => { pick(n); show(n); }, make: () => nodeRow(n) })),
};
function goTo(name) { const node = nodes.find(n => n.name === name && n.kind === "node"); if (node) { pick(node); show(node); } }
function spaceRow(i) {
  const s = spaces[i], limit = s.limited_by[s.limited_by.length - 1];
  return [el("div", { className: "top" }, el("span", { className: "mono" }, swatch(i), s.id), el("span", { textContent: `${s.size}` }), el("span", { className: "pill", textContent: s.freedom }), el("span", { className: "dim end", textContent: isUsed(i) ? `${s.writers.length} write, ${s.readers.length} read` : "no site" })),
    el("div", { className: "dim", textContent: limit ? limit.reason : "nothing limits it" })];
}
function siteRow(s) {
  return [el("div", { className: "top" }, el("span", { className: "mono", textContent: s.module ?? s.name }), el("span", { className: "dim end", textContent: `${s.op} ${s.weight_shape.join("x")}` })),
    el("div", { className: "dim", textContent: (s.module ? `${s.name} · ` : "") + `${s.space_in ?? "indices"} → ${s.space_out}` + ((reasonsOf.get(s.name) || []).length ? ` · ${reasonsOf.get(s.name)[0].what}: no` : "") })];
}
function weightRow(w) {
  return [el("div", { className: "top" }, el("span", { className: "mono", textContent: w.name }), el("span", { className: "dim end", textContent: `${w.kind} ${w.shape.join("x")}, ${w.bytes} bytes` })),
    el("div", { className: "dim", textContent: (w.module ? `${w.module} · ` : "") + [w.status, w.reason ?? w.format].filter(Boolean).join(": ") })];
}
function declinedRow(d) { return [el("div", { className: "mono", textContent: d.site + (d.module ? ` · ${d.module}` : "") }), el("div", { textContent: d.what }), el("div", { className: "dim", textContent: d.reason })]; }
function nodeRow(n) { return [el("div", { className: "top" }, el("span", {}, swatch(n.main), n.op), el("span", { className: "mono dim", textContent: n.name }), el("span", { className: "dim end", textContent: n.shape })) ]; }

let tab = "spaces";
function fill() {
  const words = $("find").value.toLowerCase().split(/\s+/).filter(Boolean);
  const rows = TABS[tab]().filter(row => words.every(word => row.text.toLowerCase().includes(word)));
  const made = rows.slice(0, MOST).map(row => el("div", { className: row.on ? "row on" : "row", onclick: row.pick }, ...row.make()));
  if (rows.length > MOST) made.push(el("div", { className: "row dim", textContent: `… and ${rows.length - MOST} more: search to narrow them` }));
  if (!rows.length) made.push(el("div", { className: "row dim", textContent: words.length ? "nothing matches" : "none" }));
  $("list").replaceChildren(...made);
}
function search() {
  const words = $("find").value.toLowerCase().split(/\s+/).filter(Boolean);
  hits = words.length ? new Set(TABS.nodes().flatMap((row, i) => words.every(word => (row.text + " " + (reasonsOf.get(nodes[i].name) || []).map(r => r.reason).join(" ") + " " + nodes[i].spaces.map(s => spaces[s].id).join(" ")).toLowerCase().includes(word)) ? [i] : [])) : null;
  fill(); redraw();
}
let pause = 0;
$("find").addEventListener("input", () => { clearTimeout(pause); pause = setTimeout(search, 120); });
for (const button of document.querySelectorAll("nav button")) button.addEventListener("click", () => {
  tab = button.dataset.tab;
  document.querySelectorAll("nav button").forEach(other => other.setAttribute("aria-pressed", other === button));
  fill();
});
const asked = new URLSearchParams(location.hash.slice(1));
start(); fill();
if (asked.get("view") === "all") fit();
if (asked.get("space")) pickSpace(spaces.findIndex(s => s.id === asked.get("space")), true);
if (asked.get("site")) goTo(asked.get("site"));
