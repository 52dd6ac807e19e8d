// Asking the server.

import { readEvent } from "./wire.js";

export const NDJSON = "application/x-ndjson";

/** An answer that is not the one asked for. `status` is 0 when there was none. */
export class ApiError extends Error {
  constructor(status, message, body = {}) {
    super(message);
    this.status = status;
    this.body = body;
  }
}

/** Fetch, with the reader's cookie if there is one. Throws ApiError, and AbortError when aborted. */
export async function ask(path, { accept = "application/json", signal } = {}) {
  let answer;
  try {
    answer = await fetch(path, { headers: { Accept: accept }, credentials: "same-origin", cache: "no-store", signal });
  } catch (error) {
    throw error.name === "AbortError" ? error : new ApiError(0, "the server cannot be reached");
  }
  if (answer.ok) return answer;
  if (answer.status === 401) {
    document.dispatchEvent(new CustomEvent("login-needed"));
    throw new ApiError(401, "log in to see this");
  }
  const body = await answer.json().catch(() => ({}));
  throw new ApiError(answer.status, String(body.detail ?? `the server answered ${answer.status}`), body);
}

/** POST: only for the login; nothing else is ever written from here. */
export async function tell(path, body) {
  let answer;
  try {
    answer = await fetch(path, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
      credentials: "same-origin",
    });
  } catch {
    throw new ApiError(0, "the server cannot be reached");
  }
  if (answer.ok) return;
  const { detail } = await answer.json().catch(() => ({}));
  const wait = answer.headers.get("Retry-After");
  const said = String(detail ?? `the server answered ${answer.status}`);
  throw new ApiError(answer.status, wait ? `${said}; try again in ${wait} s` : said);
}

export const askJson = async (path, options) => (await ask(path, options)).json();

/** One event, by id. */
export async function askEvent(id, options) {
  return readEvent(await (await ask(`/events/${id}`, options)).text());
}

/** Yield the lines of a text that is still arriving. */
export async function* lines(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    const parts = (rest + value).split("\n");
    rest = parts.pop();
    yield* parts.filter(Boolean);
  }
  if (rest) yield rest;
}

/** A query string of what is given. */
export function query(path, parameters) {
  const given = Object.entries(parameters).filter(([, value]) => value !== "" && value != null);
  return given.length ? `${path}?${new URLSearchParams(given)}` : path;
}

/** How far the server's clock is ahead of this one, in ms; 0 when they agree as well as can be seen here. */
export function clockAhead(answer) {
  const apart = Date.parse(answer.headers.get("Date")) - Date.now();
  // The header has whole seconds, and the answer was on its way for a while.
  return Math.abs(apart) > 3_000 ? apart : 0;
}

/** The address of the next page, or null. */
export function nextPage(answer) {
  return /<([^>]*)>;\s*rel="next"/.exec(answer.headers.get("Link") ?? "")?.[1] ?? null;
}
