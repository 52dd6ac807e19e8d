// Making elements. Text only ever becomes text: nothing in these files parses markup.

const SVG = "http://www.w3.org/2000/svg";

export const byId = (id) => document.getElementById(id);

/** el("li", {class: "row", "aria-label": "…"}, "text", child, …); an attribute that is false or null is left out. */
export function el(tag, attributes = {}, ...children) {
  return build(document.createElement(tag), attributes, children);
}

export function svg(tag, attributes = {}, ...children) {
  return build(document.createElementNS(SVG, tag), attributes, children);
}

function build(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== false && value != null) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children);
  return element;
}

/** A button that does something. */
export function button(label, action, attributes = {}) {
  const made = el("button", { type: "button", ...attributes }, label);
  made.addEventListener("click", action);
  return made;
}

/** A button that copies a text, and says for a moment that it did. */
export function copyButton(label, text, attributes = {}) {
  const made = button(label, copy, attributes);
  async function copy() {
    try {
      await navigator.clipboard.writeText(text);
      made.textContent = "Copied";
      announce("Copied");
    } catch {
      made.textContent = "Not copied";
      announce("This browser does not let the page copy");
    }
    setTimeout(() => (made.textContent = label), 2_000);
  }
  return made;
}

// Control, zero-width and direction characters can make one text look like another.
const INVISIBLE = /[\u0000-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]/g;

/** The text with invisible characters spelt out. */
export function visible(text, keep = "") {
  return text.replace(INVISIBLE, (character) =>
    keep.includes(character) ? character : `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`,
  );
}

export const number = (value) => value.toLocaleString("en");

/** How long ago a moment was: just now, 3 min ago, 5 h ago, 2 days ago. */
export function ago(moment) {
  const minutes = Math.floor((Date.now() - Date.parse(moment)) / 60_000);
  if (minutes < 1) return "just now";
  if (minutes < 60) return `${minutes} min ago`;
  if (minutes < 48 * 60) return `${Math.floor(minutes / 60)} h ago`;
  return `${Math.floor(minutes / (24 * 60))} days ago`;
}

/** The one place for short news, read out by screen readers. */
export function announce(text) {
  byId("news").textContent = text;
}
