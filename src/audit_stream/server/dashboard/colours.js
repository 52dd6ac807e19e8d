// Which kind has which colour, in the chart, its legend and the lists.

export const SLOTS = [0, 1, 2, 3, 4, 5];
export const REST = "rest";

const slots = new Map();

/** The colour of a kind. A kind that is new takes a free one; without a free one it is one of the rest. */
export function slotOf(kind) {
  if (!slots.has(kind)) {
    const free = freeSlot();
    if (free === undefined) return REST;
    slots.set(kind, free);
  }
  return slots.get(kind);
}

/** Give these kinds, at most as many as there are colours, one each. Return whether another kind lost its own. */
export function lead(kinds) {
  let taken = false;
  for (const kind of kinds) {
    if (slots.has(kind)) continue;
    let slot = freeSlot();
    if (slot === undefined) {
      const loser = [...slots.keys()].find((other) => !kinds.includes(other));
      slot = slots.get(loser);
      slots.delete(loser);
      taken = true;
    }
    slots.set(kind, slot);
  }
  return taken;
}

function freeSlot() {
  const used = new Set(slots.values());
  return SLOTS.find((slot) => !used.has(slot));
}
