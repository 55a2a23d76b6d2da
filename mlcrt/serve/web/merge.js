// Several tabs may write one conversation. What another tab stored is taken into this tab's copy before that is stored
// in its turn, so that no tab undoes what another did.

import { pathTo } from "./conversation.js";

const bases = new WeakMap(); // conversation → what of it was in the store when this tab last looked
const FINALITY = { streaming: 0, interrupted: 1 }; // of two versions of an answer the more final one counts
const finality = ({ state }) => FINALITY[state] ?? 2;

/** What `keepBase` takes once `conversation` is in the store as it is now. */
export function baseOf({ nodes, title, named, settings }) {
  return { nodes: nodes.map(({ id }) => id), title, named, settings: JSON.stringify(settings) };
}

export function keepBase(conversation, base) {
  if (base) bases.set(conversation, { ...base, nodes: new Set(base.nodes) });
}

/** The base as something JSON can hold, or null. */
export function givenBase(conversation) {
  const base = bases.get(conversation);
  return base ? { ...base, nodes: [...base.nodes] } : null;
}

/**
 * Change `mine` to hold also what came to `stored` since this tab last looked, and to lack what went. `running`: id of
 * the answer that this tab is receiving; that one and the branch that is shown stay as they are.
 */
export function take(mine, stored, running = null) {
  const base = bases.get(mine);
  const known = base?.nodes ?? new Set();
  const old = mine.nodes;
  const theirs = new Map(stored.nodes.map((node) => [node.id, node]));
  const parents = new Set(old.map(({ parent }) => parent));
  // Nothing is ever removed but answers without a word, by another try in their place.
  const goneThere = ({ id, content }) => known.has(id) && !theirs.has(id) && !content && !parents.has(id) && id !== running;
  mine.nodes = old.filter((node) => !goneThere(node));
  const own = new Map(mine.nodes.map((node) => [node.id, node]));
  const added = stored.nodes.filter(({ id }) => !own.has(id) && !known.has(id));
  const needed = new Set(added.map(({ parent }) => parent));
  for (const node of stored.nodes) {
    const here = own.get(node.id);
    if (here && node.id !== running && finality(node) > finality(here)) Object.assign(here, node);
    if (!here && (!known.has(node.id) || needed.has(node.id))) mine.nodes.push(node);
  }
  if (!running) follow(mine, stored.leaf, old);
  if (base && mine.title === base.title && mine.named === base.named) Object.assign(mine, { title: stored.title, named: stored.named });
  if (base && JSON.stringify(mine.settings) === base.settings) mine.settings = stored.settings;
  mine.updated = Math.max(mine.updated, stored.updated);
  keepBase(mine, baseOf(stored));
}

/** Show what another tab added below the end of the branch that is shown here, or in the place of what it removed. */
function follow(mine, leaf, old) {
  const ids = new Set(mine.nodes.map(({ id }) => id));
  const before = new Map(old.map((node) => [node.id, node.parent]));
  let end = mine.leaf;
  while (end && !ids.has(end)) end = before.get(end) ?? null;
  const goesOn = !end || pathTo(mine, leaf).some(({ id }) => id === end);
  mine.leaf = goesOn && ids.has(leaf) ? leaf : end;
}
