// Markdown of a model → DOM. Only the elements and attributes named in this file can come out, whatever goes in:
// no images (nothing is fetched), links to http, https and mailto only.

import { button, copyText, el } from "./dom.js";
import { colour } from "./colour.js";
import { parseBlocks } from "./markdown-blocks.js";
import { parseInline } from "./markdown-inline.js";

const MAX_INLINE_DEPTH = 16;
const MAX_COLOURED = 60_000; // characters of code; longer listings stay plain

/** A root element that shows a growing text. Blocks that did not change keep their elements. */
export class MarkdownView {
  constructor(root, announce = () => {}) {
    this.root = root;
    this.announce = announce;
    this.shown = []; // [{source, type, element}]
  }

  update(text, finished) {
    const blocks = parseBlocks(text);
    blocks.forEach((block, index) => {
      const before = this.shown[index];
      const last = index === blocks.length - 1;
      const key = `${block.type}:${block.tight ?? ""}:${block.closed || finished || !last}`;
      if (before && before.source === block.source && before.key === key) return;
      if (before && growCode(before, block, key)) return;
      const element = renderBlock(block, { announce: this.announce, growing: last && !finished });
      if (before) before.element.replaceWith(element);
      else this.root.append(element);
      this.shown[index] = { source: block.source, key, type: block.type, element, text: block.text };
    });
    for (const gone of this.shown.splice(blocks.length)) gone.element.remove();
  }
}

/** An open listing that only got longer is not built anew: long ones would cost more with every token. */
function growCode(before, block, key) {
  if (block.type !== "code" || before.type !== "code" || before.key !== key || block.closed) return false;
  const node = before.element.querySelector("code").firstChild;
  if (!(node instanceof Text) || !block.text.startsWith(before.text) || node.data !== before.text) return false;
  node.appendData(block.text.slice(before.text.length));
  before.source = block.source;
  before.text = block.text;
  return true;
}

function renderBlock(block, context) {
  switch (block.type) {
    case "heading":
      return el(`h${Math.min(6, block.level + 2)}`, { dir: "auto" }, inline(block.text));
    case "code":
      return codeBlock(block, context);
    case "quote":
      return el("blockquote", {}, ...block.blocks.map((inner) => renderBlock(inner, context)));
    case "list":
      return renderList(block, context);
    case "table":
      return renderTable(block);
    case "rule":
      return el("hr");
    default:
      return el("p", { dir: "auto" }, inline(block.text));
  }
}

function renderList(block, context) {
  const items = block.items.map(({ blocks, checked }) => {
    const item = el("li", { dir: "auto" });
    if (checked !== null) {
      item.className = "task";
      item.append(el("span", { class: checked ? "box done" : "box", role: "img", "aria-label": checked ? "done" : "open" }));
    }
    for (const inner of blocks) {
      if (block.tight && inner.type === "paragraph") item.append(inline(inner.text));
      else item.append(renderBlock(inner, context));
    }
    return item;
  });
  if (!block.ordered) return el("ul", {}, ...items);
  return el("ol", { start: block.start === 1 ? null : String(block.start) }, ...items);
}

function renderTable({ align, head, rows }) {
  const cell = (tag, text, column) =>
    el(tag, { class: align[column], dir: "auto", scope: tag === "th" ? "col" : null }, inline(text));
  const row = (tag, texts) => el("tr", {}, ...texts.map((text, column) => cell(tag, text, column)));
  const body = rows.length ? el("tbody", {}, ...rows.map((texts) => row("td", texts))) : null;
  const table = el("table", {}, el("thead", {}, row("th", head)), body);
  return el("div", { class: "table", tabindex: "0", role: "region", "aria-label": "Table" }, table);
}

function codeBlock(block, { announce, growing }) {
  const code = el("code");
  const name = /^[a-z0-9+#_.-]{1,24}$/.test(block.language) ? block.language : "";
  const plain = (growing && !block.closed) || block.text.length > MAX_COLOURED;
  if (plain) code.append(document.createTextNode(block.text));
  else code.append(...colour(block.text, name));
  const copy = button("Copy", async () => {
    const done = await copyText(code.textContent);
    copy.textContent = done ? "Copied" : "Not copied";
    announce(done ? "Code copied." : "The browser did not allow copying; select the code and copy it by hand.");
    setTimeout(() => (copy.textContent = "Copy"), 2000);
  });
  copy.setAttribute("aria-label", name ? `Copy ${name} code` : "Copy code");
  const pre = el("pre", { tabindex: "0", role: "region", "aria-label": name ? `${name} code` : "Code" }, code);
  return el("div", { class: "listing" }, el("div", { class: "listing-head" }, el("span", { text: name || "text" }), copy), pre);
}

function inline(text) {
  const out = document.createDocumentFragment();
  appendInline(out, parseInline(text), 0);
  return out;
}

function appendInline(parent, nodes, depth) {
  for (const node of nodes) {
    if (depth > MAX_INLINE_DEPTH) parent.append(plainText([node]));
    else if (node.type === "text") parent.append(node.text);
    else if (node.type === "code") parent.append(el("code", { text: node.text }));
    else if (node.type === "math") parent.append(el("code", { class: "math", text: node.text }));
    else if (node.type === "break") parent.append(el("br"));
    else if (node.type === "link" || node.type === "image") parent.append(link(node, depth));
    else {
      const element = el(node.type);
      appendInline(element, node.children, depth + 1);
      parent.append(element);
    }
  }
}

/** A link, or for an image a link to it; where it leads elsewhere than the web, its words and the address as text. */
function link(node, depth) {
  const href = safeUrl(node.href);
  const words = el("span");
  if (node.type === "image") words.append(`Image: ${plainText(node.children) || "without a description"}`);
  else appendInline(words, node.children, depth + 1);
  if (!href) {
    words.append(` (${node.href})`);
    return words;
  }
  const props = { href, title: href, target: "_blank", rel: "noopener noreferrer nofollow", referrerpolicy: "no-referrer" };
  return el("a", props, ...words.childNodes);
}

/** The address in its normal form, or null unless it is absolute and its scheme is http, https or mailto. */
export function safeUrl(text) {
  const trimmed = text.trim();
  if (!/^(?:https?:\/\/|mailto:)/i.test(trimmed)) return null;
  try {
    const url = new URL(trimmed);
    return ["http:", "https:", "mailto:"].includes(url.protocol) ? url.href : null;
  } catch {
    return null;
  }
}

/** The text of a tree of any depth. */
export function plainText(nodes) {
  let out = "";
  const rest = [...nodes].reverse();
  while (rest.length) {
    const node = rest.pop();
    if (node.children) for (let index = node.children.length - 1; index >= 0; index -= 1) rest.push(node.children[index]);
    else out += node.type === "break" ? "\n" : node.text ?? "";
  }
  return out;
}
