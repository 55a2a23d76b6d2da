// What is said of the conversation as a whole: its title, the model, the buttons of the message box, the context in use.

import { pathTo } from "./conversation.js";
import { byId } from "./dom.js";

const count = new Intl.NumberFormat("en");

/** `context`: tokens, or null where the server does not say. `busy`: an answer is on its way. */
export function showHead(conversation, { model, context, busy }) {
  const title = conversation.title || "New conversation";
  byId("title").textContent = title;
  document.title = conversation.title ? `${title} · mlcrt` : "mlcrt";
  byId("model").textContent = model;
  byId("greeting").textContent = model ? `Ask ${model}` : "mlcrt";
  byId("send").hidden = busy;
  byId("stop").hidden = !busy;
  const last = pathTo(conversation).findLast((node) => node.figures?.completion !== undefined);
  const used = last ? (last.figures.prompt ?? 0) + last.figures.completion : 0;
  byId("used").textContent = used ? `${count.format(used)}${context ? ` of ${count.format(context)}` : ""} tokens of context` : "";
  byId("gauge").hidden = !(used && context);
  byId("gauge").style.setProperty("--used", context ? String(Math.min(1, used / context)) : "0");
  byId("hint").classList.toggle("unseen", conversation.nodes.length > 0);
}
