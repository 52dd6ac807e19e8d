// Events by kind over the last minutes, as stacked bars, by the time of their commit.

import { lead, REST, slotOf, SLOTS } from "./colours.js";
import { byId, el, number, svg } from "./dom.js";
import { clock, onZone } from "./times.js";

const MINUTES = 5;
const BUCKET_MS = 5_000;
const BUCKETS = (MINUTES * 60_000) / BUCKET_MS;
const BAR = 10;
const HEIGHT = 100;
/** A page that did not come to its turn for so long, as when the computer slept, gets what came in meanwhile too late. */
const STALLED_MS = 4_000;
/** Narrower than this part of the chart, the words about it do not fit. */
const ROOM_FOR_WORDS = 0.3;

export class Chart {
  /** Bucket number -> Map(kind -> count). */
  #buckets = new Map();
  /** Every event that was committed from here on, up to the one with the id #last, is counted. */
  #since = Infinity;
  #last = 0;
  /** When the chart stands still, as nothing is known of what came after; null while it moves. */
  #until = null;
  /** What came in while it stood still. */
  #early = [];
  /** How far the clock of the server is ahead of this one. */
  #ahead = 0;

  #turn = Date.now();

  /** `recoloured()` is called when a kind has another colour than before, `stalled()` when events came in late. */
  constructor({ recoloured, stalled }) {
    Object.assign(this, { recoloured, stalled });
    this.figure = byId("chart");
    this.legend = byId("legend");
    setInterval(() => {
      this.#turn = Date.now();
      this.draw();
    }, 1000);
    document.addEventListener("visibilitychange", () => (this.#turn = Date.now()));
    onZone(() => this.draw());
  }

  /** The id of the newest event that is counted. */
  get last() {
    return this.#last;
  }

  /**
   * Count these, the newest events in ascending order, each with `committed` in ms, NaN when unknown; and move on.
   * `goesOn`: they are all that came after `last`, and what is counted stays; else the chart starts anew.
   * `whole`: the chain has no older ones. `ahead`: ms by which the clock of the server is ahead of this one.
   */
  load(events, { goesOn = false, whole = false, ahead = 0 }) {
    this.#ahead = ahead;
    this.#until = null;
    const fresh = goesOn ? events.filter((event) => event.id > this.#last) : events;
    const unknown = fresh.findLastIndex((event) => Number.isNaN(event.committed));
    const counted = fresh.slice(unknown + 1);
    if (!goesOn || unknown >= 0) {
      this.#buckets.clear();
      this.#since = whole && unknown < 0 ? -Infinity : (counted[0]?.committed ?? this.#now());
    }
    this.#last = events.at(-1)?.id ?? this.#last;
    for (const event of counted) this.#count(event.kind, event.committed);
    for (const event of this.#early.splice(0)) this.add(event);
    this.draw();
  }

  /** Count an event that has just come in. */
  add(event) {
    if (this.#until === null && !document.hidden && Date.now() - this.#turn > STALLED_MS) {
      this.#until = this.#turn + this.#ahead;
      this.stalled();
    }
    if (this.#until !== null) {
      this.#early.push({ id: event.id, kind: event.kind });
    } else if (event.id > this.#last) {
      this.#last = event.id;
      this.#count(event.kind, this.#now());
    }
  }

  /** Stand still: nothing comes in any more, and a chart that moves on would show a silence. */
  stop() {
    this.#until ??= this.#now();
    this.draw();
  }

  #now() {
    return this.#until ?? Date.now() + this.#ahead;
  }

  #count(kind, moment) {
    const bucket = Math.floor(moment / BUCKET_MS);
    if (!this.#buckets.has(bucket)) this.#buckets.set(bucket, new Map());
    const counts = this.#buckets.get(bucket);
    counts.set(kind, (counts.get(kind) ?? 0) + 1);
  }

  draw() {
    if (document.hidden || this.#since === Infinity) return;
    const newest = Math.floor(this.#now() / BUCKET_MS);
    for (const bucket of this.#buckets.keys()) if (bucket <= newest - BUCKETS) this.#buckets.delete(bucket);
    const totals = this.#totals();
    if (lead([...totals.keys()].slice(0, SLOTS.length))) this.recoloured();
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

  #stack(bucket) {
    const heights = new Map();
    for (const [kind, count] of this.#buckets.get(bucket) ?? []) {
      const slot = slotOf(kind);
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
      for (const slot of [...SLOTS, REST]) {
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
    const start = (newest - BUCKETS + 1) * BUCKET_MS;
    const uncounted = Math.max(0, Math.min(1, (this.#since - start) / (BUCKETS * BUCKET_MS)));
    const span = uncounted ? `since ${clock(new Date(this.#since - this.#ahead))}` : `last ${MINUTES} minutes`;
    byId("span").textContent = span;
    byId("uncounted").hidden = uncounted === 0;
    byId("uncounted").style.width = `${uncounted * 100}%`;
    byId("uncounted").classList.toggle("narrow", uncounted < ROOM_FOR_WORDS);
    byId("axis-end").textContent = this.#until === null ? "now" : clock(new Date(this.#until - this.#ahead));
    byId("axis-start").textContent = `${MINUTES} min ${this.#until === null ? "ago" : "earlier"}`;
    const all = [...totals.values()].reduce((sum, count) => sum + count, 0);
    const within = uncounted ? `${span}; what was recorded before is not counted` : `in the ${span}`;
    this.figure.setAttribute("aria-label", `${number(all)} events ${within}`);
    this.legend.setAttribute("aria-label", `Events by kind, ${span}`);
    byId("rate").textContent = this.#rate(newest, all);
    this.#list(totals, uncounted ? span : `in the ${span}`);
  }

  #list(totals, within) {
    const rest = [...totals].filter(([kind]) => slotOf(kind) === REST).reduce((sum, [, count]) => sum + count, 0);
    const named = [...totals].filter(([kind]) => slotOf(kind) !== REST).map(([kind, count]) => [slotOf(kind), kind, count]);
    const rows = rest ? [...named, [REST, "all others", rest]] : named;
    this.legend.replaceChildren(
      ...(rows.length ? rows.map(legendRow) : [el("li", { class: "hint" }, `none ${within}`)]),
    );
  }

  /** Over the last two whole buckets: one that has only begun would say too little. Without them, over what is counted. */
  #rate(newest, all) {
    const counted = this.#now() - this.#since;
    if (counted < 1_000) return "…";
    if (this.#since > (newest - 2) * BUCKET_MS) return `${perSecond(all, counted / BUCKET_MS)} /s`;
    let count = 0;
    for (const bucket of [newest - 1, newest - 2]) {
      for (const some of this.#buckets.get(bucket)?.values() ?? []) count += some;
    }
    return `${perSecond(count, 2)} /s`;
  }
}

const perSecond = (count, buckets) => number(Math.round((count / buckets / BUCKET_MS) * 10_000) / 10);

function legendRow([slot, name, count]) {
  return el("li", {}, el("i", { "data-slot": slot }), el("span", { class: "name" }, name), el("b", {}, number(count)));
}
