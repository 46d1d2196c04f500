// A graph with groups of operators that open and close, and the places of what is visible: layers by longest path.
const COLUMN = 200, ROW = 64, WIDTH = 168, HEIGHT = 38, SLACK = 2, SMOOTH = 41, ROOM = 48, LABEL = 18;

class Graph {
  constructor(drawn) {
    Object.assign(this, { title: drawn.title, nodes: drawn.nodes, edges: drawn.edges, showAux: false });
    this.groups = new Map();
    this.root = this.group(null, "", "");
    this.root.open = true;
    this.nodes.forEach((node, i) => {
      Object.assign(node, { index: i, graph: this, ins: [], outs: [], set: new Set(node.spaces), above: [] });
      let at = this.root;
      at.nodes.push(node);
      for (const name of node.path) {
        const key = at.key ? `${at.key}/${name}` : name;
        at = this.groups.get(key) ?? this.group(at, key, name);
        at.nodes.push(node);
        node.above.push(at);
      }
      at.own++;
    });
    for (const edge of this.edges) { this.nodes[edge[0]].outs.push(edge); this.nodes[edge[1]].ins.push(edge); }
    this.named = new Map(this.nodes.filter(node => node.kind === "node").map(node => [node.name, node]));
    this.makers = new Map(this.nodes.flatMap(node => node.kind === "output" ? [] : node.gives.map(([name]) => [name, node])));
    for (const group of this.groups.values()) { // one that holds a single group and nothing else is always open
      group.single = group.own === 0 && group.parts.length === 1;
      group.label = (group.up.single ? `${group.up.label}.` : "") + group.name;
    }
    this.openSome();
  }
  group(up, key, name) {
    const made = { key, name, up, parts: [], nodes: [], own: 0, open: false, single: false, graph: this };
    if (key) { this.groups.set(key, made); up.parts.push(made); }
    return made;
  }
  // Opens level after level as long as there is room for all that it shows.
  openSome() {
    for (const group of this.groups.values()) group.open = group.single;
    for (;;) {
      const closed = [...new Set(this.items().filter(item => item.group).map(item => item.group))];
      closed.forEach(group => { group.open = true; });
      if (!closed.length) break;
      if (this.items().length > ROOM) { closed.forEach(group => { group.open = false; }); break; }
    }
    this.layout();
  }
  shown(node) { return node.above.find(group => !group.open) ?? node; }
  itemOf(node) { return this.byShown.get(this.shown(node)); }
  items() {
    this.byShown = new Map();
    for (const node of this.nodes) {
      const what = this.shown(node);
      let item = this.byShown.get(what);
      if (!item) this.byShown.set(what, item = { node: what.kind ? what : null, group: what.kind ? null : what, at: node.index, nodes: [], aux: true });
      item.nodes.push(node); item.aux &&= node.aux;
    }
    return [...this.byShown.values()].filter(item => this.showAux || !item.aux);
  }
  layout() {
    this.visible = this.items();
    const links = new Map(), places = new Map(this.visible.map((item, i) => [item, i]));
    for (const item of this.visible) Object.assign(item, { before: [], after: [], layer: 0, x: 0 });
    for (const edge of this.edges) {
      const a = this.itemOf(this.nodes[edge[0]]), b = this.itemOf(this.nodes[edge[1]]);
      if (a === b || !places.has(a) || !places.has(b)) continue;
      const key = places.get(a) * this.visible.length + places.get(b);
      let link = links.get(key);
      if (!link) links.set(key, link = { a, b, edges: [] });
      link.edges.push(edge);
    }
    this.links = [...links.values()];
    const order = this.order(), rank = new Map(order.map((item, i) => [item, i]));
    for (const { a, b } of this.links) if (rank.get(a) < rank.get(b)) { a.after.push(b); b.before.push(a); }
    for (const item of order) for (const link of item.before) if (!link.aux) item.layer = Math.max(item.layer, link.layer + 1);
    for (const item of order.reverse()) {
      if (!item.after.length) continue;
      const lowest = Math.max(0, Math.min(...item.after.map(other => other.layer)) - 1);
      if (item.aux || lowest - item.layer > SLACK && item.before.length <= 1) item.layer = lowest;
    }
    this.layers = [];
    for (const item of this.visible) (this.layers[item.layer] ??= []).push(item);
    this.layers = Array.from(this.layers, row => row ?? []);
    for (const [rows, near] of [[this.layers, "before"], [[...this.layers].reverse(), "after"], [this.layers, "before"]])
      for (const row of rows) spread(row, near);
    this.straighten();
    this.box = this.extent(this.visible);
  }
  // Items behind all that they read; where groups read each other in a circle, the first of the graph comes first.
  order() {
    const next = new Map(this.visible.map(item => [item, []])), waits = new Map(this.visible.map(item => [item, 0])), order = new Set(), ready = [];
    for (const { a, b } of this.links) { next.get(a).push(b); waits.set(b, waits.get(b) + 1); }
    const take = item => {
      if (order.has(item)) return;
      order.add(item);
      for (const other of next.get(item)) { waits.set(other, waits.get(other) - 1); if (!waits.get(other)) ready.push(other); }
    };
    for (const item of this.visible) if (!waits.get(item)) ready.push(item);
    for (const first of this.visible) { for (let item; (item = ready.pop());) take(item); take(first); }
    return [...order];
  }
  // What layers drift to one side is taken off, so that long graphs run straight down.
  straighten() {
    const centers = this.layers.map(row => mean(row.filter(item => !item.aux).map(item => item.x), 0)), half = SMOOTH >> 1;
    const drift = centers.map((_, i) => mean(Array.from({ length: SMOOTH }, (_, j) => centers[Math.min(Math.max(i + j - half, 0), centers.length - 1)]), 0));
    const labels = this.labels();
    let y = -ROW;
    this.heights = labels.map(room => y += ROW + room);
    this.layers.forEach((row, i) => { y = this.heights[i]; row.forEach(item => { item.px = (item.x - drift[i]) * COLUMN; item.py = y; }); });
  }
  // The last layer that is not below a height, at least the first.
  layerAbove(y) {
    let low = 0, high = this.heights.length - 1;
    while (low < high) { const middle = low + high + 1 >> 1; if (this.heights[middle] <= y) low = middle; else high = middle - 1; }
    return low;
  }
  // Open groups around an item, whose labels are shown.
  around(item) {
    const above = item.group ? item.nodes[0].above.slice(0, item.nodes[0].above.indexOf(item.group)) : item.node.above;
    return above.filter(group => !group.single);
  }
  // Room above each layer for the labels of the groups that begin there, one below the other.
  labels() {
    const first = new Map(), begin = this.layers.map(() => 0);
    for (const item of this.visible) for (const group of this.around(item)) first.set(group, Math.min(first.get(group) ?? Infinity, item.layer));
    for (const item of this.visible) begin[item.layer] = Math.max(begin[item.layer], this.around(item).filter(group => first.get(group) === item.layer).length);
    return begin.map(count => count ? LABEL * count - 4 : 0);
  }
  extent(items) {
    let x0 = Infinity, x1 = -Infinity, y0 = Infinity, y1 = -Infinity;
    for (const { px, py } of items) { x0 = Math.min(x0, px); x1 = Math.max(x1, px); y0 = Math.min(y0, py); y1 = Math.max(y1, py); }
    return items.length ? { x0: x0 - WIDTH, x1: x1 + WIDTH, y0: y0 - ROW, y1: y1 + ROW } : { x0: 0, x1: 1, y0: 0, y1: 1 };
  }
  // Groups that are open, with the area of what they show.
  areas() {
    const found = new Map();
    for (const item of this.visible) for (const group of this.around(item)) (found.get(group) ?? found.set(group, []).get(group)).push(item);
    const made = [...found].map(([group, items]) => ({ group, ...this.extent(items), deep: group.key.split("/").length, lift: 0 }));
    const areas = new Map(made.map(area => [area.group, area]));
    for (const area of [...made].sort((a, b) => b.deep - a.deep)) {
      let up = area.group.up;
      while (up && up.single) up = up.up;
      const around = areas.get(up);
      if (around && around.y0 === area.y0) around.lift = Math.max(around.lift, area.lift + 1);
    }
    for (const area of made) area.y0 -= LABEL * area.lift;
    return made;
  }
  reveal(node) {
    const closed = node.above.filter(group => !group.open);
    closed.forEach(group => { group.open = true; });
    if (node.aux && !this.showAux) this.showAux = true; else if (!closed.length) return;
    this.layout();
  }
}
function mean(values, otherwise) { return values.length ? values.reduce((a, b) => a + b, 0) / values.length : otherwise; }
function spread(row, near) {
  const wanted = new Map(row.map(item => [item, mean(item[near].filter(other => !other.aux).map(other => other.x), item.x)]));
  const main = row.filter(item => !item.aux).sort((a, b) => wanted.get(a) - wanted.get(b) || a.at - b.at);
  let edge = -Infinity;
  for (const item of main) item.x = edge = Math.max(wanted.get(item), edge + 1);
  const shift = mean(main.map(item => wanted.get(item) - item.x), 0);
  for (const item of main) item.x += shift;
  const right = main.length ? Math.max(...main.map(item => item.x)) : 0;
  row.filter(item => item.aux).forEach((item, i) => { item.x = right + i + 1.5; });
}
