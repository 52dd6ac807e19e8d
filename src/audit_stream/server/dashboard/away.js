// While the server is not connected, what the page shows is of before, and the page says so.

import { byId } from "./dom.js";
import { clock, onZone } from "./times.js";

const PATIENCE_MS = 1_500;

export class Away {
  #since = null;
  #timer = 0;

  constructor() {
    onZone(() => this.#since && this.#write());
  }

  get isLost() {
    return document.body.classList.contains("away");
  }

  /** The tail is live. */
  live() {
    clearTimeout(this.#timer);
    this.#since = null;
    byId("away").hidden = true;
    document.body.classList.remove("away");
  }

  /** The tail is not live any more. `soon`: it tries again, so a short break need not be told. */
  lost({ soon }) {
    document.body.classList.add("away");
    clearTimeout(this.#timer);
    byId("away").hidden = true;
    if (!soon) return;
    this.#since ??= new Date();
    const left = PATIENCE_MS - (Date.now() - this.#since);
    this.#timer = setTimeout(() => {
      this.#write();
      byId("away").hidden = false;
    }, Math.max(0, left));
  }

  #write() {
    byId("away").textContent = `Not connected since ${clock(this.#since)}, showing what was received until then.`;
  }
}
