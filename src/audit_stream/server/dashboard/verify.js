// The Verify button: progress, then a verdict that is green, red or grey.

import { ask, askEvent, lines, NDJSON } from "./api.js";
import { announce, byId, el, number, visible } from "./dom.js";
import { checkHash, checkLink } from "./proof.js";

const AROUND = 2;

/** Read the verdict; progress goes to `onProgress(checked, expected)`. Throws when there is none. */
export async function readVerdict(answer, onProgress) {
  for await (const line of lines(answer)) {
    const said = JSON.parse(line);
    if (typeof said.valid === "boolean") return said;
    if ("detail" in said) throw new Error(said.detail);
    onProgress(said.checked, said.expected);
  }
  throw new Error("the answer ended without a verdict");
}

export class Verify {
  #abort = null;

  /** `seen()` is the newest event this page has received; `open(id)` shows one; `ended()` is told each end of a run. */
  constructor({ seen, open, ended }) {
    Object.assign(this, { seen, open, ended });
    this.panel = byId("verdict");
    this.button = byId("verify");
    this.bar = byId("verify-progress");
    this.button.addEventListener("click", () => (this.#abort ? this.#abort.abort() : this.run()));
    byId("verdict-close").addEventListener("click", () => {
      this.panel.hidden = true;
      this.button.focus();
    });
  }

  async run() {
    const seen = this.seen();
    this.#abort = new AbortController();
    this.button.textContent = "Stop";
    this.#show("checking", "Verifying…", "");
    this.bar.hidden = false;
    this.bar.removeAttribute("value");
    try {
      const answer = await ask("/verify", { accept: NDJSON, signal: this.#abort.signal });
      const verdict = await readVerdict(answer, (checked, expected) => this.#progress(checked, expected));
      if (verdict.valid) await this.#green(verdict, seen);
      else await this.#red(verdict.first_break_at, verdict.reason, `${number(verdict.checked)} events held.`);
    } catch (error) {
      const why = error.name === "AbortError" ? "you stopped it" : error.message;
      this.#show("unknown", "Cannot tell", `No verdict was reached: ${why}. This says nothing about the chain.`);
    } finally {
      this.#abort = null;
      this.button.textContent = "Verify";
      this.bar.hidden = true;
    }
    this.ended();
    announce(`${byId("verdict-title").textContent}. ${byId("verdict-text").textContent}`);
  }

  /** Show a break that is known already, among its neighbours. */
  async showBreak(at, reason) {
    if (this.#abort) return;
    await this.#red(at, visible(reason ?? "a server found it"), "");
    this.panel.scrollIntoView({ block: "nearest" });
  }

  #progress(checked, expected) {
    this.bar.max = Math.max(1, expected);
    this.bar.value = checked;
    byId("verdict-text").textContent = `${number(checked)} of ${number(expected)} events hold so far`;
  }

  /** A chain can be intact and yet not the one that was here before: what this page has seen must be in it. */
  async #green(verdict, seen) {
    const { head, checked } = verdict;
    const held = `${number(checked)} events held.`;
    let kept = "";
    if (seen.hash) {
      if (head.event_id < seen.id) {
        return this.#red(head.event_id + 1, `the chain ends at #${head.event_id}, but this page has received #${seen.id}`, held);
      }
      const now = head.event_id === seen.id ? head.hash : (await askEvent(seen.id)).hash;
      if (now !== seen.hash) {
        return this.#red(seen.id, `this page has received another #${seen.id}: the chain was rewritten`, held);
      }
      kept = ` #${seen.id}, which this page had received, is in it.`;
    }
    const upto = head.event_id ? ` up to #${head.event_id} (${head.hash.slice(0, 16)}…)` : "";
    this.#show("holds", "Intact", `${number(checked)} events hold${upto}.${kept} Indexes ${verdict.indexes}.`);
  }

  async #red(at, reason, more) {
    this.#show("broken", `Broken at #${at}`, `${reason}. ${more}`);
    // One more than is shown, to check the first link against.
    const first = Math.max(1, at - AROUND - 1);
    const ids = Array.from({ length: at + AROUND - first + 1 }, (_, place) => first + place);
    const found = await Promise.all(ids.map((id) => askEvent(id).catch((error) => error)));
    const rows = await Promise.all(ids.map((id, place) => this.#contextRow(id, found[place], found[place - 1], id === at)));
    if (first > 1) rows.shift();
    byId("break").replaceChildren(
      el("caption", {}, "Around the break, checked in this browser"),
      el("thead", {}, el("tr", {}, ...["Event", "Kind", "Source", "Link to the one before", "Hash"].map((name) => el("th", { scope: "col" }, name)))),
      el("tbody", {}, ...rows),
    );
    byId("break-box").hidden = false;
  }

  async #contextRow(id, event, before, isBreak) {
    const name = isBreak ? `#${id} ◀ break` : `#${id}`;
    const row = el("tr", { class: isBreak ? "at-break" : "" });
    if (event instanceof Error) {
      row.append(el("th", { scope: "row" }, name), el("td", { colspan: 4 }, event.message));
      return row;
    }
    const link = checkLink(event, before instanceof Error ? null : before);
    const hash = await checkHash(event);
    const opener = el("button", { type: "button", class: "link" }, name);
    opener.addEventListener("click", () => this.open(event));
    row.append(
      el("th", { scope: "row" }, opener),
      el("td", {}, event.kind),
      el("td", {}, visible(event.source)),
      checked(link, event.prev),
      checked(hash, event.hash),
    );
    return row;
  }

  #show(state, title, text) {
    this.panel.hidden = false;
    this.panel.dataset.state = state;
    byId("verdict-title").textContent = title;
    byId("verdict-text").textContent = text;
    byId("break-box").hidden = true;
  }
}

function checked({ state, text }, hash) {
  return el("td", {}, el("code", {}, `${hash.slice(0, 16)}…`), el("span", { class: "check", "data-state": state, title: text }, state));
}
