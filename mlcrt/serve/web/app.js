// The page: puts storage, server, transcript, list and settings together.
import { byId, button, download, el, fit, icon } from "./dom.js";
import { askKey } from "./dialogs.js";
import { showHead } from "./head.js";
import { key, models, remembered } from "./api.js";
import {
  addNode, exportText, importText, newConversation, nodeById, pathTo, readSettings, showBranch,
} from "./conversation.js";
import { Panels } from "./panels.js";
import { Run } from "./run.js";
import { Settings } from "./settings.js";
import { Sidebar } from "./sidebar.js";
import { Speech } from "./speech.js";
import { STALE_MS, Store, session } from "./store.js";
import { Turns } from "./turns.js";

const DRAW_MS = 40; // between two drawings of a growing answer
const KEEP_MS = 200; // between two writings of it to storage

const defaults = () => newConversation(readSettings(remembered.get("settings")));
const state = { conversations: [], current: defaults(), models: [], runs: new Map(), drawing: null, keptAt: 0, leaving: false };
const prompt = byId("prompt");
const speech = new Speech(byId("spoken"), byId("said"));
const store = new Store(changedElsewhere, (id) => state.runs.get(id)?.node.id ?? null), panels = new Panels();
const coarse = () => window.matchMedia("(pointer: coarse)").matches && !window.matchMedia("(any-pointer: fine)").matches;
const runOf = (conversation) => state.runs.get(conversation.id) ?? null;
const conversationOf = (id) => state.conversations.find((conversation) => conversation.id === id);
/** The chosen model while it is served, else the first that is. */
const modelName = ({ settings: { model } } = state.current) =>
  state.models.some(({ id }) => id === model) || (model && !state.models.length) ? model : (state.models[0]?.id ?? "");

const turns = new Turns({
  list: byId("turns"),
  scroller: byId("scroller"),
  jump: byId("jump"),
  actions: { edit, regenerate, retry, branch, coarse, say: (text) => speech.say(text), showKey: (node) => askKey(() => retry(node)) },
});
const sidebar = new Sidebar({ list: byId("list"), search: byId("search"), actions: { open: pick, rename, delete: remove } });
const settings = new Settings((chosen) => {
  state.current.settings = chosen;
  remembered.set("settings", chosen);
  if (state.current.nodes.length) save(state.current);
  drawHead();
});

// ---- drawing -------------------------------------------------------------------------------------------------------

function draw() {
  const { current } = state;
  const path = pathTo(current);
  byId("empty").hidden = path.length > 0;
  turns.show(current, path, runOf(current));
  drawHead();
  drawList();
}

function drawList() {
  const shown = state.conversations.filter((conversation) => conversation.nodes.length);
  sidebar.show(shown.sort((a, b) => b.updated - a.updated), state.current.id);
}

function drawHead() {
  const name = modelName();
  const context = state.models.find(({ id }) => id === name)?.context ?? null;
  showHead(state.current, { model: name, context, busy: Boolean(runOf(state.current)) });
}

/** A sentence above the message box, with buttons; the next one replaces it. */
function notice(text, ...buttons) {
  const close = button("Dismiss", () => byId("notice").replaceChildren());
  byId("notice").replaceChildren(...(text ? [el("p", { text }), el("div", { class: "row" }, ...buttons, close)] : []));
}

// ---- conversations -------------------------------------------------------------------------------------------------

/** What is changed is kept when this returns; the promise tells, when IndexedDB has it or not, which of both. */
function save(conversation) {
  if (!state.conversations.includes(conversation)) state.conversations.unshift(conversation);
  return stored(store.put(conversation), "could not store this conversation");
}

const stored = (change, failure) =>
  change.then(() => true).catch(() => {
    notice(`The browser ${failure}: its storage is full or blocked. Export what you want to keep.`);
    return false;
  });

function startNew() {
  show(defaults());
  prompt.focus();
}

function show(conversation) {
  if (state.current !== conversation) speech.begin();
  state.current = conversation;
  const hash = conversation.nodes.length ? `#${conversation.id}` : "";
  if (location.hash !== hash) history.pushState(null, "", location.pathname + hash);
  settings.show(conversation.settings);
  turns.following = true;
  draw();
  turns.toEnd();
  const run = runOf(conversation);
  if (run) speech.at = run.node.content.length;
}

function pick(id) {
  const found = conversationOf(id);
  if (found) show(found);
  panels.closeDrawer();
}

function rename(id, title) {
  const conversation = conversationOf(id);
  if (!conversation) return; // deleted in another tab meanwhile
  conversation.title = title;
  conversation.named = true;
  save(conversation);
  drawHead();
  drawList();
}

function remove(id) {
  const conversation = conversationOf(id);
  if (!conversation) return;
  runOf(conversation)?.stop();
  state.conversations = state.conversations.filter((other) => other !== conversation);
  if (state.current === conversation) {
    history.replaceState(null, "", location.pathname);
    show(newConversation(conversation.settings));
  } else drawList();
  notice(`“${conversation.title || "Untitled"}” was deleted.`, button("Undo", () => {
    notice("");
    save(conversation);
    show(conversation);
    prompt.focus();
  }));
  stored(store.delete(id), "could not delete this conversation");
}

/** Another tab changed a conversation: what is new comes into this tab's copy, whatever goes on with that here. */
async function changedElsewhere(id) {
  await started;
  const fresh = await store.get(id).catch(() => undefined);
  if (fresh === undefined) return; // the browser does not say
  const mine = conversationOf(id) ?? (state.current.id === id ? state.current : null);
  state.conversations = state.conversations.filter((other) => other.id !== id);
  if (!fresh) {
    if (mine) runOf(mine)?.stop();
    return drawList();
  }
  if (mine) store.take(mine, fresh);
  state.conversations.unshift(mine ?? fresh);
  if (mine !== state.current) return drawList();
  if (!byId("settings-form").contains(document.activeElement)) settings.show(mine.settings);
  draw();
}

// ---- answers -------------------------------------------------------------------------------------------------------

function send() {
  const text = prompt.value.trim();
  const { current } = state;
  if (!text || runOf(current)) return;
  if (!state.started) return started.then(send); // which conversation it belongs to shows then
  prompt.value = "";
  keepPrompt();
  fit(prompt);
  answer(current, addNode(current, "user", text, current.leaf));
}

function edit(node, text) {
  runOf(state.current)?.stop();
  answer(state.current, addNode(state.current, "user", text, node.parent));
}

function regenerate(node) {
  runOf(state.current)?.stop();
  answer(state.current, nodeById(state.current, node.parent));
}

/** Another try at an answer that failed; one that holds text stays beside the new one. */
function retry(node) {
  const { current } = state;
  if (!current.nodes.includes(node)) return; // another one was opened behind the dialog that asks for a key
  runOf(current)?.stop();
  if (!node.content) current.nodes = current.nodes.filter((other) => other !== node);
  answer(current, nodeById(current, node.parent));
}

function branch(node) {
  showBranch(state.current, node);
  save(state.current);
  draw();
  speech.say("Other version shown.");
}

async function answer(conversation, question) {
  const node = addNode(conversation, "assistant", "", question.id, { state: "streaming", model: modelName(conversation) });
  const run = new Run({ conversation, node, settings: { ...conversation.settings }, onChange: progressed });
  state.runs.set(conversation.id, run);
  notice("");
  speech.begin();
  turns.following = true;
  save(conversation);
  if (conversation === state.current) {
    history.replaceState(null, "", `${location.pathname}#${conversation.id}`);
    draw();
    turns.toEnd();
    (coarse() ? byId("stop") : prompt).focus(); // on a phone the keyboard makes room for the answer
  }
  if (!modelName(conversation)) await lookForModels(true, run.controller.signal);
  run.settings.model = modelName(conversation);
  await run.go();
  // keepAnswers wrote down what came and recover() says why it ends, unless the browser's cache brings the page back.
  if (state.leaving) await new Promise((resolve) => window.addEventListener("pageshow", resolve, { once: true }));
  const replaced = runOf(conversation) !== run; // by an edit or another try while it ran
  if (!replaced) state.runs.delete(conversation.id);
  conversation.updated = Date.now();
  if (state.conversations.includes(conversation)) save(conversation).then(() => keepAnswers());
  else keepAnswers();
  if (conversation !== state.current || replaced) return;
  draw();
  speech.progress(node.content, true);
  speech.say(run.ending);
  if (run.error?.kind === "key") askKey(() => retry(node), run.error.message);
}

function progressed(run) {
  if (Date.now() - state.keptAt >= KEEP_MS) keepAnswers(); // timers of a tab in the background may come once a minute
  if (run.conversation !== state.current || state.drawing) return;
  state.drawing = setTimeout(() => {
    state.drawing = null;
    const now = runOf(state.current); // maybe not the one that asked for this
    if (!now) return;
    turns.refresh(state.current, now);
    speech.progress(now.node.content);
  }, DRAW_MS);
}

function stop() {
  runOf(state.current)?.stop();
  prompt.focus();
}

function keepAnswers(leaving = state.leaving) {
  const now = ({ conversation, node }) => ({ conversation: conversation.id, node: node.id, content: node.content });
  state.keptAt = Date.now();
  store.keepLive([...state.runs.values()].map(now), leaving);
}

/** Take in what tabs that are gone had received or changed; asked again later while some may be gone or not. */
async function recover() {
  const { ids, unsure } = await store.recover();
  if (unsure) setTimeout(recover, STALE_MS + 1000);
  if (state.started) for (const id of ids) changedElsewhere(id);
}

// ---- server --------------------------------------------------------------------------------------------------------

/** `quiet`: a request follows that will say what is wrong. */
async function lookForModels(quiet = false, signal = undefined) {
  try {
    state.models = await models(signal);
    settings.models(state.models, state.current.settings.model);
    byId("change-key").hidden = !key.get();
    drawHead();
  } catch (error) {
    if (quiet) return;
    if (error.kind === "key") askKey(() => lookForModels(), error.message);
    else notice(error.message, button("Try again", () => {
      notice("");
      lookForModels();
    }));
  }
}

// ---- files ---------------------------------------------------------------------------------------------------------

function exportAll() {
  const kept = state.conversations.filter((conversation) => conversation.nodes.length);
  download(`mlcrt-conversations-${new Date().toISOString().slice(0, 10)}.json`, exportText(kept), "application/json");
  speech.say(`${kept.length} conversations exported.`);
}

async function importFile(file) {
  await started;
  let found;
  try {
    found = importText(await file.text());
  } catch (error) {
    return notice(error.message);
  }
  let skipped = 0;
  const kept = [];
  for (const conversation of found) {
    const known = conversationOf(conversation.id);
    if (state.runs.has(conversation.id) || (known && known.updated >= conversation.updated)) skipped += 1;
    else {
      if (known) state.conversations.splice(state.conversations.indexOf(known), 1);
      if (state.current.id === conversation.id) state.current = conversation;
      kept.push(save(conversation));
    }
  }
  draw();
  if ((await Promise.all(kept)).includes(false)) return; // that was said
  const taken = found.length - skipped;
  notice(`${taken} ${taken === 1 ? "conversation was" : "conversations were"} imported${skipped ? `, ${skipped} were here already` : ""}.`);
}

// ---- message box and keys ------------------------------------------------------------------------------------------

const keepPrompt = () => session.set("mlcrt.prompt", prompt.value || null);

prompt.addEventListener("input", () => {
  keepPrompt();
  fit(prompt);
});
prompt.addEventListener("keydown", (event) => {
  if (event.isComposing || event.keyCode === 229) return; // 229: Safari's Enter that ends a composition
  if (event.key === "Enter" && !event.shiftKey && !coarse()) {
    event.preventDefault();
    send();
  } else if (event.key === "ArrowUp" && !prompt.value && !runOf(state.current) && state.current.nodes.length) {
    event.preventDefault();
    turns.focusEdit();
  }
});

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !document.querySelector("dialog[open]")) {
    if (panels.drawer) panels.closeDrawer();
    else if (runOf(state.current)) stop();
    else if (!panels.closeTop()) prompt.focus();
    return;
  }
  if (!(event.ctrlKey || event.metaKey) || event.altKey) return;
  const name = `${event.shiftKey ? "shift " : ""}${event.key.toLowerCase()}`;
  const action = { "shift o": startNew, k: () => panels.search(), ".": () => panels.toggle("settings"), "/": () => byId("help").showModal() }[name];
  if (!action) return;
  event.preventDefault();
  action();
});

byId("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
byId("stop").addEventListener("click", stop);
byId("new").addEventListener("click", () => {
  panels.closeDrawer();
  startNew();
});
byId("export").addEventListener("click", exportAll);
byId("import").addEventListener("click", () => byId("import-file").click());
byId("import-file").addEventListener("change", async ({ target }) => {
  if (target.files[0]) await importFile(target.files[0]);
  target.value = "";
});
byId("change-key").addEventListener("click", () => askKey(() => lookForModels(), "Every request of this tab carries this key."));

// ---- start ---------------------------------------------------------------------------------------------------------

function followAddress() {
  show(conversationOf(location.hash.slice(1)) ?? defaults());
}

/** The draft of before a reload; more may have been typed since. */
function showPrompt() {
  const draft = session.get("mlcrt.prompt") ?? "";
  if (prompt.value !== draft) prompt.value = draft;
  fit(prompt);
}

async function start() {
  for (const place of document.querySelectorAll("[data-icon]")) place.append(icon(place.dataset.icon));
  if (coarse()) byId("hint").textContent = "";
  window.addEventListener("pagehide", () => {
    state.leaving = true;
    if (state.started) keepAnswers(); // until then the records are those of the page before
    store.leave();
  });
  window.addEventListener("pageshow", () => {
    state.leaving = false; // back from the browser's cache of pages
    store.back();
  });
  settings.show(state.current.settings);
  showPrompt();
  if (!coarse()) prompt.focus();
  const kept = await store.open();
  await recover();
  state.conversations = await store.all();
  state.started = true;
  followAddress();
  showPrompt();
  window.addEventListener("popstate", followAddress);
  setInterval(() => state.runs.size && keepAnswers(), KEEP_MS);
  if (!kept) notice("This browser stores nothing for this page, so conversations end with the tab. Export what you want to keep.");
  document.documentElement.dataset.ready = "true";
}

const started = start();
started.then(() => lookForModels());
