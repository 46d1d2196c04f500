"use strict";
// The page: what belongs together, what is chosen, the lists at the side.
const found = JSON.parse(document.getElementById("found").textContent);
const graphs = JSON.parse(document.getElementById("drawn").textContent).map(drawn => new Graph(drawn));
const { spaces, sites, weights, declined } = found, MOST = 400;
for (const graph of graphs.slice(1)) { // what is open in the first is open in the others
  for (const [key, group] of graph.groups) group.open = graphs[0].groups.get(key)?.open ?? group.single;
  graph.layout();
}
const $ = id => document.getElementById(id);

// -- what belongs together --

const siteOf = new Map(sites.map(site => [site.name, site]));
const reasonsOf = new Map();
for (const entry of declined) reasonsOf.set(entry.site, [...(reasonsOf.get(entry.site) || []), entry]);
const order = spaces.map((space, i) => i).sort((a, b) => weight(b) - weight(a) || a - b);
const rank = new Map(order.map((space, i) => [space, i]));
function weight(i) { const s = spaces[i]; return (s.readers.length + s.writers.length) * 1e6 + s.values.length; }
function isUsed(i) { return spaces[i].readers.length + spaces[i].writers.length > 0; }
const rewritten = graphs.some(graph => graph.title === "artifact");
const STATES = { quantized: "--c0", inserted: "--c1", folded: "--c2", rewritten: "--c3", gone: "--c4", same: "--c5" };
const MEANING = {
  quantized: "its weight is stored in a format", inserted: "put in: a transform, or the rounding of an input", folded: "other constants: a transform, scale or norm was folded in",
  rewritten: "another operator in its place", gone: "folded into others, or written otherwise", same: "as in the source",
};
function twinsOf(node) {
  return graphs.filter(graph => graph !== node.graph).map(graph => graph.named.get(node.name) ?? node.gives.map(([name]) => graph.makers.get(name)).find(Boolean)).filter(Boolean);
}
const packed = new Set(sites.map(site => `${site.weight}.codes`));
function constants(node) { return node.reads.filter(([, , kind]) => kind.endsWith("constant")).map(([name]) => name).join(); }
function stateOf(node) {
  const site = siteOf.get(node.name), [twin] = twinsOf(node);
  if (node.kind !== "node") return "same";
  if (site && site.format !== "float") return "quantized";
  if (graphs.length < 2) return "same";
  if (node.reads.some(([name]) => packed.has(name))) return "quantized"; // a product whose bias is added by what has the site's name
  if (!twin) return node.graph.title === "artifact" ? "inserted" : "gone";
  return twin.op !== node.op ? "rewritten" : constants(twin) !== constants(node) ? "folded" : "same";
}
for (const graph of graphs) for (const node of graph.nodes) { node.site = node.kind === "node" ? siteOf.get(node.name) : undefined; node.state = stateOf(node); }
function spaceColor(i) {
  if (i < 0 || !isUsed(i)) return dark.matches ? "#4b5666" : "#aab3c0";
  const hue = (215 + rank.get(i) * 137.508) % 360;
  return spaces[i].freedom === "none" ? `hsl(${hue} 14% ${dark.matches ? 48 : 66}%)` : `hsl(${hue} ${dark.matches ? "58% 58%" : "64% 50%"})`;
}
const colors = new Map();
function colorOf(i) { if (!colors.has(i)) colors.set(i, spaceColor(i)); return colors.get(i); }
function toneOf(node) { return rewritten ? ink(STATES[node.state]) : colorOf(node.main); }

// -- what views are told --

let chosen = { space: -1, what: null }, hits = null, step = -1;
const told = {
  choose(what, view) { choose(what, view); },
  toggle(group) { toggle(group); },
  spaceOf: edge => chosen.space >= 0 && edge[3] === chosen.space,
  edgeColor: edge => rewritten ? ink("--dim") : colorOf(edge[3]),
  dims: () => hits !== null || chosen.space >= 0,
  faded: item => hits ? !item.nodes.some(node => hits.has(node)) : chosen.space >= 0 && !item.nodes.some(node => node.set.has(chosen.space)),
  face(item) {
    const tones = new Map();
    for (const node of item.nodes) if (!node.aux || item.aux) tones.set(toneOf(node), (tones.get(toneOf(node)) ?? 0) + 1);
    const strip = [...tones].sort((a, b) => b[1] - a[1]).slice(0, 5);
    if (item.group) {
      const own = item.nodes.filter(node => node.site).length, hit = hits ? item.nodes.filter(node => hits.has(node)).length : 0;
      return { head: `▸ ${item.group.label}`, foot: `${item.nodes.length} operators${own ? `, ${own} sites` : ""}${hit ? `, ${hit} hits` : ""}`, strip, round: 8 };
    }
    const { node } = item, { site } = node, format = site && site.format !== "float" ? ` ${site.format}` : "";
    const foot = site ? `${site.weight_shape.join("×")}${format || `  ${site.space_in ?? "·"} → ${site.space_out ?? "·"}`}` : node.shape === "?" ? "" : node.shape || "scalar";
    return { head: node.kind === "node" ? node.op.replace(/_[0-9a-f]{16}$/, "") : `${node.op}: ${node.name}`, foot, strip, round: node.kind === "node" ? 8 : 19 };
  },
};
const views = graphs.map((graph, i) => new View(graph, $(`stage${i}`), told));
function redraw() { views.forEach(view => view.redraw()); }
function toggle(group, to) {
  const open = to ?? !group.open;
  for (const view of views) {
    const own = view.graph.groups.get(group.key);
    if (own) view.around(own, () => { own.open = open || own.single; view.graph.layout(); });
  }
  if (chosen.what?.kind && !open && chosen.what.above.some(one => one.key === group.key)) choose(group, views.find(view => view.graph === group.graph)); else fill();
}
// Chooses an operator or a group, and what it is in the other graph, which moves there.
function choose(what, from) {
  chosen = { space: -1, what };
  for (const view of views) {
    const own = what === null || view.graph === what.graph ? what : what.kind ? twinsOf(what).find(twin => twin.graph === view.graph) ?? null : view.graph.groups.get(what.key) ?? null;
    view.selected = own;
    if (own?.kind) view.graph.reveal(own);
    if (own && view !== from) view.show(view.itemFor(own)); else view.redraw();
  }
  detail(what === null ? [] : what.kind ? nodeDetail(what) : groupDetail(what)); fill();
}
function chooseSpace(i, stay) {
  chosen = { space: chosen.space === i && !stay ? -1 : i, what: null };
  views.forEach(view => { view.selected = null; });
  detail(chosen.space < 0 ? [] : spaceDetail(i));
  if (chosen.space >= 0) for (const view of views) {
    const first = view.graph.nodes.find(node => node.main === i && !node.aux) ?? view.graph.nodes.find(node => node.set.has(i));
    if (first && !view.graph.visible.some(item => item.py > view.seen?.y0 && item.py < view.seen?.y1 && item.nodes.some(node => node.set.has(i)))) view.show(view.graph.itemOf(first));
  }
  fill(); redraw();
}
function goTo(name) {
  const node = graphs.map(graph => graph.named.get(name)).find(Boolean);
  if (node) choose(node, null);
}

// -- the side --

function el(tag, properties, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children.filter(child => child !== null && child !== undefined));
  return made;
}
function swatch(tone) { const s = el("span", { className: "swatch" }); s.style.background = tone; return s; }
function detail(parts) { $("detail").replaceChildren(...parts); }
function facts(...pairs) {
  return el("dl", {}, ...pairs.filter(([, value]) => value !== "" && value != null && value.length !== 0).flatMap(([name, value]) => [el("dt", { textContent: name }), el("dd", {}, ...[value].flat())]));
}
function button(text, act, ...inner) { return el("button", { onclick: act, type: "button" }, ...inner, text); }
function valueRows(list) { return list.map(([name, shape, kind]) => el("div", {}, mono(name), ` ${shape || "scalar"} ${kind}`)); }
function groupLinks(groups) { return groups.filter(group => !group.single).map(group => button(`${group.open ? "▾" : "▸"} ${group.label}`, () => toggle(group))); }
function nodeDetail(node) {
  const reasons = reasonsOf.get(node.name) || [], { site } = node, twins = twinsOf(node);
  const kept = site && (site.format === "float" ? (site.quantizable === undefined ? "float" : site.quantizable ? "" : "not quantized") : `${site.format}${site.activation ? `, input ${site.activation}` : ""}, ${site.bits_per_weight.toFixed(2)} bits per weight`);
  return [
    el("b", {}, `${node.domain ? `${node.domain}.` : ""}${node.op} `, el("span", { className: "mono", textContent: node.name })),
    facts(["in", groupLinks(node.above)], ["state", graphs.length > 1 ? `${node.state}: ${MEANING[node.state]}` : ""], ["module", node.module],
      ["site", site ? [el("div", {}, "weight ", mono(site.weight), ` ${site.weight_shape.join("×")}, ${site.space_in ?? "indices"} → ${site.space_out}`), kept ? el("div", { textContent: kept }) : null, site.transform_in.kind !== "none" ? el("div", { textContent: `input through ${site.transform_in.kind}${site.transform_in.online ? ", online" : ", folded"}` }) : null].filter(Boolean) : ""],
      ["reads", valueRows(node.reads)], ["gives", valueRows(node.gives)],
      ["attributes", Object.entries(node.attributes).map(([name, value]) => el("div", { className: "mono", textContent: `${name} = ${value}` }))],
      ["in the other", twins.map(twin => el("div", { textContent: `${twin.op} ${twin.name}` }))],
      ["spaces", node.spaces.map(i => button(`${spaces[i].id} (${spaces[i].size}, ${spaces[i].freedom})`, () => chooseSpace(i, true), swatch(colorOf(i))))],
      ["left alone", reasons.map(r => el("div", { textContent: `${r.what}: ${r.reason}` }))]),
  ];
}
function groupDetail(group) {
  const ops = new Map(), states = new Map();
  for (const node of group.nodes) { ops.set(node.op, (ops.get(node.op) ?? 0) + 1); states.set(node.state, (states.get(node.state) ?? 0) + 1); }
  const counts = map => [...map].sort((a, b) => b[1] - a[1]).map(([name, count]) => `${count} x ${name}`).join(", ");
  return [
    el("b", { textContent: group.key.replaceAll("/", ".") }), " ", button(group.open ? "close" : "open", () => { toggle(group); detail(groupDetail(group)); }),
    facts(["operators", counts(ops)], ["states", graphs.length > 1 ? counts(states) : ""], ["sites", group.nodes.filter(node => node.site).map(node => button(node.site.module ?? node.name, () => choose(node, null)))]),
  ];
}
function spaceDetail(i) {
  const s = spaces[i], some = list => list.slice(0, 40).join(", ") + (list.length > 40 ? ` … and ${list.length - 40} more` : ""), title = site => siteOf.get(site)?.module ?? site;
  return [
    el("b", {}, swatch(colorOf(i)), `${s.id}: ${s.size} features, ${s.freedom}`),
    facts(["transform", s.transform], ["limited by", s.limited_by.length ? s.limited_by.map(l => el("div", { textContent: `${l.freedom}: ${l.reason}` })) : "nothing: any invertible matrix"],
      ["written by", some([...new Set(s.writers.map(title))])], ["read by", some([...new Set(s.readers.map(title))])], ["values", some(s.values)]),
  ];
}
function row(text, on, pick, ...inner) { return { text: text.filter(Boolean).join(" ").toLowerCase(), on, pick, make: () => inner }; }
function headline(...parts) { return el("div", { className: "top" }, ...parts); }
function mono(text) { return el("span", { className: "mono" }, ...text.split(/(?<=[._/])(?=[^._/])/).flatMap((part, i) => i ? [el("wbr"), part] : [part])); }
function end(text) { return el("span", { className: "dim end", textContent: text }); }
function dim(text) { return el("div", { className: "dim", textContent: text }); }
function* opened(group, deep = 0) { for (const part of group.parts) { if (!part.single) yield [part, deep]; if (part.open) yield* opened(part, deep + (part.single ? 0 : 1)); } }
function textOf(node) { return [node.op, node.name, node.module, node.path.join("."), node.shape, node.state, ...node.gives.map(([name]) => name), ...node.reads.map(([name]) => name), ...(reasonsOf.get(node.name) || []).map(r => r.reason), ...node.spaces.map(s => spaces[s].id)].filter(Boolean).join(" ").toLowerCase(); }
const TABS = {
  modules: () => [...opened((graphs[0] ?? { root: { parts: [] } }).root)].map(([group, deep]) => {
    const made = row([group.key], chosen.what?.key === group.key, () => choose(group, null), headline(button(group.open ? "▾" : "▸", event => { event.stopPropagation(); toggle(group); }), mono(group.label), end(`${group.nodes.length} operators, ${group.nodes.filter(node => node.site).length} sites`)));
    return { ...made, deep };
  }),
  spaces: () => order.map(i => { const s = spaces[i], limit = s.limited_by.at(-1); return row([s.id, s.freedom, s.transform, ...s.limited_by.map(l => l.reason), ...s.values], chosen.space === i, () => chooseSpace(i), headline(el("span", { className: "mono" }, swatch(colorOf(i)), s.id), `${s.size}`, el("span", { className: "pill", textContent: s.freedom }), end(isUsed(i) ? `${s.writers.length} write, ${s.readers.length} read` : "no site")), dim(limit ? limit.reason : "nothing limits it")); }),
  sites: () => sites.map(s => row([s.name, s.module, s.op, s.weight, s.space_in, s.space_out, s.format], chosen.what?.name === s.name, () => goTo(s.name), headline(mono(s.module ?? s.name), end(`${s.op} ${s.weight_shape.join("×")}`)), dim(`${s.format === "float" ? "" : `${s.format} · `}${s.space_in ?? "indices"} → ${s.space_out}${(reasonsOf.get(s.name) || []).length ? ` · ${reasonsOf.get(s.name)[0].what}: no` : ""}`))),
  weights: () => weights.map(w => row([w.name, w.module, w.kind, w.status, w.format, w.reason, ...w.readers], w.readers.includes(chosen.what?.name), () => goTo(w.readers[0]), headline(mono(w.name), end(`${w.kind} ${w.shape.join("×")}, ${w.bytes} bytes`)), dim((w.module ? `${w.module} · ` : "") + [w.status, w.reason ?? w.format].filter(Boolean).join(": ")))),
  declined: () => declined.map(d => row([d.site, d.module, d.what, d.reason], chosen.what?.name === d.site, () => goTo(d.site), el("div", { className: "mono", textContent: d.site + (d.module ? ` · ${d.module}` : "") }), el("div", { textContent: d.what }), dim(d.reason))),
  nodes: () => graphs.flatMap(graph => graph.nodes).map(n => row([textOf(n)], chosen.what === n, () => choose(n, null), headline(swatch(toneOf(n)), n.op, el("span", { className: "mono dim", textContent: n.name }), end(graphs.length > 1 ? n.graph.title : n.shape)))),
};
let tab = document.querySelector("nav button[aria-pressed=true]").dataset.tab;
function words() { return $("find").value.toLowerCase().split(/\s+/).filter(Boolean); }
function fill() {
  const asked = words(), rows = TABS[tab]().filter(one => asked.every(word => one.text.includes(word)));
  const made = rows.slice(0, MOST).map(one => {
    const line = el("div", { className: one.on ? "row on" : "row", tabIndex: 0, onclick: one.pick, onkeydown: event => { if (event.key === "Enter" && event.target === line) one.pick(); } }, ...one.make());
    if (one.deep) line.style.paddingLeft = `${14 + 16 * one.deep}px`;
    return line;
  });
  if (rows.length > MOST) made.push(el("div", { className: "row dim", textContent: `… and ${rows.length - MOST} more: search to narrow them` }));
  if (!rows.length) made.push(el("div", { className: "row dim", textContent: asked.length ? "nothing matches" : "none" }));
  $("list").replaceChildren(...made);
}
function show(name) {
  tab = name;
  document.querySelectorAll("nav button").forEach(other => other.setAttribute("aria-pressed", other.dataset.tab === name));
  fill();
}
function search() {
  const asked = words(), all = graphs.flatMap(graph => graph.nodes).filter(node => { const text = textOf(node); return asked.every(word => text.includes(word)); });
  hits = asked.length ? new Set(all) : null; step = -1;
  tell(); if (asked.length && tab === "modules") show("nodes"); else fill();
  redraw();
}
function tell() { $("hits").textContent = hits === null ? "" : `${step < 0 ? "" : `${step + 1} of `}${hits.size}`; }
function walk(by) {
  if (!hits?.size) return;
  const list = [...hits];
  step = step < 0 ? (by > 0 ? 0 : list.length - 1) : (step + by + list.length) % list.length;
  tell(); choose(list[step], null);
}

// -- controls --

let pause = 0;
$("find").addEventListener("input", () => { clearTimeout(pause); pause = setTimeout(search, 120); });
$("find").addEventListener("keydown", event => {
  if (event.key === "Enter") { event.preventDefault(); clearTimeout(pause); if (hits === null) search(); walk(event.shiftKey ? -1 : 1); }
  if (event.key === "Escape") { $("find").value = ""; search(); $("find").blur(); }
});
addEventListener("keydown", event => { if (event.key === "/" && document.activeElement !== $("find")) { event.preventDefault(); $("find").focus(); } });
$("next").addEventListener("click", () => walk(1)); $("last").addEventListener("click", () => walk(-1));
$("aux").addEventListener("click", () => {
  const on = $("aux").getAttribute("aria-pressed") !== "true";
  $("aux").setAttribute("aria-pressed", on);
  for (const view of views) view.around(view.selected, () => { view.graph.showAux = on; view.graph.layout(); });
});
$("fit").addEventListener("click", () => views.forEach(view => view.fit()));
$("fold").addEventListener("click", () => { for (const view of views) { view.graph.openSome(); view.start(); } choose(null, null); });
$("unfold").addEventListener("click", () => { for (const view of views) { for (const group of view.graph.groups.values()) group.open = true; view.around(view.selected, () => view.graph.layout()); } fill(); });
document.querySelectorAll("nav button").forEach(one => one.addEventListener("click", () => show(one.dataset.tab)));
dark.addEventListener("change", () => { colors.clear(); fill(); redraw(); });
fill();
const asked = new URLSearchParams(location.hash.slice(1));
if (asked.get("view") === "all") views.forEach(view => view.fit());
if (asked.get("space")) chooseSpace(spaces.findIndex(s => s.id === asked.get("space")), true);
if (asked.get("site")) goTo(asked.get("site"));
