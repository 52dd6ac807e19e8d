// Count, head, promise and replicas, asked for every few seconds.

import { ApiError, askJson } from "./api.js";
import { verdictOf } from "./chain.js";
import { byId, number } from "./dom.js";

const EVERY_MS = 4_000;
const PATIENCE_MS = 10_000;

export class Status {
  /**
   * `onStats(stats, before)` is told each answer, with what `seen()` was before it was asked for; `onVerdict(last)` the
   * last verdict on the chain, `onSilence()` that there was no answer.
   */
  constructor({ seen, onStats, onVerdict, onSilence }) {
    Object.assign(this, { seen, onStats, onVerdict, onSilence });
    this.stats = null;
    this.#keepAsking();
  }

  async #keepAsking() {
    if (!document.hidden) await this.ask();
    setTimeout(() => this.#keepAsking(), EVERY_MS);
  }

  /** Ask now, and not only when it is due. */
  async ask() {
    const before = this.seen();
    try {
      this.stats = await askJson("/stats", { signal: AbortSignal.timeout(PATIENCE_MS) });
      byId("chain").textContent = this.stats.chain;
      byId("redis").textContent = this.stats.redis;
      this.head(this.stats.last_event_id, this.stats.latest_hash);
      this.onStats(this.stats, before);
      this.onVerdict(this.stats.last_verdict ?? null);
    } catch (error) {
      for (const id of ["promise", "replicas"]) tell(id, "unknown", error.status === 0 ? "unknown" : error.message, error.message);
      if (error.status === 0) return this.onSilence();
      // The head cannot be read, say: of a break all the more is to be told.
      const { chain } = await this.#readiness();
      if (chain) this.onVerdict(verdictOf(chain));
      return;
    }
    const { reasons } = await this.#readiness();
    this.#promise(reasons);
  }

  /** Show the newest event that is known, from the live tail as well. */
  head(id, hash) {
    if (!this.stats || id < this.stats.last_event_id) return;
    byId("count").textContent = number(this.stats.count + id - this.stats.last_event_id);
    byId("head").textContent = id ? `#${id}` : "none yet";
    byId("head-hash").textContent = id ? hash : "";
    byId("head-hash").title = id ? hash : "";
  }

  /** Why the server says that it is not ready, empty when it is; and what it says of the chain. */
  async #readiness() {
    try {
      const { chain } = await askJson("/readyz", { signal: AbortSignal.timeout(PATIENCE_MS) });
      return { reasons: [], chain };
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      return { reasons: error.body.reasons ?? [error.message], chain: error.body.chain };
    }
  }

  #promise(reasons) {
    const { ack, replicas } = this.stats;
    const wanted = Number(/replicas=(\d+)/.exec(ack)?.[1] ?? 0);
    const missing = reasons.find((reason) => /\breplicas is \d/.test(reason));
    if (reasons.length) tell("promise", "broken", `${ack} · not kept`, reasons.join("\n"));
    else tell("promise", "holds", `${ack} · kept`);
    if (missing) tell("replicas", "broken", `${/\breplicas is (\d+)/.exec(missing)?.[1]} of ${wanted}`, missing);
    else if (wanted) tell("replicas", "holds", `${replicas} connected, ${wanted} promised`);
    else tell("replicas", "none", replicas ? `${replicas} connected, none promised` : "none promised");
    byId("why").textContent = reasons.join(" · ");
    byId("why").hidden = !reasons.length;
  }
}

function tell(id, state, text, more = "") {
  const element = byId(id);
  element.dataset.state = state;
  element.textContent = text;
  element.title = more;
}
