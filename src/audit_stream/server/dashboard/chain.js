// The last verdict on the chain: in a tile, in the page's title, and while it is a break in a banner.

import { ago, byId, number, visible } from "./dom.js";
import { inFull, onZone } from "./times.js";

const TITLE = document.title;
const AGE_MS = 15_000;

export class Chain {
  #last;

  /** `onBreak(at, reason)` is told where the chain breaks, with nulls when nowhere; `show(at, reason)` shows the break. */
  constructor({ onBreak, show }) {
    this.onBreak = onBreak;
    this.banner = byId("broken");
    // A verdict grows old while the server cannot be asked, too.
    setInterval(() => this.#tile(), AGE_MS);
    onZone(() => this.#tile());
    byId("broken-show").addEventListener("click", () => show(this.#last.first_break_at, this.#last.reason));
    byId("broken-fold").addEventListener("click", () => this.#fold(!this.banner.classList.contains("folded")));
  }

  /** Show a verdict as /stats has it; null when nobody has verified. */
  told(last) {
    const before = broken(this.#last) ? this.#last : null;
    const now = broken(last) ? last : null;
    this.#last = last;
    this.#tile();
    if (now) byId("broken-text").textContent = described(now);
    if (before?.first_break_at === now?.first_break_at && before?.reason === now?.reason) return;
    if (now) byId("broken-title").textContent = `The chain is BROKEN at #${now.first_break_at}.`;
    document.title = now ? `⚠ BROKEN – ${TITLE}` : TITLE;
    this.banner.hidden = !now;
    this.#fold(false);
    this.onBreak(now?.first_break_at ?? null, now?.reason ?? null);
  }

  #tile() {
    const last = this.#last;
    if (last === undefined) return;
    const tile = byId("held");
    tile.dataset.state = last === null || last.valid === null ? "unknown" : last.valid ? "holds" : "broken";
    tile.textContent = inShort(last);
    tile.title = last === null ? "" : `${inFull(last.at)}${last.reason ? `: ${visible(last.reason)}` : ""}`;
  }

  /** Folded, the banner keeps its title: a break is in sight for as long as it is one. */
  #fold(folded) {
    this.banner.classList.toggle("folded", folded);
    const button = byId("broken-fold");
    button.textContent = folded ? "▾" : "✕";
    button.setAttribute("aria-expanded", !folded);
    button.setAttribute("aria-label", folded ? "Unfold the banner" : "Fold the banner");
  }
}

const broken = (last) => last?.valid === false;

function inShort(last) {
  if (last === null) return "never verified";
  if (last.valid === false) return `BROKEN at #${last.first_break_at}`;
  const intact = `intact ${last.event_id ? `up to #${number(last.event_id)}` : "while empty"}, ${ago(last.at)}`;
  return last.valid ? intact : `could not be checked; ${intact}`;
}

function described({ reason, event_id: upto, at }) {
  const why = reason ? `${visible(reason)}. ` : "";
  return `${why}It holds up to #${number(upto)}. Found ${ago(at)}.`;
}

/** What /readyz says of the chain, in the form of /stats. Without the reason, which it keeps to itself. */
export function verdictOf(chain) {
  if (!chain || chain.verdict === "never verified") return null;
  const valid = { intact: true, broken: false }[chain.verdict] ?? null;
  return { valid, event_id: chain.event_id, first_break_at: chain.first_break_at, reason: null, at: chain.at };
}
