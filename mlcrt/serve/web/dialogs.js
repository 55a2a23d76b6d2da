// The dialogs: the API key, and the list of keys.

import { key } from "./api.js";
import { byId } from "./dom.js";

/** Ask for the API key; `then()` once there is one. A dialog that is open stays as it is. */
export function askKey(then, reason = "This server asks for an API key.") {
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

byId("key-cancel").addEventListener("click", () => byId("key-dialog").close());
byId("help-open").addEventListener("click", () => byId("help").showModal());
// Chromium gives the focus back after a click in the dialog, but not the caret: keys would go nowhere.
for (const dialog of document.querySelectorAll("dialog")) {
  dialog.addEventListener("close", () => {
    const active = document.activeElement;
    if (active instanceof HTMLTextAreaElement) active.setSelectionRange(active.selectionStart, active.selectionEnd);
  });
}
