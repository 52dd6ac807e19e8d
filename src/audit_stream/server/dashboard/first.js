// What an empty chain shows: how to post its first event, with this page's own address.

import { copyButton, el } from "./dom.js";

const EVENT = { kind: "decision_card_drafted", source: "my-service", payload: { decision_id: "DEC-001" } };

/** The ways to post an event to `origin`; `token`: appending takes one. */
export function ways(origin, { token }) {
  const bearer = token ? ` -H "Authorization: Bearer $AUDIT_STREAM_TOKEN"` : "";
  return {
    curl: `curl ${origin}/events -H 'Content-Type: application/json'${bearer} -d '${JSON.stringify(EVENT)}'`,
    Python: [
      "from audit_stream.client import AuditClient",
      "",
      `with AuditClient("${origin}") as client:${token ? "  # reads AUDIT_STREAM_TOKEN" : ""}`,
      `    client.append("${EVENT.kind}", "${EVENT.source}", ${JSON.stringify(EVENT.payload)})`,
    ].join("\n"),
  };
}

export function firstEvent({ token }) {
  const given = token ? " AUDIT_STREAM_TOKEN holds a token with the scope append." : "";
  return [
    el("h3", {}, "This chain is empty. Post its first event, and it appears here."),
    el("p", {}, `The kinds are those of the filter above.${given}`),
    ...Object.entries(ways(location.origin, { token })).map(([name, text]) =>
      el(
        "section",
        { class: "way", "aria-label": name },
        el("h4", {}, name),
        copyButton("Copy", text, { "aria-label": `Copy the ${name} lines` }),
        el("pre", { tabindex: "0", role: "region", "aria-label": `${name} lines` }, text),
      ),
    ),
  ];
}
