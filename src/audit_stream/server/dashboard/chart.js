// Events by kind over the last minutes, as stacked bars.

import { byId, el, number, svg } from "./dom.js";

const MINUTES = 5;
const BUCKET_MS = 5_000;
const BUCKETS = (MINUTES * 60_000) / BUCKET_MS;
const SLOTS = 6;
const REST = "rest";
const BAR = 10;
const HEIGHT = 100;

export class Chart {
  /** Bucket number -> Map(kind -> count). */
  #buckets = new Map();
  #slots = new Map();

  constructor() {
    this.figure = byId("chart");
    this.legend = byId("legend");
    setInterval(() => this.draw(), 1000);
  }

  /** Count an event: at its own time when that is within the chart, else, when it has just come in, now. */
  add(event, { live }) {
    const now = Date.now();
    const own = Date.parse(event.timestamp);
    const within = own > now - MINUTES * 60_000 && own <= now;
    if (!within && !live) return;
    const bucket = Math.floor((within ? own : now) / BUCKET_MS);
    if (!this.#buckets.has(bucket)) this.#buckets.set(bucket, new Map());
    const counts = this.#buckets.get(bucket);
    counts.set(event.kind, (counts.get(event.kind) ?? 0) + 1);
  }

  /** The colour of a kind; it keeps it for as long as the chart shows it. */
  slotOf = (kind) => this.#slots.get(kind) ?? REST;

  draw() {
    if (document.hidden) return;
    const newest = Math.floor(Date.now() / BUCKET_MS);
    for (const bucket of this.#buckets.keys()) if (bucket <= newest - BUCKETS) this.#buckets.delete(bucket);
    const totals = this.#totals();
    this.#assign(totals);
    this.#bars(newest);
    this.#describe(totals, newest);
  }

  #totals() {
    const totals = new Map();
    for (const counts of this.#buckets.values()) {
      for (const [kind, count] of counts) totals.set(kind, (totals.get(kind) ?? 0) + count);
    }
    return new Map([...totals].sort((a, b) => b[1] - a[1]));
  }

  #assign(totals) {
    const leading = [...totals.keys()].slice(0, SLOTS);
    for (const kind of [...this.#slots.keys()]) if (!leading.includes(kind)) this.#slots.delete(kind);
    for (const kind of leading) {
      if (this.#slots.has(kind)) continue;
      const taken = new Set(this.#slots.values());
      this.#slots.set(kind, [...Array(SLOTS).keys()].find((slot) => !taken.has(slot)));
    }
  }

  #stack(bucket) {
    const heights = new Map();
    for (const [kind, count] of this.#buckets.get(bucket) ?? []) {
      const slot = this.slotOf(kind);
      heights.set(slot, (heights.get(slot) ?? 0) + count);
    }
    return heights;
  }

  #bars(newest) {
    const stacks = Array.from({ length: BUCKETS }, (_, place) => this.#stack(newest - BUCKETS + 1 + place));
    const sums = stacks.map((stack) => [...stack.values()].reduce((sum, count) => sum + count, 0));
    const peak = Math.max(...sums);
    const bars = [];
    stacks.forEach((stack, place) => {
      let top = HEIGHT;
      for (const slot of [...Array(SLOTS).keys(), REST]) {
        if (!stack.has(slot)) continue;
        const height = (stack.get(slot) / peak) * HEIGHT;
        top -= height;
        bars.push(svg("rect", { x: place * BAR + 1, y: top, width: BAR - 2, height, "data-slot": slot }));
      }
    });
    this.figure.replaceChildren(...bars);
    byId("peak").textContent = peak ? ` · peak ${perSecond(peak, 1)} /s` : "";
  }

  #describe(totals, newest) {
    const all = [...totals.values()].reduce((sum, count) => sum + count, 0);
    this.figure.setAttribute("aria-label", `${number(all)} events in the last ${MINUTES} minutes`);
    byId("rate").textContent = `${this.#now(newest)} /s`;
    const rest = [...totals].filter(([kind]) => !this.#slots.has(kind)).reduce((sum, [, count]) => sum + count, 0);
    const named = [...totals].filter(([kind]) => this.#slots.has(kind)).map(([kind, count]) => [this.slotOf(kind), kind, count]);
    const rows = rest ? [...named, [REST, "all others", rest]] : named;
    this.legend.replaceChildren(
      ...(rows.length ? rows.map(legendRow) : [el("li", { class: "hint" }, "no events in these minutes")]),
    );
  }

  /** Over the last two whole buckets: one that has only begun would say too little. */
  #now(newest) {
    let count = 0;
    for (const bucket of [newest - 1, newest - 2]) {
      for (const some of this.#buckets.get(bucket)?.values() ?? []) count += some;
    }
    return perSecond(count, 2);
  }
}

const perSecond = (count, buckets) => number(Math.round((count / buckets / BUCKET_MS) * 10_000) / 10);

function legendRow([slot, name, count]) {
  return el("li", {}, el("i", { "data-slot": slot }), el("span", { class: "name" }, name), el("b", {}, number(count)));
}
