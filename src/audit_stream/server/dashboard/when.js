// The two times of the open event: when it happened, as its producer says, and when it was recorded, as the server says.

import { ask, NDJSON, query } from "./api.js";
import { el, visible } from "./dom.js";
import { inFull, onZone } from "./times.js";
import { readCommitted } from "./wire.js";

/** Further apart than this, the two times need a word. */
const APART_MS = 60_000;

export class When {
  #event = null;
  #recorded = null;

  constructor() {
    this.happened = el("span", { id: "happened" });
    this.sent = el("span", { class: "hint" });
    this.recorded = el("span", { id: "recorded" });
    this.apart = el("span", { class: "hint" });
    onZone(() => this.#draw());
  }

  /** Show the times of an event. The commit time lies in an index, outside of the event, and is asked for. */
  async show(event) {
    this.#event = event;
    this.#recorded = null;
    this.#draw();
    const recorded = await askRecorded(event.id);
    if (event !== this.#event) return;
    this.#recorded = recorded;
    this.#draw();
  }

  #draw() {
    if (this.#event === null) return;
    const { timestamp } = this.#event;
    this.happened.textContent = visible(inFull(timestamp));
    this.sent.textContent = `as its producer says: ${visible(timestamp)}`;
    const { moment, why } = this.#recorded ?? { why: "…" };
    this.recorded.textContent = moment ? inFull(moment) : why;
    this.apart.textContent = moment ? difference(new Date(timestamp), moment) : "";
  }
}

/** The moment of the commit, or why it is not known. */
async function askRecorded(id) {
  const one = query("/events", { after: id - 1, before: id + 1, limit: 1, committed: true });
  try {
    const [event] = readCommitted(await (await ask(one, { accept: NDJSON })).text());
    if (event && !Number.isNaN(event.committed)) return { moment: new Date(event.committed) };
    return { why: "unknown: the index by commit time does not have this event" };
  } catch (error) {
    return { why: `unknown: ${error.message}` };
  }
}

function difference(happened, recorded) {
  const ms = recorded - happened;
  if (Number.isNaN(ms) || Math.abs(ms) < APART_MS) return "";
  return ms > 0 ? `${span(ms)} after it happened` : `${span(-ms)} before it happened: the two clocks disagree`;
}

/** 3 min, 5 h, 2 days. */
function span(ms) {
  const minutes = Math.floor(ms / 60_000);
  if (minutes < 120) return `${minutes} min`;
  if (minutes < 48 * 60) return `${Math.floor(minutes / 60)} h`;
  return `${Math.floor(minutes / (24 * 60)).toLocaleString("en")} days`;
}
