// Events as the server writes them. JSON.parse would lose the forms of numbers (1.0, 1e22, long integers), and
// with them the hash; so the payload's text is cut out as it stands.

// The order of the fields is fixed, and the two ends of an event have a fixed form: what lies between them is
// the payload, whatever it holds.
const STRING = String.raw`"(?:[^"\\]|\\.)*"`;
const FRONT = new RegExp(
  String.raw`^\{"event_id":(\d+),"timestamp":(${STRING}),"kind":(${STRING}),"source":(${STRING}),"payload":`,
);
const BACK = /,"prev_hash":"([0-9a-f]{64})","hash":"([0-9a-f]{64})"\}$/;

/** Read one event from its text. Throws SyntaxError for what is not an event. */
export function readEvent(text) {
  const front = FRONT.exec(text);
  const back = BACK.exec(text.slice(-200)); // 164 characters long
  if (!front || !back) throw new SyntaxError(`not an event: ${text.slice(0, 80)}`);
  return {
    id: Number(front[1]),
    timestamp: JSON.parse(front[2]),
    kind: JSON.parse(front[3]),
    source: JSON.parse(front[4]),
    payload: text.slice(front[0].length, text.length - back[0].length),
    prev: back[1],
    hash: back[2],
    text,
  };
}

const COMMITTED = /,"committed_at":"([^"]*)"\}$/;

/** Read NDJSON with `committed_at`: the events, each with `committed`, its commit in ms, NaN where the server does not know. */
export function readCommitted(text) {
  return text.split("\n").filter(Boolean).map((line) => {
    const beside = COMMITTED.exec(line.slice(-100));
    if (!beside) return { ...readEvent(line), committed: NaN };
    // What lies beside the event is not of its text: neither hashed nor downloaded.
    return { ...readEvent(`${line.slice(0, -beside[0].length)}}`), committed: Date.parse(beside[1]) };
  });
}

/** Read NDJSON: one event a line. */
export function readEvents(text) {
  return text.split("\n").filter(Boolean).map(readEvent);
}

const TOKEN = /"(?:[^"\\]|\\.)*"|[{}[\],:]|[^\s{}[\],:"]+/g;
const OPENS = "{[";
const CLOSES = "}]";

/** Lay a canonical JSON text out for reading. Numbers keep their form; escaped letters are shown as letters. */
export function layOut(text) {
  const out = [];
  let depth = 0;
  let before = "";
  for (const [token] of text.matchAll(TOKEN)) {
    if (CLOSES.includes(token)) {
      depth -= 1;
      if (!OPENS.includes(before)) out.push(newLine(depth));
    } else if (before && OPENS.includes(before)) {
      out.push(newLine(depth));
    }
    out.push(token.startsWith('"') ? JSON.stringify(JSON.parse(token)) : token);
    if (OPENS.includes(token)) depth += 1;
    if (token === ",") out.push(newLine(depth));
    if (token === ":") out.push(" ");
    before = token;
  }
  return out.join("");
}

const newLine = (depth) => `\n${"  ".repeat(depth)}`;
