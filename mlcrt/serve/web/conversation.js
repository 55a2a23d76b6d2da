// A conversation is a tree: editing a message or asking for another answer adds a branch beside the old one, and
// nothing that was said is lost. What is shown is the path from the root to `leaf`.
//
// conversation: {id, title, named, created, updated, settings, leaf, nodes: [node]}, times in milliseconds.
// node: {id, parent, role: "user" | "assistant", content, state, created, model, figures, reason}
//   state of an answer: "streaming", "done", "stopped", "interrupted" (the page or the connection went away) or "failed"
//   reason: the server's finish_reason, or what failed as a sentence.
//   figures: {prompt, completion, rate, first}: tokens, tokens, tokens/s, seconds to the first token.

import { newId } from "./dom.js";

const TITLE_LENGTH = 64;
const STATES = new Set(["done", "stopped", "interrupted", "failed"]);
export const EXPORT_FORMAT = "mlcrt-conversations";
const MAX_NODES = 20_000;

export function newConversation(settings) {
  const now = Date.now();
  return { id: newId(), title: "", named: false, created: now, updated: now, settings: { ...settings }, leaf: null, nodes: [] };
}

export function addNode(conversation, role, content, parent, more = {}) {
  const node = { id: newId(), parent, role, content, state: "done", created: Date.now(), ...more };
  conversation.nodes.push(node);
  conversation.leaf = node.id;
  conversation.updated = node.created;
  if (!conversation.named && role === "user" && parent === null) conversation.title = titleOf(content);
  return node;
}

export function titleOf(text) {
  const line = text.trim().replace(/\s+/g, " ");
  if (line.length <= TITLE_LENGTH) return line;
  const cut = line.slice(0, TITLE_LENGTH);
  const space = cut.lastIndexOf(" ");
  return `${space > TITLE_LENGTH / 2 ? cut.slice(0, space) : cut}…`;
}

export function nodeById(conversation, id) {
  return conversation.nodes.find((node) => node.id === id) ?? null;
}

/** Nodes from the first message to `id` (the leaf unless told). */
export function pathTo(conversation, id = conversation.leaf) {
  const known = new Map(conversation.nodes.map((node) => [node.id, node]));
  const path = [];
  for (let node = known.get(id); node && path.length <= known.size; node = known.get(node.parent)) path.unshift(node);
  return path;
}

/** The branches at a node, itself among them, oldest first. */
export function siblings(conversation, node) {
  return conversation.nodes.filter((other) => other.parent === node.parent);
}

/** Show the branch of `node`, down to what was added to it last. */
export function showBranch(conversation, node) {
  const below = new Set([node.id]); // parents come before their children in the list
  conversation.leaf = node.id;
  for (const other of conversation.nodes) {
    if (!below.has(other.parent)) continue;
    below.add(other.id);
    conversation.leaf = other.id;
  }
}

/**
 * What is sent: the system prompt and the path up to `node`. Answers without text are left out, and questions that then
 * follow each other are one: templates of many models refuse roles that do not take turns.
 */
export function messagesFor(conversation, node) {
  const messages = [];
  for (const { role, content } of pathTo(conversation, node.id)) {
    if (role === "assistant" && !content) continue;
    if (messages.at(-1)?.role === role) messages.at(-1).content += `\n\n${content}`;
    else messages.push({ role, content });
  }
  const system = (conversation.settings.system ?? "").trim();
  return system ? [{ role: "system", content: system }, ...messages] : messages;
}

/** Whether the title or any message holds all words; a passage around the first hit is given back, or null. */
export function findIn(conversation, query) {
  const wanted = query.toLowerCase().split(/\s+/).filter(Boolean);
  const texts = [conversation.title, ...conversation.nodes.map((node) => node.content)];
  for (const text of texts) {
    const lower = text.toLowerCase();
    if (!wanted.every((word) => lower.includes(word))) continue;
    const at = lower.indexOf(wanted[0] ?? "");
    const from = Math.max(0, at - 24);
    return (from ? "…" : "") + text.slice(from, at + 72).replace(/\s+/g, " ");
  }
  return null;
}

export function exportText(conversations) {
  return JSON.stringify({ format: EXPORT_FORMAT, version: 1, conversations }, null, 1);
}

/** Conversations of an exported file, checked and copied field by field. Throws an Error with a sentence. */
export function importText(text) {
  let data;
  try {
    data = JSON.parse(text);
  } catch {
    throw new Error("This file is not JSON; choose one that was exported here.");
  }
  if (data?.format !== EXPORT_FORMAT || !Array.isArray(data.conversations)) {
    throw new Error("This file holds no conversations of this page; choose one that was exported here.");
  }
  if (data.version !== 1) throw new Error(`This file has version ${String(data.version).slice(0, 16)}; this page reads version 1.`);
  return data.conversations.map(readConversation);
}

function readConversation(data, index) {
  const bad = (what) => new Error(`Conversation ${index + 1} of the file is damaged: ${what}. Nothing was imported.`);
  if (!data || typeof data.id !== "string" || !/^[\w-]{1,64}$/.test(data.id)) throw bad("it has no id");
  if (!Array.isArray(data.nodes) || data.nodes.length > MAX_NODES) throw bad("it has no list of messages");
  const seen = new Set();
  const nodes = data.nodes.map((node) => {
    const known = node && typeof node.id === "string" && /^[\w-]{1,64}$/.test(node.id) && !seen.has(node.id);
    if (!known || typeof node.content !== "string" || !["user", "assistant"].includes(node.role)) throw bad("a message lacks its text or role");
    if (node.parent !== null && !seen.has(node.parent)) throw bad("a message hangs on none before it");
    seen.add(node.id);
    const { id, parent, role, content } = node;
    const out = { id, parent, role, content, state: STATES.has(node.state) ? node.state : "interrupted", created: time(node.created) };
    if (typeof node.model === "string") out.model = node.model.slice(0, 200);
    if (typeof node.reason === "string") out.reason = node.reason.slice(0, 500);
    if (node.figures && typeof node.figures === "object") out.figures = readFigures(node.figures);
    return out;
  });
  const leaf = seen.has(data.leaf) ? data.leaf : nodes.at(-1)?.id ?? null;
  const title = typeof data.title === "string" ? data.title.slice(0, 200) : "";
  const settings = readSettings(data.settings);
  return { id: data.id, title, named: data.named === true, created: time(data.created), updated: time(data.updated), settings, leaf, nodes };
}

const time = (value) => (Number.isFinite(value) && value > 0 ? value : Date.now());

function readFigures(data) {
  const out = {};
  for (const name of ["prompt", "completion", "rate", "first"]) if (Number.isFinite(data[name])) out[name] = data[name];
  return out;
}

/** Settings that have one of the known names and a plausible kind; the rest is left out. */
export function readSettings(data) {
  const out = {};
  if (!data || typeof data !== "object") return out;
  for (const name of Object.keys(LIMITS)) if (Number.isFinite(data[name]) && !problem(name, data[name])) out[name] = data[name];
  for (const name of ["system", "model"]) if (typeof data[name] === "string") out[name] = data[name].slice(0, 100_000);
  return out;
}

/** What the sampling panel knows: bounds (inclusive), step, whether whole numbers only. A blank leaves it to the server. */
export const LIMITS = {
  temperature: { label: "Temperature", min: 0, max: 2, step: 0.05, hint: "0 always takes the likeliest token" },
  top_p: { label: "Top p", min: 0, max: 1, step: 0.01, above: true, hint: "share of the probability to choose from" },
  top_k: { label: "Top k", min: 0, max: 1000, step: 1, whole: true, hint: "tokens to choose from; 0 for all" },
  min_p: { label: "Min p", min: 0, max: 1, step: 0.01, hint: "least share of the likeliest token's probability" },
  repetition_penalty: { label: "Repetition penalty", min: 0, max: 2, step: 0.01, above: true, hint: "1 leaves repetition alone" },
  max_tokens: { label: "Longest answer", min: 1, max: 1_000_000, step: 1, whole: true, hint: "tokens" },
  seed: { label: "Seed", min: 0, max: 2_147_483_647, step: 1, whole: true, hint: "the same seed gives the same answer" },
};

/** What is wrong with a value of a setting, as a sentence, or an empty string. */
export function problem(name, value) {
  const { label, min, max, whole, above } = LIMITS[name];
  if (!Number.isFinite(value)) return `${label} must be a number.`;
  if (whole && !Number.isInteger(value)) return `${label} must be a whole number.`;
  if (value < min || value > max || (above && value === min)) {
    return `${label} must be ${above ? `above ${min} and at most ${max}` : `between ${min} and ${max}`}.`;
  }
  return "";
}
