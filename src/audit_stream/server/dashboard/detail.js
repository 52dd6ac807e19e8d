// One event in full, checked here while the reader looks on.

import { askEvent } from "./api.js";
import { announce, button, byId, copyButton, el, number, visible } from "./dom.js";
import { checkHash, checkLink, preimage } from "./proof.js";
import { When } from "./when.js";
import { layOut } from "./wire.js";

const MOST_SHOWN = 100_000;

export class Detail {
  #event = null;
  #asked = 0;
  #cameFrom = null;

  /** `shown(id)` is told which event is open. */
  constructor(shown) {
    this.pane = byId("detail");
    this.body = byId("detail-body");
    this.title = byId("detail-title");
    this.shown = shown;
    this.when = new When();
    this.break = { at: null, reason: null };
    byId("detail-close").addEventListener("click", () => this.close());
  }

  /** Say of the event at which the chain breaks that it does; `at` is null when there is none. */
  mark(at, reason) {
    this.break = { at, reason };
    const here = at !== null && this.#event?.id === at;
    byId("detail-break").hidden = !here;
    if (here) byId("detail-break").textContent = `✗ The chain breaks at this event${reason ? `: ${visible(reason)}` : ""}.`;
  }

  get isOpen() {
    return this.#event !== null;
  }

  /** Show an event. `focus` moves the keyboard into the pane, and back to where it was on close. */
  open(event, { focus = true } = {}) {
    if (!this.isOpen) this.#cameFrom = document.activeElement;
    const asked = ++this.#asked;
    this.#event = event;
    document.body.classList.add("with-detail");
    this.title.textContent = `Event #${event.id}`;
    const hashCheck = check();
    const linkCheck = check();
    this.body.replaceChildren(...this.#content(event, hashCheck, linkCheck));
    this.pane.scrollTop = 0;
    this.mark(this.break.at, this.break.reason);
    this.shown(event.id);
    if (focus) this.title.focus();
    this.when.show(event);
    this.#prove(event, hashCheck, linkCheck, () => asked === this.#asked);
  }

  /** Fetch an event by id and show it. */
  async openId(id) {
    const asked = ++this.#asked;
    try {
      const event = await askEvent(id);
      if (asked === this.#asked) this.open(event);
    } catch (error) {
      announce(`#${id}: ${error.message}`);
    }
  }

  close() {
    if (!this.isOpen) return;
    this.#asked += 1;
    this.#event = null;
    this.mark(this.break.at, this.break.reason);
    document.body.classList.remove("with-detail");
    this.title.textContent = "Event";
    this.body.replaceChildren(el("p", { class: "hint" }, "Choose an event to see it in full and to check its hash."));
    this.#cameFrom?.focus();
  }

  async #prove(event, hashCheck, linkCheck, current) {
    const hash = await checkHash(event);
    settle(hashCheck, hash);
    let previous = null;
    if (event.id > 1) {
      try {
        previous = await askEvent(event.id - 1);
      } catch (error) {
        settle(linkCheck, { state: "unknown", text: `#${event.id - 1}: ${error.message}` });
        return;
      }
    }
    const link = checkLink(event, previous);
    settle(linkCheck, link);
    if (current()) announce(`Event #${event.id}. Hash: ${hash.state}. Link: ${link.state}.`);
  }

  #content(event, hashCheck, linkCheck) {
    const laidOut = visible(readable(event.payload), "\n");
    const text = laidOut.slice(0, MOST_SHOWN);
    const left = laidOut.length - text.length;
    return [
      el(
        "dl",
        { class: "fields" },
        ...field("Kind", event.kind),
        ...field("Source", visible(event.source)),
        ...field("Happened", this.when.happened, "", this.when.sent),
        ...field("Recorded", this.when.recorded, "", this.when.apart),
        ...field("Hash", event.hash, "mono", hashCheck),
        ...field("Previous hash", event.prev, "mono", linkCheck),
      ),
      el(
        "div",
        { class: "actions" },
        button(`← #${event.id - 1}`, () => this.openId(event.id - 1), {
          disabled: event.id === 1,
          "aria-label": `Event before, ← #${event.id - 1}`,
        }),
        button(`#${event.id + 1} →`, () => this.openId(event.id + 1), {
          "aria-label": `Event after, #${event.id + 1} →`,
        }),
        copyButton("Copy JSON", event.text),
      ),
      el("h3", {}, "Payload"),
      el("pre", { class: "payload", tabindex: "0", "aria-label": "Payload" }, text),
      ...(left > 0 ? [el("p", { class: "hint" }, `and ${number(left)} more characters: copy the JSON to have all`)] : []),
      el(
        "details",
        {},
        el("summary", {}, "The bytes that are hashed"),
        el("p", { class: "hint" }, "SHA-256 of this text, ASCII, no line end, is the hash:"),
        el("pre", { class: "preimage", tabindex: "0", "aria-label": "Preimage" }, preimage(event).slice(0, MOST_SHOWN)),
      ),
    ];
  }
}

function field(name, value, style = "", ...more) {
  return [el("dt", {}, name), el("dd", {}, el("span", { class: style }, value), ...more)];
}

const check = () => el("span", { class: "check", "data-state": "checking" }, "checking…");

function settle(element, { state, text }) {
  element.dataset.state = state;
  element.textContent = text;
}

function readable(payload) {
  try {
    return layOut(payload);
  } catch {
    return payload;
  }
}
