// Logging in: the page asks for a token once, the server keeps it in a cookie that no script can read.

import { ApiError, askJson, tell } from "./api.js";
import { byId } from "./dom.js";

const form = byId("login-form");
const failure = byId("login-error");
let wasLoggedIn = false;
let tokens = false;

/** Whether this server takes no event without a token. */
export const takesToken = () => tokens;

/** Whether there is anything to be asked for yet; if not, the login is on the page. */
export async function loggedIn() {
  const { needed, name } = await askJson("/dashboard/login");
  byId("logout").hidden = name === null;
  byId("logout").title = name === null ? "" : `Logged in with the token ${name}`;
  tokens = needed;
  wasLoggedIn = !needed || name !== null;
  if (!wasLoggedIn) showLogin();
  return wasLoggedIn;
}

/** Ask for a token. Whoever is just typing one is left alone. */
export function showLogin() {
  if (byId("login").open) return;
  say(wasLoggedIn ? "What you were logged in with holds no longer." : "");
  byId("login").showModal();
}

function say(text) {
  failure.textContent = text;
  failure.hidden = !text;
}

// There is nothing behind it to go back to. A browser closes it all the same when Escape is pressed often enough.
byId("login").addEventListener("cancel", (cancel) => cancel.preventDefault());
byId("login").addEventListener("close", () => byId("login").showModal());

form.addEventListener("submit", async (submit) => {
  submit.preventDefault();
  const button = form.querySelector("button");
  button.disabled = true;
  say("");
  try {
    await tell("/dashboard/login", { token: byId("login-token").value.trim() });
    // From the start, as whoever this is: nothing of another reader's stays on the page.
    location.reload();
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    say(error.message);
    byId("login-token").select();
  } finally {
    button.disabled = false;
  }
});

byId("logout").addEventListener("click", async () => {
  await tell("/dashboard/logout", {});
  location.reload();
});
