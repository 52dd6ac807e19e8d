// A pill over a list that is scrolled down: how many events came in above, and the way up to them.

import { byId, number } from "./dom.js";

export class Newer {
  #count = 0;

  constructor(list) {
    this.list = list;
    this.pill = byId("newer");
    this.pill.addEventListener("click", () => {
      list.toTop();
      list.focus();
    });
    list.box.addEventListener("scroll", () => this.#draw(), { passive: true });
  }

  /** So many events came in at the top. */
  came(count) {
    this.#count += count;
    this.#draw();
  }

  // Scrolling up passes by the new ones, one after the other.
  #draw() {
    this.#count = Math.min(this.#count, this.list.above);
    this.pill.hidden = this.#count === 0;
    this.pill.textContent = `${number(this.#count)} new ↑`;
  }
}
