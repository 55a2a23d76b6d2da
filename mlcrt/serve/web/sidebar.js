// The list of conversations: search, rename, delete.

import { el, iconButton } from "./dom.js";
import { findIn } from "./conversation.js";

const DAY = 86_400_000;

function groupOf(updated) {
  const today = new Date().setHours(0, 0, 0, 0);
  if (updated >= today) return "Today";
  if (updated >= today - DAY) return "Yesterday";
  if (updated >= today - 6 * DAY) return "This week";
  return "Earlier";
}

export class Sidebar {
  /** `actions`: open(id), rename(id, title), delete(id). */
  constructor({ list, search, actions }) {
    Object.assign(this, { list, search, actions });
    this.conversations = [];
    this.current = null;
    this.renaming = null;
    this.drawn = ""; // what the list shows
    search.addEventListener("input", () => this.draw());
    search.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && search.value) {
        event.stopPropagation();
        search.value = "";
        this.draw();
      } else if (event.key === "ArrowDown") {
        event.preventDefault();
        this.list.querySelector(".open")?.focus();
      }
    });
    list.addEventListener("keydown", (event) => this.arrows(event));
  }

  show(conversations, current) {
    this.conversations = conversations;
    this.current = current;
    if (!this.renaming) this.draw();
  }

  draw() {
    const focused = this.list.contains(document.activeElement) ? document.activeElement.closest("li")?.dataset.id : null;
    const query = this.search.value.trim();
    const found = [];
    for (const conversation of this.conversations) {
      const passage = query ? findIn(conversation, query) : "";
      if (passage !== null) found.push({ conversation, passage, group: query ? "Found" : groupOf(conversation.updated) });
    }
    // What shows the same stays: a row that is replaced between a button's going down and up would swallow the click.
    const drawn = JSON.stringify([query, this.current, found.map(({ conversation: { id, title }, passage, group }) => [id, title, passage, group])]);
    if (drawn === this.drawn) return;
    this.drawn = drawn;
    const groups = new Map();
    for (const { conversation, passage, group } of found) {
      if (!groups.has(group)) groups.set(group, el("ul"));
      groups.get(group).append(this.row(conversation, passage));
    }
    const parts = [];
    for (const [name, rows] of groups) {
      const heading = el("h2", { text: name, id: `group-${parts.length}` });
      rows.setAttribute("aria-labelledby", heading.id);
      parts.push(heading, rows);
    }
    if (!parts.length) parts.push(el("p", { class: "hint", text: query ? "No conversation has these words." : "Conversations will be listed here." }));
    this.list.replaceChildren(...parts);
    if (focused) this.rowOf(focused)?.querySelector(".open")?.focus();
  }

  rowOf(id) {
    return [...this.list.querySelectorAll("li")].find((row) => row.dataset.id === id);
  }

  row(conversation, passage) {
    const { id } = conversation;
    const title = conversation.title || "Untitled";
    const name = el("span", { class: "name", text: title, dir: "auto" });
    const open = el("button", { type: "button", class: "open", "aria-current": id === this.current ? "page" : null, on: { click: () => this.actions.open(id) } }, name);
    if (passage && passage !== title) open.append(el("span", { class: "passage", text: passage, dir: "auto" }));
    const tools = el(
      "span",
      { class: "row-tools" },
      iconButton("rename", `Rename “${title}”`, () => this.rename(id), { class: "icon-button small" }),
      iconButton("delete", `Delete “${title}”`, () => this.delete(id), { class: "icon-button small" }),
    );
    return el("li", { data: { id } }, open, tools);
  }

  rename(id) {
    const row = this.rowOf(id);
    const { title: before } = this.conversations.find((conversation) => conversation.id === id);
    const input = el("input", { type: "text", class: "wide", "aria-label": "New title", maxlength: "200" });
    input.value = before;
    this.renaming = id;
    this.drawn = ""; // the row is another from here on
    const leave = (keep) => {
      if (this.renaming !== id) return;
      this.renaming = null;
      const title = input.value.trim();
      if (keep && title && title !== before) this.actions.rename(id, title);
      this.draw();
      this.rowOf(id)?.querySelector(".open")?.focus();
    };
    input.addEventListener("keydown", (event) => {
      if (event.isComposing) return;
      if (event.key === "Enter") leave(true);
      if (event.key === "Escape") {
        event.stopPropagation();
        leave(false);
      }
    });
    input.addEventListener("blur", () => leave(true));
    row.replaceChildren(input);
    input.focus();
    input.select();
  }

  delete(id) {
    const rows = [...this.list.querySelectorAll("li")];
    const at = rows.findIndex((row) => row.dataset.id === id);
    const next = (rows[at + 1] ?? rows[at - 1])?.dataset.id;
    this.actions.delete(id);
    const row = next && this.rowOf(next);
    (row ? row.querySelector(".open") : this.search).focus();
  }

  arrows(event) {
    if (event.key !== "ArrowDown" && event.key !== "ArrowUp") return;
    if (!event.target.classList.contains("open")) return;
    event.preventDefault();
    const all = [...this.list.querySelectorAll(".open")];
    const next = all[all.indexOf(event.target) + (event.key === "ArrowDown" ? 1 : -1)];
    (next ?? (event.key === "ArrowUp" ? this.search : event.target)).focus();
  }
}
