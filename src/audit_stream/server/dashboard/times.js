// Moments as text: in the zone of this browser, or in UTC. One choice holds for the whole page, and is remembered.

const REMEMBERED = "audit-stream.zone";
const LOCAL = Intl.DateTimeFormat().resolvedOptions().timeZone ?? "local";
const listeners = [];
let utc = remembered() === "UTC";

/** "UTC", or the name of the browser's zone. */
export const zoneName = () => (utc ? "UTC" : LOCAL);

/** `action()` runs after each change of the zone. */
export const onZone = (action) => listeners.push(action);

/** Let a <select> choose the zone. */
export function chosenWith(select) {
  select.options[0].textContent = LOCAL === "UTC" ? "this browser's (UTC)" : LOCAL;
  select.value = utc ? "utc" : "local";
  select.addEventListener("change", () => {
    const chosen = select.value === "utc";
    if (chosen === utc) return;
    utc = chosen;
    remember(zoneName());
    for (const action of listeners) action();
  });
}

/** The time of day: 13:42:11, or 13:42:11 UTC. */
export const clock = (moment) => `${wall(moment).slice(11, 19)}${utc ? " UTC" : ""}`;

/** The time of day; with the date when that is not today. What is not a date-time stays as it is. */
export function inShort(text) {
  const moment = new Date(text);
  if (Number.isNaN(moment.getTime())) return text.slice(0, 19);
  const [day, time] = wall(moment).split("T");
  const today = wall(new Date()).slice(0, 10);
  return day === today ? time.slice(0, 8) : `${day} ${time.slice(0, 8)}`;
}

/** 2026-11-20 13:42:11.123 UTC+01:00: the offset is that of the moment, so that summer and winter differ. */
export function inFull(text) {
  const moment = new Date(text);
  if (Number.isNaN(moment.getTime())) return text;
  return `${wall(moment).replace("T", " ")} UTC${offset(moment)}`;
}

/** Read the value of a datetime-local input. */
export const fromInput = (value) => new Date(utc ? `${value}Z` : value);

/** Write the value of a datetime-local input, which was meant in the other zone, for this one: the moment stays. */
export const rezoned = (value) => value && wall(new Date(utc ? value : `${value}Z`)).slice(0, 19);

/** What a clock on the wall of the zone shows, in the form of ISO 8601 and without an offset. */
function wall(moment) {
  const shift = utc ? 0 : moment.getTimezoneOffset() * 60_000;
  return new Date(moment.getTime() - shift).toISOString().slice(0, -1);
}

function offset(moment) {
  const minutes = utc ? 0 : -moment.getTimezoneOffset();
  if (minutes === 0) return "";
  const two = (value) => String(Math.floor(value)).padStart(2, "0");
  return `${minutes < 0 ? "-" : "+"}${two(Math.abs(minutes) / 60)}:${two(Math.abs(minutes) % 60)}`;
}

// A browser may keep nothing for a page; then the choice holds until the page is closed.
function remembered() {
  try {
    return localStorage.getItem(REMEMBERED);
  } catch {
    return null;
  }
}

function remember(name) {
  try {
    localStorage.setItem(REMEMBERED, name === "UTC" ? "UTC" : "local");
  } catch {
    return;
  }
}
