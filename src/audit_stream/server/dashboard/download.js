// Download of what is selected, as NDJSON: each line is the event as the server wrote it, so its hash holds.

import { ask, NDJSON, nextPage, query } from "./api.js";
import { announce, number } from "./dom.js";

const PAGE = 10_000;

export function save(parts, name) {
  const address = URL.createObjectURL(new Blob(parts, { type: NDJSON }));
  const link = document.createElement("a");
  link.href = address;
  link.download = name;
  link.click();
  // The browser reads the address after this turn.
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
}

export function saveEvents(events, name) {
  save([events.map((event) => `${event.text}\n`).join("")], name);
  announce(`Downloaded ${number(events.length)} events`);
}

/** A button that saves all that a filter finds, page by page, and stops when pressed again. */
export function downloadsAll(button, filter, say) {
  const label = button.textContent;
  let abort = null;
  button.addEventListener("click", async () => {
    if (abort) return abort.abort();
    abort = new AbortController();
    button.textContent = "Stop";
    try {
      const parts = [];
      // With a cursor the pages go upwards: the file is in the order of the chain.
      let page = query("/events", { ...filter(), after: filter().after || 0, limit: PAGE });
      for (let read = 1; page; read += 1) {
        const answer = await ask(page, { accept: NDJSON, signal: abort.signal });
        parts.push(await answer.blob());
        page = nextPage(answer);
        if (page) say(`Downloading: ${number(read * PAGE)} events…`);
      }
      save(parts, "events.ndjson");
      say("Downloaded");
    } catch (error) {
      say(error.name === "AbortError" ? "Download stopped" : `Not downloaded: ${error.message}`);
    } finally {
      abort = null;
      button.textContent = label;
    }
  });
}
