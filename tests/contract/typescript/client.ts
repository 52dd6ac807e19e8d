// Appends and reads with types that were generated from the server's document. Prints what it has read.
import createClient from "openapi-fetch";
import type { paths } from "./schema.js";

declare const process: { argv: string[] };

const client = createClient<paths>({ baseUrl: process.argv[2] });

const one = await client.POST("/events", { body: { kind: "other", source: "typescript", payload: { n: 1 } } });
if (!one.data) throw new Error(one.error.detail);

const many = await client.POST("/events/batch", { body: [{ kind: "flag_swapped", source: "typescript" }] });
if (!many.data) throw new Error(many.error.detail);

const event = await client.GET("/events/{event_id}", { params: { path: { event_id: String(one.data.event_id) } } });
if (event.data?.hash !== one.data.hash) throw new Error("another event was read");

const listed = await client.GET("/events", { params: { query: { source: "typescript" } } });
const kinds: string[] = (listed.data ?? []).map((found) => found.kind);

const refused = await client.POST("/events", { body: { kind: "other", source: "" } });
console.log(JSON.stringify({ kinds, refused: refused.error?.errors?.map((mistake) => mistake.field) }));
