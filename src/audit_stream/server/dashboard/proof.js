// Checking an event here, in the reader's browser, with nothing but its text (FIPS 180-4 by WebCrypto).

export const GENESIS = "0".repeat(64);

/** The text that is hashed: json.dumps(body, sort_keys=True, separators=(",", ":")), the payload spliced in. */
export function preimage(event) {
  return (
    `{"event_id":${event.id},"kind":${quoted(event.kind)},"payload":${event.payload},` +
    `"prev_hash":"${event.prev}","source":${quoted(event.source)},"timestamp":${quoted(event.timestamp)}}`
  );
}

// Python escapes DEL and everything beyond ASCII, JSON.stringify does not.
function quoted(text) {
  return JSON.stringify(text).replace(
    /[\u007f-\uffff]/g,
    (unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`,
  );
}

export async function sha256(text) {
  const digest = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(text));
  return Array.from(new Uint8Array(digest), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

const holds = (text) => ({ state: "holds", text });
const broken = (text) => ({ state: "broken", text });
const unknown = (text) => ({ state: "unknown", text });

/** Recompute the event's hash. Proves that its content is what was hashed, not that it is in its place. */
export async function checkHash(event) {
  // Browsers give WebCrypto to secure contexts alone.
  if (!globalThis.crypto?.subtle) return unknown("cannot be checked here: open over https or localhost");
  try {
    const payload = JSON.parse(event.payload);
    if (payload === null || typeof payload !== "object" || Array.isArray(payload)) throw new SyntaxError();
  } catch {
    return broken("the payload is not a JSON object");
  }
  const computed = await sha256(preimage(event));
  return computed === event.hash ? holds("recomputed in this browser: it holds") : broken(`recomputed: ${computed}`);
}

/** Compare with the event before it, which is null for the first. */
export function checkLink(event, previous) {
  if (event.id === 1) {
    return event.prev === GENESIS
      ? holds("the first event, linked to genesis")
      : broken("the first event, but not linked to genesis");
  }
  if (!previous || previous.id !== event.id - 1) return unknown(`#${event.id - 1} was not read`);
  return previous.hash === event.prev
    ? holds(`the hash of #${previous.id}: it holds`)
    : broken(`#${previous.id} has the hash ${previous.hash}`);
}
