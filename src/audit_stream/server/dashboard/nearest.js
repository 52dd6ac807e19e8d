// What to say when a filter finds nothing: a source has to match exactly, and often another one was meant.

import { button, el, number, visible } from "./dom.js";

const OFFERED = 5;

/** Of the sources that are known, those that may have been meant, the likeliest first. */
export function nearest(wanted, known) {
  const text = wanted.trim().toLowerCase();
  const ranked = [...known].map((source) => [distance(text, source.toLowerCase()), source]);
  return ranked
    .filter(([far]) => far < 1)
    .sort(([a, one], [b, other]) => a - b || one.localeCompare(other))
    .slice(0, OFFERED)
    .map(([, source]) => source);
}

/** 0 for the same text, below 0.5 when one holds the other, from 1 on when they have little in common. */
function distance(wanted, source) {
  if (!wanted || wanted === source) return 0;
  const longer = Math.max(wanted.length, source.length);
  if (source.includes(wanted) || wanted.includes(source)) return 0.5 - (0.5 * Math.min(wanted.length, source.length)) / longer;
  const typos = edits(wanted.slice(0, 64), source.slice(0, 64));
  return typos <= longer / 3 ? 0.5 + typos / longer : 1;
}

/** How many letters have to be put in, taken out or exchanged (Levenshtein). */
function edits(from, to) {
  let row = Array.from({ length: to.length + 1 }, (_, place) => place);
  for (const [line, letter] of [...from].entries()) {
    const next = [line + 1];
    for (let place = 0; place < to.length; place += 1) {
      next.push(Math.min(row[place] + (letter === to[place] ? 0 : 1), row[place + 1] + 1, next[place] + 1));
    }
    row = next;
  }
  return row[to.length];
}

/** What to show in place of an empty list. `choose(source)` takes another source instead. */
export function nothingFound(source, known, choose) {
  if (!source) return [el("p", {}, "No event matches these filters.")];
  if (known.has(source)) return [el("p", {}, `No event of the source “${visible(source)}” matches these filters.`)];
  const near = nearest(source, known);
  const seen = `${number(known.size)} ${known.size === 1 ? "source" : "sources"} that this page has seen`;
  if (!near.length) return [el("p", {}, `No event matches. A source has to match exactly; none of the ${seen} is like “${visible(source)}”.`)];
  return [
    el("p", {}, `No event matches: a source has to match exactly, and “${visible(source)}” is none of the ${seen}. These are like it:`),
    el("p", { class: "choices" }, ...near.map((name) => button(visible(name), () => choose(name)))),
  ];
}
