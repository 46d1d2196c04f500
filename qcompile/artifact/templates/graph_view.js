// A canvas that shows a graph: only what is visible is drawn, names only where they can be read.
const FAR = 16, MANY = 4, TITLE = 30, dark = matchMedia("(prefers-color-scheme: dark)");

class View {
  constructor(graph, stage, told) {
    Object.assign(this, { graph, stage, told, canvas: stage.querySelector("canvas"), x: 0, y: 0, zoom: 1, selected: null, waiting: false });
    this.fingers = new Map();
    const on = (name, act, how) => this.canvas.addEventListener(name, act.bind(this), how);
    on("pointerdown", this.press); on("pointermove", this.drag); on("pointerup", this.release); on("pointercancel", this.release);
    on("wheel", this.wheel, { passive: false }); on("keydown", this.key);
    on("dblclick", event => { const item = this.itemAt(this.place(event)); if (item?.group) told.toggle(item.group); });
    new ResizeObserver(() => this.redraw()).observe(stage);
    this.start();
  }
  redraw() { if (!this.waiting) { this.waiting = true; requestAnimationFrame(() => { this.waiting = false; this.paint(); }); } }
  size() { return this.stage.getBoundingClientRect(); }
  start() {
    const { box } = this.graph, area = this.size(), wide = box.x1 - box.x0;
    this.zoom = Math.max(0.5, Math.min(1, area.width / wide));
    this.x = area.width / wide < 0.5 ? this.graph.visible[0]?.px ?? 0 : (box.x0 + box.x1) / 2;
    this.y = box.y0 + (area.height / 2 - TITLE) / this.zoom;
    this.redraw();
  }
  fit() {
    const { box } = this.graph, area = this.size();
    Object.assign(this, { x: (box.x0 + box.x1) / 2, y: (box.y0 + box.y1) / 2, zoom: Math.min(1.2, area.width / (box.x1 - box.x0), area.height / (box.y1 - box.y0)) });
    this.redraw();
  }
  show(item) { if (item) { this.x = item.px; this.y = item.py; this.zoom = Math.max(this.zoom, 0.7); } this.redraw(); }
  // Keeps an item where it stands on the screen while the graph around it is laid out anew.
  around(what, change) {
    const before = this.itemFor(what), at = before ? [before.px - this.x, before.py - this.y] : null;
    change();
    const after = this.itemFor(what);
    if (at && after) { this.x = after.px - at[0]; this.y = after.py - at[1]; } else if (after) { this.x = after.px; this.y = after.py; }
    this.redraw();
  }
  // The item that shows an operator or a group: of a group that is open, its first; none that is left out.
  itemFor(what) {
    if (!what) return undefined;
    const items = what.kind ? [this.graph.itemOf(what)] : [this.graph.byShown.get(what), ...what.nodes.map(node => this.graph.itemOf(node))];
    return items.find(item => item?.px !== undefined);
  }
  isSelected(item) { return this.selected !== null && (item.node === this.selected || item.group === this.selected || item.nodes.includes(this.selected)); }

  // -- painting --

  paint() {
    const ratio = devicePixelRatio || 1, area = this.size(), canvas = this.canvas, pen = canvas.getContext("2d");
    canvas.width = Math.round(area.width * ratio); canvas.height = Math.round(area.height * ratio);
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.translate(area.width / 2, area.height / 2); pen.scale(this.zoom, this.zoom); pen.translate(-this.x, -this.y);
    const half = { x: area.width / 2 / this.zoom, y: area.height / 2 / this.zoom };
    this.seen = { x0: this.x - half.x, x1: this.x + half.x, y0: this.y - half.y, y1: this.y + half.y };
    this.theme = Object.fromEntries(["ink", "dim", "card", "accent", "line", "mark"].map(name => [name, ink(`--${name}`)]));
    for (const part of this.graph.areas()) this.paintArea(pen, part);
    for (const link of this.graph.links) this.paintLink(pen, link);
    const { layers } = this.graph, first = this.graph.layerAbove(this.seen.y0 - HEIGHT), last = this.graph.layerAbove(this.seen.y1 + HEIGHT);
    for (let layer = first; layer <= last; layer++)
      for (const item of layers[layer]) if (item.px > this.seen.x0 - WIDTH && item.px < this.seen.x1 + WIDTH) this.paintItem(pen, item);
  }
  paintArea(pen, { group, x0, x1, y0, y1, deep }) {
    const left = x0 + WIDTH / 2 - 14 + 4 * deep, top = y0 + ROW / 2 - 22 + 3 * deep;
    pen.fillStyle = this.theme.accent; pen.globalAlpha = 0.05; pen.beginPath();
    pen.roundRect(left, top, x1 - x0 - WIDTH + 28 - 8 * deep, y1 - y0 - ROW + 42 - 6 * deep, 14); pen.fill(); pen.globalAlpha = 1;
    if (this.zoom < 0.35) return;
    pen.fillStyle = this.theme.dim; pen.font = "12px system-ui, sans-serif"; pen.textBaseline = "alphabetic";
    pen.fillText(`▾ ${group.label}`, left + 8, top + 13);
  }
  paintLink(pen, { a, b, edges }) {
    const y0 = a.py + HEIGHT / 2, y1 = b.py - HEIGHT / 2, span = b.layer - a.layer, { box } = this.graph;
    const bend = span > 1 ? Math.min(70 + span * 5, 260) * (b.px + a.px >= box.x0 + box.x1 ? 1 : -1) : 0;
    if (Math.max(y0, y1) < this.seen.y0 || Math.min(y0, y1) > this.seen.y1 || Math.max(a.px, b.px) + 260 < this.seen.x0 || Math.min(a.px, b.px) - 260 > this.seen.x1) return;
    const active = edges.some(edge => this.told.spaceOf(edge)) || this.isSelected(a) || this.isSelected(b);
    const tone = this.told.edgeColor(edges[0]), pale = this.told.dims() && !active;
    pen.strokeStyle = tone; pen.lineWidth = (active ? 3 : 1.4) * Math.max(1, 0.35 / this.zoom);
    if (span > FAR && a.after.length > MANY && !active) { // read all over the graph: only its ends are drawn until asked for
      pen.globalAlpha = pale ? 0.12 : 0.6; pen.setLineDash([3, 4]); pen.beginPath();
      pen.moveTo(a.px, y0); pen.lineTo(a.px, y0 + 14); pen.moveTo(b.px + WIDTH * 0.3, y1 - 14); pen.lineTo(b.px + WIDTH * 0.3, y1);
      pen.stroke(); pen.setLineDash([]); pen.globalAlpha = 1;
      return;
    }
    pen.globalAlpha = pale ? 0.12 : 0.85; pen.beginPath(); pen.moveTo(a.px, y0);
    if (bend) pen.bezierCurveTo(a.px + bend, y0 + ROW * 0.8, b.px + bend, y1 - ROW * 0.8, b.px, y1);
    else pen.bezierCurveTo(a.px, y0 + (y1 - y0) * 0.6, b.px, y1 - (y1 - y0) * 0.6, b.px, y1);
    pen.stroke(); pen.globalAlpha = 1;
  }
  paintItem(pen, item) {
    const wide = Math.max(WIDTH, 7 / this.zoom), x = item.px - wide / 2, y = item.py - HEIGHT / 2, on = this.isSelected(item), alpha = this.told.faded(item) ? 0.2 : 1;
    const { head, foot, strip, round } = this.told.face(item), box = at => { pen.beginPath(); pen.roundRect(x + at, y + at, wide, HEIGHT, round); };
    pen.globalAlpha = alpha; pen.fillStyle = this.zoom < 0.3 ? strip[0][0] : this.theme.card;
    pen.strokeStyle = on ? this.theme.accent : strip[0][0]; pen.lineWidth = on ? 4 : item.node?.site ? 2.4 : 1.3;
    if (item.group) { box(5); pen.fill(); pen.stroke(); }
    box(0); pen.fill(); pen.stroke();
    if (this.zoom >= 0.3) {
      pen.save(); box(0); pen.clip();
      const total = strip.reduce((sum, [, count]) => sum + count, 0);
      let top = y;
      for (const [tone, count] of strip) { pen.fillStyle = tone; pen.fillRect(x, top, 7, HEIGHT * count / total); top += HEIGHT * count / total; }
      pen.restore();
      pen.fillStyle = this.theme.ink; pen.font = "600 13px system-ui, sans-serif"; pen.textBaseline = "middle";
      pen.fillText(cut(pen, head, WIDTH - 22), x + 15, y + (this.zoom < 0.55 ? HEIGHT / 2 : 13));
      if (this.zoom >= 0.55) { pen.fillStyle = this.theme.dim; pen.font = "11px ui-monospace, monospace"; pen.fillText(cut(pen, foot, WIDTH - 22), x + 15, y + 27); }
    }
    pen.globalAlpha = 1;
  }

  // -- pointer and keys --

  place(event) {
    const area = this.size();
    return { x: this.x + (event.clientX - area.left - area.width / 2) / this.zoom, y: this.y + (event.clientY - area.top - area.height / 2) / this.zoom };
  }
  itemAt({ x, y }) {
    return (this.graph.layers[this.graph.layerAbove(y + HEIGHT / 2)] || []).find(item => Math.abs(item.px - x) <= WIDTH / 2 && Math.abs(item.py - y) <= HEIGHT / 2);
  }
  areaAt({ x, y }) {
    const hit = ({ x0, y0, deep, group }) => { const left = x0 + WIDTH / 2 - 14 + 4 * deep, top = y0 + ROW / 2 - 22 + 3 * deep; return x > left && x < left + 24 + 7 * group.label.length && y > top - 2 && y < top + 17; };
    return this.graph.areas().find(hit)?.group;
  }
  press(event) { this.canvas.setPointerCapture(event.pointerId); this.fingers.set(event.pointerId, event); this.moved = this.fingers.size > 1; }
  drag(event) {
    const last = this.fingers.get(event.pointerId);
    if (!last) { this.canvas.style.cursor = this.itemAt(this.place(event)) || this.areaAt(this.place(event)) ? "pointer" : "grab"; return; }
    const dx = event.clientX - last.clientX, dy = event.clientY - last.clientY;
    if (!this.moved && Math.hypot(dx, dy) < 4) return;
    this.moved = true;
    const spread = () => { const [a, b] = [...this.fingers.values()]; return Math.hypot(a.clientX - b.clientX, a.clientY - b.clientY); };
    const before = this.fingers.size === 2 ? spread() : 0;
    this.fingers.set(event.pointerId, event);
    if (before) { this.scale(spread() / before); return; }
    this.x -= dx / this.zoom; this.y -= dy / this.zoom; this.redraw();
  }
  release(event) {
    const own = this.fingers.delete(event.pointerId);
    if (!own || this.moved || event.type === "pointercancel") return;
    const at = this.place(event), item = this.itemAt(at), area = item ? null : this.areaAt(at);
    if (area) this.told.toggle(area); else this.told.choose(item ? item.node ?? item.group : null, this);
  }
  scale(factor) { this.zoom = Math.min(4, Math.max(0.004, this.zoom * factor)); this.redraw(); }
  wheel(event) {
    event.preventDefault();
    const before = this.place(event);
    this.scale(Math.exp(-event.deltaY * 0.0015));
    const after = this.place(event);
    this.x += before.x - after.x; this.y += before.y - after.y;
  }
  key(event) {
    const item = this.itemFor(this.selected), row = item ? [...this.graph.layers[item.layer]].sort((a, b) => a.px - b.px) : [];
    const near = list => [...list].sort((a, b) => Math.abs(a.px - item.px) - Math.abs(b.px - item.px) || Math.abs(a.layer - item.layer) - Math.abs(b.layer - item.layer))[0];
    const step = {
      ArrowDown: () => near(item.after), ArrowUp: () => near(item.before),
      ArrowLeft: () => row[row.indexOf(item) - 1], ArrowRight: () => row[row.indexOf(item) + 1],
    }[event.key];
    const act = {
      Enter: () => { const group = this.selected?.kind ? this.selected.above.at(-1) : this.selected; if (group) this.told.toggle(group); },
      Escape: () => this.told.choose(null, this), "+": () => this.scale(1.25), "-": () => this.scale(0.8), 0: () => this.fit(),
    }[event.key];
    if (!step && !act) return;
    event.preventDefault();
    if (act) { act(); return; }
    const next = item ? step() : this.graph.visible[0];
    if (next) { this.told.choose(next.node ?? next.group, this); this.show(next); }
  }
}
function ink(name) { return getComputedStyle(document.documentElement).getPropertyValue(name).trim(); }
function cut(pen, text, width) {
  if (pen.measureText(text).width <= width) return text;
  let n = text.length;
  while (n > 1 && pen.measureText(text.slice(0, n) + "…").width > width) n = Math.ceil(n * 0.85) - 1;
  return text.slice(0, n) + "…";
}
