// Wiring: which part tells which.

import { ask, askJson, clockAhead, NDJSON, nextPage } from "./api.js";
import { Away } from "./away.js";
import { Chain } from "./chain.js";
import { Chart } from "./chart.js";
import { Detail } from "./detail.js";
import { byId, el } from "./dom.js";
import { downloadsAll, saveEvents } from "./download.js";
import { firstEvent } from "./first.js";
import { listenForKeys } from "./keys.js";
import { EventList } from "./list.js";
import { Live } from "./live.js";
import { loggedIn, showLogin, takesToken } from "./login.js";
import { Search } from "./search.js";
import { Status } from "./status.js";
import { Tail } from "./tail.js";
import { chosenWith, onZone, zoneName } from "./times.js";
import { Verify } from "./verify.js";
import { readCommitted } from "./wire.js";

const FIRST = 1000;
const SOURCES_OFFERED = 100;
const SOURCES_KNOWN = 5_000;

const detail = new Detail((id) => Object.values(lists).forEach((list) => list.select(id)));
const callbacks = {
  open: (event) => detail.open(event),
  moved: (event) => detail.isOpen && detail.open(event, { focus: false }),
};
const lists = {
  live: new EventList("live", callbacks),
  search: new EventList("search", callbacks),
};
const chart = new Chart({
  recoloured: () => Object.values(lists).forEach((list) => list.render()),
  stalled: countMissed,
});
const sources = new Set();
const live = new Live(lists.live, { sources, guide: () => firstEvent({ token: takesToken() }) });
const search = new Search(lists.search, { sources });
let view = "live";

const tail = new Tail({
  onEvent(event) {
    chart.add(event);
    take(event);
    live.add(event);
    status.head(event.id, event.hash);
  },
  onState: say,
  onGap: (text) => alarm(`${text} Press Verify.`),
  onOther(text) {
    byId("other-text").textContent = text;
    byId("other").hidden = false;
  },
});
const away = new Away();
const verify = new Verify({ seen: () => tail.last, open: (event) => detail.open(event), ended: () => status.ask() });
const chain = new Chain({
  onBreak(at, reason) {
    Object.values(lists).forEach((list) => list.mark(at));
    detail.mark(at, reason);
  },
  show: (at, reason) => verify.showBreak(at, reason),
});
const status = new Status({
  seen: () => tail.last,
  onStats: watch,
  onVerdict: (last) => chain.told(last),
  onSilence: () => isLive() && tail.reopen(),
});
byId("other-reload").addEventListener("click", () => location.reload());

byId("live-download").addEventListener("click", () => saveEvents(live.selection, "live.ndjson"));
downloadsAll(byId("search-download"), () => search.filter(), (text) => (byId("search-count").textContent = text));
byId("tab-live").addEventListener("click", () => turnTo("live"));
byId("tab-search").addEventListener("click", () => turnTo("search"));
byId("tabs").addEventListener("keydown", (press) => {
  if (press.key !== "ArrowLeft" && press.key !== "ArrowRight") return;
  turnTo(view === "live" ? "search" : "live");
  byId(`tab-${view}`).focus();
});
document.addEventListener("login-needed", showLogin);
chosenWith(byId("zone"));
onZone(nameZone);
nameZone();
listenForKeys({
  pause: () => live.toggle(),
  close: () => detail.close(),
  list: () => lists[view],
  search() {
    turnTo("search");
    byId("search-source").focus();
  },
});
begin();

async function begin() {
  try {
    if (!(await loggedIn())) return say("stopped", "Log in to follow");
    offerKinds((await askJson("/")).kinds);
    const events = await newest();
    for (const event of events) {
      take(event);
      live.add(event);
    }
    const last = events.at(-1) ?? (await head());
    if (last.id === 0) live.isEmpty();
    tail.start(last);
  } catch (error) {
    if (error.status === 401) return say("stopped", "Log in to follow");
    say("reconnecting", `Not connected: ${error.message}`);
    setTimeout(begin, 2000);
  }
}

/** The newest events; the chart starts anew from them. */
async function newest() {
  let events = [];
  let from = {};
  try {
    const answer = await ask(`/events?limit=${FIRST}&committed=true`, { accept: NDJSON });
    events = readCommitted(await answer.text());
    from = { whole: nextPage(answer) === null, ahead: clockAhead(answer) };
  } catch (error) {
    if (error.status !== 409) throw error;
    alarm(`The newest events cannot be shown: ${error.message}. Press Verify.`);
  }
  chart.load(events, from);
  return events;
}

/** Count what the chart missed while it stood still, at the times of the commits; if that is too much, start anew. */
async function countMissed() {
  try {
    const answer = await ask(`/events?after=${chart.last}&limit=${FIRST}&committed=true`, { accept: NDJSON });
    if (nextPage(answer) !== null) return void (await newest());
    chart.load(readCommitted(await answer.text()), { goesOn: true, ahead: clockAhead(answer) });
  } catch {
    // The tail says what the matter is; the chart says from when on it counts.
    chart.load([], {});
  }
}

async function head() {
  const { last_event_id: id } = await askJson("/stats");
  return { id, hash: null };
}

function take({ source }) {
  if (sources.has(source) || sources.size >= SOURCES_KNOWN) return;
  sources.add(source);
  if (sources.size <= SOURCES_OFFERED) byId("sources").append(el("option", { value: source }));
}

function offerKinds(kinds) {
  for (const select of [byId("live-kind"), byId("search-kind")]) {
    select.replaceChildren(el("option", { value: "" }, "all kinds"), ...kinds.map((kind) => el("option", { value: kind }, kind)));
  }
}

// A connection can die without a word, and then looks like a quiet chain. What the server answers on another one
// shows the difference: a head that the tail does not reach, or nothing either.
let stoodAt = -1;
function watch(stats, before) {
  tail.headWas({ id: stats.last_event_id, hash: stats.latest_hash }, before);
  const behind = isLive() && stats.last_event_id > tail.last.id;
  if (behind && stoodAt === tail.last.id) tail.reopen();
  stoodAt = behind ? tail.last.id : -1;
}

const isLive = () => byId("connection").dataset.state === "live";

function say(state, text) {
  byId("connection").dataset.state = state;
  byId("connection").textContent = text;
  if (state === "live") {
    if (away.isLost) countMissed();
    away.live();
  } else if (tail.wasLive) {
    away.lost({ soon: state === "reconnecting" });
    chart.stop();
  }
}

function nameZone() {
  for (const head of document.querySelectorAll(".head .time")) {
    head.textContent = `Happened, ${zoneName()}`;
    head.title = "The time that the producer gave the event, as the zone above has it";
  }
  for (const zone of document.querySelectorAll("#search-form .zone")) zone.textContent = zoneName();
}

function alarm(text) {
  byId("alarm").textContent = text;
  byId("alarm").hidden = false;
}

function turnTo(name) {
  view = name;
  for (const each of ["live", "search"]) {
    byId(`tab-${each}`).setAttribute("aria-selected", each === name);
    byId(`tab-${each}`).tabIndex = each === name ? 0 : -1;
    byId(`view-${each}`).hidden = each !== name;
  }
}
