// The page: puts storage, server, transcript, list and settings together.
import { byId, button, download, el, fit, icon } from "./dom.js";
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
const count = new Intl.NumberFormat("en");

const state = { conversations: [], current: null, models: [], runs: new Map(), drawing: null };
const prompt = byId("prompt");
const speech = new Speech(byId("spoken"), byId("said"));
const store = new Store(changedElsewhere), panels = new Panels();
const coarse = () => window.matchMedia("(pointer: coarse)").matches && !window.matchMedia("(any-pointer: fine)").matches;
const runOf = (conversation) => state.runs.get(conversation.id) ?? null;
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
  const { current } = state;
  const title = current.title || "New conversation";
  byId("title").textContent = title;
  document.title = current.title ? `${title} · mlcrt` : "mlcrt";
  byId("model").textContent = modelName();
  byId("greeting").textContent = modelName() ? `Ask ${modelName()}` : "mlcrt";
  const busy = Boolean(runOf(current));
  byId("send").hidden = busy;
  byId("stop").hidden = !busy;
  const last = pathTo(current).findLast((node) => node.figures?.completion !== undefined);
  const used = last ? (last.figures.prompt ?? 0) + last.figures.completion : 0;
  const context = state.models.find((model) => model.id === modelName())?.context;
  byId("used").textContent = used ? `${count.format(used)}${context ? ` of ${count.format(context)}` : ""} tokens of context` : "";
  byId("gauge").hidden = !(used && context);
  byId("gauge").style.setProperty("--used", context ? String(Math.min(1, used / context)) : "0");
  byId("hint").classList.toggle("unseen", current.nodes.length > 0);
}

/** A sentence above the message box, with buttons; the next one replaces it. */
function notice(text, ...buttons) {
  const close = button("Dismiss", () => byId("notice").replaceChildren());
  byId("notice").replaceChildren(...(text ? [el("p", { text }), el("div", { class: "row" }, ...buttons, close)] : []));
}

// ---- conversations -------------------------------------------------------------------------------------------------

function save(conversation) {
  if (!state.conversations.includes(conversation)) state.conversations.unshift(conversation);
  return store.put(conversation).catch(() => {
    notice("The browser could not store this conversation: its storage is full or blocked. Export what you want to keep.");
  });
}

function startNew() {
  const defaults = readSettings(remembered.get("settings"));
  show(newConversation(defaults));
  prompt.focus();
}

function show(conversation) {
  if (state.current && state.current !== conversation) speech.begin();
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
  const found = state.conversations.find((conversation) => conversation.id === id);
  if (found) show(found);
  panels.closeDrawer();
}

function rename(id, title) {
  const conversation = state.conversations.find((other) => other.id === id);
  conversation.title = title;
  conversation.named = true;
  save(conversation);
  drawHead();
  drawList();
}

async function remove(id) {
  const conversation = state.conversations.find((other) => other.id === id);
  runOf(conversation)?.stop();
  state.conversations = state.conversations.filter((other) => other !== conversation);
  if (state.current === conversation) {
    history.replaceState(null, "", location.pathname);
    show(newConversation(conversation.settings));
  } else drawList();
  notice(`“${conversation.title || "Untitled"}” was deleted.`, button("Undo", async () => {
    notice("");
    await save(conversation);
    show(conversation);
    prompt.focus();
  }));
  await store.delete(id);
}

async function changedElsewhere(id) {
  if (state.runs.has(id)) return;
  const fresh = await store.get(id);
  const at = state.conversations.findIndex((conversation) => conversation.id === id);
  if (at >= 0) state.conversations.splice(at, 1);
  if (fresh) state.conversations.unshift(fresh);
  if (state.current.id === id && fresh && !turns.editing) {
    state.current = fresh;
    draw();
  } else drawList();
}

// ---- answers -------------------------------------------------------------------------------------------------------

function send() {
  const text = prompt.value.trim();
  const { current } = state;
  if (!text || runOf(current)) return;
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
  await save(conversation);
  if (conversation === state.current) {
    history.replaceState(null, "", `${location.pathname}#${conversation.id}`);
    draw();
    turns.toEnd();
    (coarse() ? byId("stop") : prompt).focus(); // on a phone the keyboard makes room for the answer
  }
  if (!modelName(conversation)) await lookForModels(true);
  run.settings.model = modelName(conversation);
  await run.go();
  if (state.leaving) return; // keepAnswers wrote down what came, recover() says why it ends
  const replaced = state.runs.get(conversation.id) !== run; // by an edit or another try while it ran
  if (!replaced) state.runs.delete(conversation.id);
  conversation.updated = Date.now();
  if (state.conversations.includes(conversation)) await save(conversation);
  keepAnswers();
  if (conversation !== state.current || replaced) return;
  draw();
  speech.progress(node.content, true);
  speech.say(run.ending);
  if (run.error?.kind === "key") askKey(() => retry(node), run.error.message);
}

function progressed(run) {
  if (run.conversation !== state.current || state.drawing) return;
  state.drawing = setTimeout(() => {
    state.drawing = null;
    if (!state.runs.has(run.conversation.id) || run.conversation !== state.current) return;
    turns.refresh(run.conversation, run);
    speech.progress(run.node.content);
  }, DRAW_MS);
}

function stop() {
  runOf(state.current)?.stop();
  prompt.focus();
}

function keepAnswers(leaving = false) {
  const now = ({ conversation, node }) => ({ conversation: conversation.id, node: node.id, content: node.content });
  store.keepLive([...state.runs.values()].map(now), leaving);
}

/** Take in what tabs that are gone had received; asked again later while some may be gone or not. */
async function recover() {
  if (await store.recover()) setTimeout(recover, STALE_MS + 1000);
  const running = [...state.runs.values()].map((run) => run.conversation);
  const fresh = (await store.all()).filter(({ id }) => !state.runs.has(id));
  state.conversations = [...running, ...fresh];
  const shown = state.current && fresh.find(({ id }) => id === state.current.id);
  if (shown && !turns.editing) {
    state.current = shown;
    draw();
  }
}

// ---- server --------------------------------------------------------------------------------------------------------

/** `quiet`: a request follows that will say what is wrong. */
async function lookForModels(quiet = false) {
  try {
    state.models = await models();
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

function askKey(then, reason = "This server asks for an API key.") {
  if (byId("key-dialog").open) return;
  byId("key-reason").textContent = reason;
  byId("key").value = "";
  byId("key-dialog").showModal();
  byId("key-form").onsubmit = () => {
    key.set(byId("key").value.trim());
    byId("change-key").hidden = false;
    then();
  };
}

// ---- files ---------------------------------------------------------------------------------------------------------

function exportAll() {
  const kept = state.conversations.filter((conversation) => conversation.nodes.length);
  download(`mlcrt-conversations-${new Date().toISOString().slice(0, 10)}.json`, exportText(kept), "application/json");
  speech.say(`${kept.length} conversations exported.`);
}

async function importFile(file) {
  let found;
  try {
    found = importText(await file.text());
  } catch (error) {
    return notice(error.message);
  }
  let skipped = 0;
  for (const conversation of found) {
    const known = state.conversations.find((other) => other.id === conversation.id);
    if (state.runs.has(conversation.id) || (known && known.updated >= conversation.updated)) skipped += 1;
    else {
      if (known) state.conversations.splice(state.conversations.indexOf(known), 1);
      if (state.current.id === conversation.id) state.current = conversation;
      await save(conversation);
    }
  }
  draw();
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
byId("help-open").addEventListener("click", () => byId("help").showModal());
byId("change-key").addEventListener("click", () => askKey(() => lookForModels(), "Every request of this tab carries this key."));
// Chromium gives the focus back after a click in the dialog, but not the caret: keys would go nowhere.
for (const dialog of document.querySelectorAll("dialog")) {
  dialog.addEventListener("close", () => {
    const active = document.activeElement;
    if (active instanceof HTMLTextAreaElement) active.setSelectionRange(active.selectionStart, active.selectionEnd);
  });
}
byId("key-cancel").addEventListener("click", () => byId("key-dialog").close());

// ---- start ---------------------------------------------------------------------------------------------------------

function followAddress() {
  const found = state.conversations.find((conversation) => conversation.id === location.hash.slice(1));
  show(found ?? newConversation(readSettings(remembered.get("settings"))));
}

async function start() {
  for (const place of document.querySelectorAll("[data-icon]")) place.append(icon(place.dataset.icon));
  if (coarse()) byId("hint").textContent = "";
  const kept = await store.open();
  await recover();
  followAddress();
  prompt.value = session.get("mlcrt.prompt") ?? "";
  fit(prompt);
  if (!coarse()) prompt.focus();
  window.addEventListener("popstate", followAddress);
  window.addEventListener("pagehide", () => {
    keepAnswers(true);
    state.leaving = true;
  });
  window.addEventListener("pageshow", () => {
    state.leaving = false; // back from the browser's cache of pages
  });
  setInterval(() => state.runs.size && keepAnswers(), KEEP_MS);
  if (!kept) notice("This browser stores nothing for this page, so conversations end with the tab. Export what you want to keep.");
  document.documentElement.dataset.ready = "true";
  await lookForModels();
}

start();
