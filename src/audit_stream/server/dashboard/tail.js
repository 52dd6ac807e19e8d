// Following the chain, and keeping at it.

import { ApiError, ask, askEvent, query } from "./api.js";
import { clock } from "./times.js";
import { readEvent } from "./wire.js";

const LONGEST_WAIT_MS = 10_000;

/**
 * Hands over every event once, in order. `onState(state, text)`: connecting, live, reconnecting, stopped.
 *
 * All kinds and sources come over one stream, so each event must follow the one before it, by id and by hash;
 * `onGap(text)` is told when one does not. `onOther(text)` is told that the server has another chain than the one that
 * was followed here; then following ends.
 */
export class Tail {
  #source = null;
  #failures = 0;
  #timer = 0;
  wasLive = false;
  #ended = false;

  constructor({ onEvent, onState, onGap, onOther }) {
    this.last = { id: 0, hash: null };
    Object.assign(this, { onEvent, onState, onGap, onOther });
  }

  /** Follow from behind `last`, the newest event that is known here. */
  start(last) {
    this.last = last;
    this.onState("connecting", "Connecting…");
    this.#open();
  }

  /** Open the stream anew: a connection that died without a word looks like a quiet chain. */
  reopen() {
    this.onState("reconnecting", "Reconnecting…");
    this.#open();
  }

  /** Compare with the head that the server named when `before` was the newest event here. */
  async headWas(head, before) {
    const shorter = head.id < before.id;
    const another = head.id === this.last.id && this.last.hash !== null && head.hash !== this.last.hash;
    if (shorter || another) await this.#isOther();
  }

  #address() {
    return query("/stream", { named: "false", after: this.last.id });
  }

  #open() {
    clearTimeout(this.#timer);
    this.#source?.close();
    if (this.#ended) return;
    const source = new EventSource(this.#address());
    this.#source = source;
    source.onopen = () => {
      this.#failures = 0;
      const again = this.wasLive ? `Live · reconnected ${clock(new Date())}` : "Live";
      if (this.wasLive) this.#isOther();
      this.wasLive = true;
      this.onState("live", again);
    };
    source.onmessage = ({ data }) => this.#take(data);
    source.onerror = () => {
      this.onState("reconnecting", "Reconnecting…");
      // A browser comes back by itself from a lost connection, but not from an answer it does not like.
      if (source.readyState === EventSource.CLOSED) this.#ask();
    };
  }

  #take(text) {
    let event;
    try {
      event = readEvent(text);
    } catch {
      this.onGap(`What came after #${this.last.id} cannot be read as an event.`);
      return;
    }
    if (event.id <= this.last.id) return;
    if (this.last.hash !== null && (event.id !== this.last.id + 1 || event.prev !== this.last.hash)) {
      this.#doubt(event);
      return;
    }
    this.#accept(event);
  }

  #accept(event) {
    this.last = event;
    this.onEvent(event);
  }

  /** An event that does not follow is of another chain, or the stream has a gap. Nothing more is taken until that is known. */
  async #doubt(event) {
    this.#source.close();
    this.onState("reconnecting", "Reconnecting…");
    if (await this.#isOther()) return;
    this.onGap(`#${event.id} does not follow #${this.last.id} as it was received here.`);
    this.#accept(event);
    this.#open();
  }

  /** Whether the server has another event in the place of the newest one here; end following when it has. */
  async #isOther() {
    const { id, hash } = this.last;
    if (hash === null || this.#ended) return this.#ended;
    let now = null;
    try {
      now = (await askEvent(id)).hash;
    } catch (error) {
      // Any other answer says nothing about the chain; the next reconnect asks again.
      if (error.status !== 404) return false;
    }
    if (now === hash || this.#ended) return this.#ended;
    this.#ended = true;
    this.#source?.close();
    clearTimeout(this.#timer);
    this.onState("stopped", "Stopped: another chain");
    this.onOther(now ? `Event #${id} was ${hash}, and is ${now}.` : `Event #${id} was ${hash}, and does not exist any more.`);
    return true;
  }

  async #ask() {
    const wait = Math.min(LONGEST_WAIT_MS, 1000 * 2 ** this.#failures++);
    const abort = new AbortController();
    try {
      await ask(this.#address(), { signal: abort.signal });
    } catch (error) {
      if (error instanceof ApiError && error.status === 401) return this.onState("stopped", "Log in to follow");
      if (error instanceof ApiError && error.status === 409) {
        await this.#isOther();
        return this.onState("stopped", `Stopped: ${error.message}`);
      }
      this.onState("reconnecting", `Reconnecting: ${error.message}`);
    } finally {
      abort.abort();
    }
    this.#timer = setTimeout(() => this.#open(), wait);
  }
}
