// The transcript: one list item per message, names and figures in the margin, words in the column.

import { button, copyText, el, iconButton } from "./dom.js";
import { MarkdownView } from "./markdown.js";
import { siblings } from "./conversation.js";

const LONG_QUESTION = 240; // characters; longer ones are set as plain text, not as a headline
const NEAR_END = 96; // px from the bottom within which the view follows the text
const THINKING = /^\s*<think>([\s\S]*?)(?:<\/think>\s*|$)/;

const number = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const precise = new Intl.NumberFormat("en", { maximumFractionDigits: 1, minimumFractionDigits: 1 });
const seconds = (value) => `${value < 10 ? value.toFixed(2) : value.toFixed(0)} s`;

/** Lines for the margin: "81.7 tokens/s", "128 tokens", "first after 0.12 s". */
export function figureLines({ rate, completion, first } = {}) {
  const out = [];
  if (rate) out.push(`${rate < 100 ? precise.format(rate) : number.format(rate)} tokens/s`);
  if (completion) out.push(`${number.format(completion)} ${completion === 1 ? "token" : "tokens"}`);
  if (first !== undefined) out.push(`first after ${seconds(first)}`);
  return out;
}

class Turn {
  /** `actions`: edit, regenerate, retry, showKey, branch, say; each is told the node. */
  constructor(node, actions) {
    this.node = node;
    this.actions = actions;
    this.margin = el("div", { class: "margin" });
    this.body = el("div", { class: node.role === "user" ? "words" : "words prose" });
    this.note = el("div", { class: "note" });
    this.tools = el("div", { class: "tools" });
    this.article = el("article", {}, this.margin, el("div", { class: "column" }, this.body, this.note, this.tools));
    this.element = el("li", { class: `turn ${node.role}`, data: { id: node.id } }, this.article);
    this.answer = null;
    this.thought = null;
    this.shape = "";
    this.editor = null;
  }

  update(conversation, run) {
    const { node } = this;
    if (node.role === "user") this.showQuestion();
    else this.showAnswer(run);
    this.showMargin(run);
    const branches = siblings(conversation, node);
    const shape = JSON.stringify([node.state, run?.phase ?? "", run?.held ?? "", branches.length, branches.indexOf(node), Boolean(node.content)]);
    if (shape === this.shape) return; // buttons stay as they are while text arrives: one of them may have the focus
    this.shape = shape;
    this.showNote(run);
    this.showTools(branches, run);
  }

  showQuestion() {
    if (this.editor) return;
    this.article.setAttribute("aria-label", "You");
    this.body.classList.toggle("long", this.node.content.length > LONG_QUESTION || this.node.content.includes("\n"));
    this.body.setAttribute("dir", "auto");
    this.body.textContent = this.node.content;
  }

  showAnswer(run) {
    const { node } = this;
    const running = Boolean(run) && run.phase !== "over";
    this.article.setAttribute("aria-label", `Answer of ${node.model ?? "the model"}`);
    this.article.setAttribute("aria-busy", String(running));
    this.element.classList.toggle("running", running);
    if (!this.answer) {
      this.answerRoot = el("div", { class: "answer" });
      this.body.replaceChildren(this.answerRoot);
      this.answer = new MarkdownView(this.answerRoot, this.actions.say);
    }
    let text = node.content;
    const thinking = THINKING.exec(text);
    if (thinking) text = text.slice(thinking[0].length);
    this.showThinking(thinking?.[1] ?? "", running && !text);
    this.answer.update(text, !running);
  }

  showThinking(text, running) {
    if (!text.trim()) return;
    if (!this.thought) {
      this.thoughtName = el("summary");
      const inside = el("div", { class: "prose" });
      this.body.prepend(el("details", { class: "thought" }, this.thoughtName, inside));
      this.thought = new MarkdownView(inside, this.actions.say);
    }
    this.thoughtName.textContent = running ? "Thinking…" : "Thoughts before the answer";
    this.thought.update(text, !running);
  }

  showMargin(run) {
    const { node } = this;
    const lines = [el("h2", { class: "who", text: node.role === "user" ? "You" : node.model || "Answer" })];
    if (node.role === "assistant") {
      const live = run && run.phase !== "over";
      const texts = live ? (run.rate ? figureLines({ rate: run.rate }) : []) : figureLines(node.figures);
      lines.push(...texts.map((text) => el("span", { class: "figure", text })));
    }
    const before = [...this.margin.children].map((line) => line.textContent).join("\n");
    if (before !== lines.map((line) => line.textContent).join("\n")) this.margin.replaceChildren(...lines);
  }

  showNote(run) {
    const { node, actions } = this;
    const parts = [];
    const sentence = (text) => parts.push(el("p", { text }));
    const again = () => button("Try again", () => actions.retry(node));
    if (run?.phase === "waiting" && !node.content) parts.push(el("p", { class: "waiting", text: "Reading the prompt" }));
    else if (run?.phase === "held") {
      sentence(`The server is busy. Asking again in ${run.held} s.`);
      parts.push(button("Ask now", () => run.hurry()));
    } else if (node.state === "failed" || (node.state === "interrupted" && node.reason)) {
      sentence(node.reason || "The answer did not come.");
      parts.push(again());
      if (run?.error?.kind === "key" || /API key/.test(node.reason ?? "")) parts.push(button("Enter the API key", () => actions.showKey(node)));
    } else if (node.state === "interrupted" || (node.state === "streaming" && !run)) {
      if (node.state === "interrupted") sentence("The page was closed while this answer arrived. This much is kept.");
      else sentence("This answer is arriving in another tab, or was broken off there.");
      parts.push(again());
    } else if (node.state === "stopped") sentence(node.content ? "Stopped." : "Stopped before the first word.");
    else if (node.reason === "length") sentence("Cut off: the answer reached the longest length or the end of the context.");
    this.note.replaceChildren(...parts);
    this.note.classList.toggle("bad", node.state === "failed" || node.state === "interrupted");
  }

  showTools(branches, run) {
    const { node, actions } = this;
    const busy = run && run.phase !== "over";
    const parts = [];
    if (branches.length > 1 && !busy) {
      const at = branches.indexOf(node);
      const go = (to) => () => actions.branch(branches[to]);
      parts.push(
        iconButton("previous", "Earlier version", go(at - 1), { class: "icon-button small", disabled: at === 0 }),
        el("span", { class: "count", text: `${at + 1} of ${branches.length}` }),
        iconButton("next", "Later version", go(at + 1), { class: "icon-button small", disabled: at === branches.length - 1 }),
      );
    }
    if (node.content && !busy) {
      parts.push(
        button("Copy", async () => {
          const done = await copyText(node.content);
          actions.say(done ? "Message copied." : "The browser did not allow copying.");
        }),
      );
    }
    if (node.role === "user") parts.push(button("Edit", () => this.edit(), { class: "edit" }));
    else if (!busy && node.state !== "failed") parts.push(button("Regenerate", () => actions.regenerate(node), { class: "regenerate" }));
    this.tools.replaceChildren(...parts);
  }

  edit() {
    if (this.editor) return;
    const area = el("textarea", { "aria-label": "Edit your message", dir: "auto", rows: "3" });
    area.value = this.node.content;
    const leave = () => {
      this.editor = null;
      this.element.classList.remove("editing");
      this.showQuestion();
      this.tools.querySelector(".edit")?.focus();
    };
    const send = () => {
      const text = area.value.trim();
      if (!text) return;
      leave();
      if (text !== this.node.content) this.actions.edit(this.node, text);
    };
    area.addEventListener("keydown", (event) => {
      if (event.key === "Escape") {
        event.stopPropagation();
        leave();
      } else if (event.key === "Enter" && !event.shiftKey && !event.isComposing && event.keyCode !== 229 && !this.actions.coarse()) {
        event.preventDefault();
        send();
      }
    });
    this.editor = el("div", { class: "editor" }, area, el("div", { class: "row" }, button("Send", send, { class: "primary" }), button("Cancel", leave)));
    this.element.classList.add("editing");
    this.body.replaceChildren(this.editor);
    area.focus();
    area.setSelectionRange(area.value.length, area.value.length);
  }
}

/** The list of turns and the scrolling around it. */
export class Turns {
  constructor({ list, scroller, jump, actions }) {
    Object.assign(this, { list, scroller, jump, actions });
    this.turns = new Map(); // node id → Turn
    this.following = true;
    scroller.addEventListener("scroll", () => this.look(), { passive: true });
    jump.addEventListener("click", () => this.toEnd());
    new ResizeObserver(() => this.settle()).observe(scroller);
  }

  /** Show the messages of a path; elements of messages that stay are kept. */
  show(conversation, path, run) {
    const wanted = new Map();
    for (const node of path) {
      const turn = this.turns.get(node.id) ?? new Turn(node, this.actions);
      turn.node = node;
      wanted.set(node.id, turn);
    }
    for (const [id, turn] of this.turns) if (!wanted.has(id)) turn.element.remove();
    this.turns = wanted;
    let before = null;
    for (const turn of wanted.values()) {
      const expected = before ? before.nextElementSibling : this.list.firstElementChild;
      if (expected !== turn.element) this.list.insertBefore(turn.element, expected);
      before = turn.element;
      turn.update(conversation, run?.node === turn.node ? run : null);
    }
    this.settle();
  }

  /** Only the answer that is arriving changed. */
  refresh(conversation, run) {
    this.turns.get(run.node.id)?.update(conversation, run);
    this.settle();
  }

  focusEdit() {
    const own = [...this.turns.values()].filter((turn) => turn.node.role === "user");
    own.at(-1)?.edit();
  }

  get editing() {
    return [...this.turns.values()].some((turn) => turn.editor);
  }

  look() {
    const { scrollHeight, scrollTop, clientHeight } = this.scroller;
    this.following = scrollHeight - scrollTop - clientHeight < NEAR_END;
    this.jump.hidden = this.following;
  }

  settle() {
    if (this.following) this.scroller.scrollTop = this.scroller.scrollHeight;
    else this.look();
  }

  toEnd() {
    this.following = true;
    this.settle();
    this.look();
  }
}
