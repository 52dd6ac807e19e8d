// The live view: what the tail hands over, filtered here, and held still while paused.

import { ask, NDJSON, query } from "./api.js";
import { announce, byId, number } from "./dom.js";
import { nothingFound } from "./nearest.js";
import { Newer } from "./newer.js";
import { readEvents } from "./wire.js";

const KEPT = 10_000;
const KEPT_CHARACTERS = 32 * 1024 * 1024;
const OLDER = 500;

/** The newest events, within limits of number and size. */
class Newest {
  #size = 0;

  constructor(events = []) {
    this.events = events;
    for (const event of events) this.#size += event.text.length;
  }

  push(event) {
    this.events.push(event);
    this.#size += event.text.length;
    while (this.events.length > KEPT || (this.#size > KEPT_CHARACTERS && this.events.length > 1)) {
      this.#size -= this.events.shift().text.length;
    }
  }

  prepend(older) {
    this.events.unshift(...older);
    for (const event of older) this.#size += event.text.length;
  }
}

export class Live {
  #recent = new Newest();
  #shown = new Newest();
  #added = 0;
  #waiting = 0;
  #due = false;
  #asked = 0;
  #ofEmptyChain = false;
  paused = false;

  /** `sources` are those that the page has seen; `guide()` is what an empty chain shows. */
  constructor(list, { sources, guide }) {
    Object.assign(this, { list, sources, guide });
    this.newer = new Newer(list);
    list.show(this.#shown.events);
    this.kind = byId("live-kind");
    this.source = byId("live-source");
    this.kind.addEventListener("change", () => this.refilter());
    this.source.addEventListener("change", () => this.refilter());
    byId("live-filter").addEventListener("submit", (submit) => submit.preventDefault());
    byId("live-clear").addEventListener("click", () => this.#clear());
    byId("pause").addEventListener("click", () => this.toggle());
  }

  /** What the list shows, for downloading. */
  get selection() {
    return this.#shown.events;
  }

  /** The chain has no event yet. */
  isEmpty() {
    this.#ofEmptyChain = true;
    this.list.insteadOf(...this.guide());
  }

  add(event) {
    this.#ofEmptyChain = false;
    this.#recent.push(event);
    if (!this.#matches(event)) return;
    if (this.paused) {
      this.#waiting += 1;
    } else {
      this.#shown.push(event);
      this.#added += 1;
    }
    this.#draw();
  }

  toggle() {
    this.paused = !this.paused;
    announce(this.paused ? "Paused" : "Live again");
    if (!this.paused) this.refilter();
    this.#draw();
  }

  /** Show what matches among the newest events; when that is little, ask the server for older ones. */
  async refilter() {
    this.#waiting = 0;
    this.#added = 0;
    this.#shown = new Newest(this.#recent.events.filter((event) => this.#matches(event)));
    this.list.show(this.#shown.events);
    if (!this.#ofEmptyChain) this.list.insteadOf(...nothingFound(this.source.value, this.sources, (source) => this.#choose(source)));
    this.#draw();
    const asked = ++this.#asked;
    const oldest = this.#recent.events[0]?.id ?? 0;
    if (this.#shown.events.length >= OLDER || oldest <= 1) return;
    const filter = { kind: this.kind.value, source: this.source.value, before: oldest, limit: OLDER };
    try {
      const older = readEvents(await (await ask(query("/events", filter), { accept: NDJSON })).text());
      if (asked !== this.#asked) return;
      this.#shown.prepend(older);
      this.list.render();
      this.#draw();
    } catch (error) {
      byId("live-count").textContent = `older events: ${error.message}`;
    }
  }

  #matches(event) {
    return (!this.kind.value || event.kind === this.kind.value) && (!this.source.value || event.source === this.source.value);
  }

  #choose(source) {
    this.source.value = source;
    this.refilter();
    this.source.focus();
  }

  #clear() {
    this.kind.value = "";
    this.source.value = "";
    this.refilter();
  }

  // However fast events arrive, the page changes once a frame.
  #draw() {
    if (this.#due) return;
    this.#due = true;
    requestAnimationFrame(() => {
      this.#due = false;
      if (this.#added) {
        this.list.changed(this.#added);
        this.newer.came(this.#added);
      }
      this.#added = 0;
      byId("live-count").textContent = `${number(this.#shown.events.length)} shown`;
      byId("pause").textContent = this.paused ? `Resume · ${number(this.#waiting)} new` : "Pause";
      byId("pause").classList.toggle("paused", this.paused);
    });
  }
}
