// Keyboard shortcuts. Keys that a focused control needs for itself stay with it.

const TYPING = "input, select, textarea";
const OWN_SPACE = `${TYPING}, button, a, summary`;

export function listenForKeys({ pause, search, close, list }) {
  document.addEventListener("keydown", (press) => {
    if (press.ctrlKey || press.metaKey || press.altKey || press.defaultPrevented) return;
    if (document.querySelector("dialog[open]")) return;
    const target = press.target instanceof Element ? press.target : document.body;
    if (press.key === "Escape") {
      if (target.matches(TYPING)) target.blur();
      close();
    } else if (target.matches(TYPING)) {
      return;
    } else if (press.key === " " && !target.matches(OWN_SPACE)) {
      pause();
    } else if (press.key === "/") {
      search();
    } else if ((press.key === "ArrowDown" || press.key === "ArrowUp") && target === document.body) {
      list().focus();
    } else {
      return;
    }
    press.preventDefault();
  });
}
