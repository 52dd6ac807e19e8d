// A list of events. However long it is, only the rows in view are in the document.

import { slotOf } from "./colours.js";
import { byId, el, visible } from "./dom.js";
import { inFull, inShort, onZone, zoneName } from "./times.js";

const SPARE_ROWS = 6;
const PREVIEW = 160;

export class EventList {
  events = [];
  newestFirst = true;
  selected = null;
  broken = null;
  #rows = [];
  #due = false;
  #rowHeight = 30;

  /** `open(event)` shows one; `moved(event)` is told when the selection moves by key. */
  constructor(name, { open, moved }) {
    const box = byId(`${name}-list`);
    Object.assign(this, { box, name, open, moved });
    this.none = byId(`${name}-none`);
    this.canvas = el("div", { class: "canvas", role: "presentation" });
    box.append(this.canvas);
    box.addEventListener("scroll", () => this.render(), { passive: true });
    box.addEventListener("keydown", (press) => this.#onKey(press));
    box.addEventListener("click", (click) => this.#onClick(click));
    new ResizeObserver(() => this.#measure()).observe(box);
    onZone(() => this.render());
  }

  /** Show these, in ascending order of id; the array stays the caller's, who says when it `changed`. */
  show(events, { newestFirst = true } = {}) {
    this.events = events;
    this.newestFirst = newestFirst;
    this.box.scrollTop = 0;
    this.render();
  }

  /** `added` events came at the top: whoever has scrolled down keeps seeing the same ones. */
  changed(added) {
    if (this.box.scrollTop > 0) {
      this.#size();
      this.box.scrollTop += added * this.#rowHeight;
    }
    this.render();
  }

  /** What stands in place of the events when there are none. */
  insteadOf(...content) {
    this.none.replaceChildren(...content);
  }

  /** How many events are above those in view. */
  get above() {
    return Math.ceil(this.box.scrollTop / this.#rowHeight);
  }

  toTop() {
    this.box.scrollTop = 0;
  }

  render() {
    if (this.#due) return;
    this.#due = true;
    requestAnimationFrame(() => {
      this.#due = false;
      this.#draw();
    });
  }

  /** Mark the event at which the chain breaks; null when there is none. */
  mark(id) {
    this.broken = id;
    this.render();
  }

  select(id) {
    this.selected = id;
    this.render();
  }

  focus() {
    this.box.focus();
    if (this.selected === null && this.events.length) this.#moveTo(0);
  }

  #at(index) {
    return this.events[this.newestFirst ? this.events.length - 1 - index : index];
  }

  #indexOf(id) {
    let low = 0;
    let high = this.events.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.events[middle].id < id) low = middle + 1;
      else high = middle;
    }
    if (this.events[low]?.id !== id) return -1;
    return this.newestFirst ? this.events.length - 1 - low : low;
  }

  #measure() {
    this.#rowHeight = Number.parseFloat(getComputedStyle(this.box).getPropertyValue("--row")) || 30;
    this.render();
  }

  #size() {
    this.canvas.style.height = `${this.events.length * this.#rowHeight}px`;
  }

  #draw() {
    this.#size();
    const top = Math.floor(this.box.scrollTop / this.#rowHeight) - SPARE_ROWS;
    const seen = Math.ceil(this.box.clientHeight / this.#rowHeight) + 2 * SPARE_ROWS;
    const first = Math.max(0, Math.min(top, this.events.length - seen));
    const count = Math.min(seen, this.events.length - first);
    while (this.#rows.length < count) this.#rows.push(this.#newRow());
    this.#rows.forEach((row, place) => {
      if (place < count) this.#fill(row, this.#at(first + place), first + place);
      else empty(row);
    });
    const chosen = this.#rows.find((row) => row.event !== null && row.event.id === this.selected);
    if (chosen) this.box.setAttribute("aria-activedescendant", chosen.element.id);
    else this.box.removeAttribute("aria-activedescendant");
    this.none.hidden = this.events.length > 0;
  }

  #newRow() {
    const cells = ["id", "time", "kind", "source", "payload"].map((name) => el("span", { class: name }));
    const element = el("div", { class: "row", role: "option" }, ...cells);
    this.canvas.append(element);
    return { element, cells, event: null, zone: "" };
  }

  #fill(row, event, index) {
    const { element, cells } = row;
    element.hidden = false;
    if (row.event !== event || row.zone !== zoneName()) {
      row.event = event;
      row.zone = zoneName();
      const [id, time, kind, source, payload] = cells;
      id.textContent = `#${event.id}`;
      time.textContent = inShort(event.timestamp);
      time.title = inFull(event.timestamp);
      kind.textContent = event.kind;
      source.textContent = visible(event.source);
      payload.textContent = visible(event.payload.slice(0, PREVIEW));
      element.id = `${this.name}-${event.id}`;
    }
    cells[2].dataset.slot = slotOf(event.kind);
    element.style.transform = `translateY(${index * this.#rowHeight}px)`;
    element.setAttribute("aria-posinset", index + 1);
    element.setAttribute("aria-setsize", this.events.length);
    element.setAttribute("aria-selected", event.id === this.selected);
    element.classList.toggle("broken", event.id === this.broken);
    element.title = event.id === this.broken ? "The chain breaks at this event" : "";
  }

  #onClick(click) {
    const element = click.target.closest(".row");
    const row = this.#rows.find((candidate) => candidate.element === element);
    if (!row) return;
    this.select(row.event.id);
    this.open(row.event);
  }

  #onKey(press) {
    if (press.ctrlKey || press.metaKey || press.altKey || !this.events.length) return;
    const page = Math.max(1, Math.floor(this.box.clientHeight / this.#rowHeight) - 1);
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity };
    const at = this.selected === null ? -1 : this.#indexOf(this.selected);
    if (press.key in steps) {
      this.#moveTo(at + steps[press.key]);
    } else if (press.key === "Enter" && at >= 0) {
      this.open(this.#at(at));
    } else {
      return;
    }
    press.preventDefault();
  }

  #moveTo(index) {
    const reached = Math.max(0, Math.min(this.events.length - 1, index));
    const top = reached * this.#rowHeight;
    const { scrollTop, clientHeight } = this.box;
    if (top < scrollTop) this.box.scrollTop = top;
    else if (top + this.#rowHeight > scrollTop + clientHeight) this.box.scrollTop = top + this.#rowHeight - clientHeight;
    this.select(this.#at(reached).id);
    this.moved(this.#at(reached));
  }
}

/** Keep a row for later. Without an id: another row may come to show its event. */
function empty(row) {
  row.event = null;
  row.element.hidden = true;
  row.element.removeAttribute("id");
}
