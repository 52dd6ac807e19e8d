// Search: a form, and pages of what the server finds.

import { ask, NDJSON, nextPage, query } from "./api.js";
import { byId, el, number } from "./dom.js";
import { nothingFound } from "./nearest.js";
import { fromInput, onZone, rezoned } from "./times.js";
import { readEvents } from "./wire.js";

const PAGE = 100;

export class Search {
  #pages = [];
  #next = null;
  #asked = 0;

  /** `sources` are those that the page has seen. */
  constructor(list, { sources }) {
    Object.assign(this, { list, sources });
    this.form = byId("search-form");
    this.form.addEventListener("submit", (submit) => {
      submit.preventDefault();
      this.#go([query("/events", { ...this.filter(), limit: PAGE })]);
    });
    this.form.addEventListener("reset", () => this.#clear());
    this.#clear();
    onZone(() => this.#rezone());
    byId("page-next").addEventListener("click", () => this.#go([...this.#pages, this.#next]));
    byId("page-back").addEventListener("click", () => this.#go(this.#pages.slice(0, -1)));
  }

  /** The filter of the form, as the parameters of GET /events. */
  filter() {
    const value = (name) => this.form.elements[name].value.trim();
    const instant = (name) => (value(name) ? fromInput(value(name)).toISOString() : "");
    return {
      kind: value("kind"),
      source: this.form.elements.source.value,
      since: instant("since"),
      until: instant("until"),
      after: value("first") ? Math.max(0, Number(value("first")) - 1) : "",
      before: value("last") ? Number(value("last")) + 1 : "",
    };
  }

  async #go(pages) {
    const asked = ++this.#asked;
    this.#say("Searching…");
    try {
      const answer = await ask(pages.at(-1), { accept: NDJSON });
      const events = readEvents(await answer.text());
      if (asked !== this.#asked) return;
      this.#pages = pages;
      this.#next = nextPage(answer);
      // With a first id the server pages upwards from there, otherwise down from the newest.
      const upwards = new URL(pages.at(-1), location.href).searchParams.has("after");
      this.list.insteadOf(...nothingFound(this.filter().source, this.sources, (source) => this.#choose(source)));
      this.list.show(events, { newestFirst: !upwards });
      this.#say(events.length ? this.#describe(events, upwards) : "Nothing found");
    } catch (error) {
      if (asked !== this.#asked) return;
      this.#say(error.message);
    }
    this.#buttons();
  }

  #describe(events, upwards) {
    const [first, last] = [events[0].id, events.at(-1).id];
    const range = upwards ? `#${first} to #${last}, oldest first` : `#${last} to #${first}, newest first`;
    const more = this.#pages.length > 1 || this.#next;
    return more ? `Page ${this.#pages.length} · ${range}` : `${number(events.length)} found · ${range}`;
  }

  /** The form means the same moments, whatever the zone. */
  #rezone() {
    for (const name of ["since", "until"]) this.form.elements[name].value = rezoned(this.form.elements[name].value);
  }

  #choose(source) {
    this.form.elements.source.value = source;
    this.form.requestSubmit();
    this.form.elements.source.focus();
  }

  #clear() {
    this.#asked += 1;
    this.#pages = [];
    this.#next = null;
    this.list.insteadOf(el("p", {}, "Fill in what you look for, and press Search. Without filters, all events are found."));
    this.list.show([]);
    this.#say("");
    this.#buttons();
  }

  #buttons() {
    byId("page-back").disabled = this.#pages.length < 2;
    byId("page-next").disabled = this.#next === null;
  }

  #say(text) {
    byId("search-count").textContent = text;
  }
}
