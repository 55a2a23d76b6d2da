// Markdown → blocks, after CommonMark 0.31.2 with GFM tables and task lists, cut down to what answers of models hold:
// no reference links, no HTML blocks (HTML is text), no indented code (an indented line is a line).

const FENCE = /^( *)(`{3,})([^`]*)$/;
const TILDE_FENCE = /^( *)(~{3,})(.*)$/;
const HEADING = /^ {0,3}(#{1,6})(?:[ \t]+(.*))?$/;
const RULE = /^ {0,3}(?:(?:\*[ \t]*){3,}|(?:-[ \t]*){3,}|(?:_[ \t]*){3,})$/;
const ITEM = /^( *)([-+*]|(\d{1,9})([.)]))(?:( +)(.*)|)$/;
const QUOTE = /^ {0,3}> ?/;
const TABLE_RULE = /^\|? *:?-+:?(?: *\| *:?-+:?)* *\|?$/;
const MAX_DEPTH = 12;
const MAX_COLUMNS = 64;

/**
 * Blocks of a text: {type: "paragraph" | "heading", text, level}, {type: "code", language, text, closed},
 * {type: "quote", blocks}, {type: "list", ordered, start, tight, items: [{blocks, checked}]},
 * {type: "table", align, head, rows}, {type: "rule"}. Each has `source`, the lines it was made from, and `apart`:
 * a blank line came before it.
 */
export function parseBlocks(text) {
  const lines = text.replace(/\r\n?/g, "\n").replace(/\0/g, "\ufffd").replace(/\n$/, "").split("\n");
  return parseLines(lines.map(expandTabs), 0);
}

function expandTabs(line) {
  if (!line.includes("\t")) return line;
  const indent = /^[ \t]*(?:(?:[-+*>]|\d{1,9}[.)])[ \t]+)*/.exec(line)[0];
  let out = "";
  for (const char of indent) out += char === "\t" ? " ".repeat(4 - (out.length % 4)) : char;
  return out + line.slice(indent.length);
}

const blank = (line) => /^[ \t]*$/.test(line);
const indentOf = (line) => line.length - line.trimStart().length;

function parseLines(lines, depth) {
  const blocks = [];
  let at = 0;
  while (at < lines.length) {
    if (blank(lines[at])) {
      at += 1;
      continue;
    }
    const from = at;
    const reader = { lines, at, depth };
    const block =
      (depth < MAX_DEPTH && (fence(reader) || heading(reader) || rule(reader) || quote(reader) || list(reader) || table(reader))) ||
      paragraph(reader);
    block.source = lines.slice(from, reader.at).join("\n");
    block.apart = from > 0 && blank(lines[from - 1]);
    blocks.push(block);
    at = reader.at;
  }
  return blocks;
}

function openFence(line) {
  return TILDE_FENCE.exec(line) ?? FENCE.exec(line);
}

function fence(reader) {
  const found = openFence(reader.lines[reader.at]);
  if (!found) return null;
  const [, indent, marks, info] = found;
  const text = [];
  let closed = false;
  let at = reader.at + 1;
  for (; at < reader.lines.length && !closed; at += 1) {
    const line = reader.lines[at];
    const trimmed = line.trim();
    closed = trimmed.length >= marks.length && trimmed[0] === marks[0] && isRun(trimmed) && indentOf(line) < indent.length + 4;
    if (!closed) text.push(line.slice(Math.min(indent.length, indentOf(line))));
  }
  reader.at = at;
  const language = info.trim().split(/\s+/)[0].toLowerCase();
  return { type: "code", language, text: text.join("\n"), closed };
}

function isRun(text) {
  for (const char of text) if (char !== text[0]) return false;
  return true;
}

function heading(reader) {
  const found = HEADING.exec(reader.lines[reader.at]);
  if (!found) return null;
  reader.at += 1;
  let text = (found[2] ?? "").trim();
  const closing = /(?:^|[ \t])#+$/.exec(text.slice(-64));
  if (closing) text = text.slice(0, text.length - closing[0].length).trim();
  return { type: "heading", level: found[1].length, text };
}

function isRule(line) {
  const trimmed = line.trim();
  return trimmed.length >= 3 && "*-_".includes(trimmed[0]) && indentOf(line) < 4 && RULE.test(line);
}

function rule(reader) {
  if (!isRule(reader.lines[reader.at])) return null;
  reader.at += 1;
  return { type: "rule" };
}

function quote(reader) {
  if (!QUOTE.test(reader.lines[reader.at])) return null;
  const inner = [];
  let lazy = false; // the last line may go on in a line without its mark
  while (reader.at < reader.lines.length) {
    const line = reader.lines[reader.at];
    if (QUOTE.test(line)) {
      inner.push(line.replace(QUOTE, ""));
      lazy = continuesParagraph(inner);
    } else if (lazy && !blank(line) && !startsBlock(line) && !startsItem(line)) inner.push(line);
    else break;
    reader.at += 1;
  }
  return { type: "quote", blocks: parseLines(inner, reader.depth + 1) };
}

/** Whether the last of these lines is paragraph text, as far as one line tells. */
function continuesParagraph(lines) {
  let line = lines[lines.length - 1];
  for (let depth = 0; depth < MAX_DEPTH; depth += 1) {
    const item = ITEM.exec(line);
    const next = QUOTE.test(line) ? line.replace(QUOTE, "") : item && !isRule(line) ? item[6] ?? "" : null;
    if (next === null) break;
    line = next;
  }
  return !blank(line) && !HEADING.test(line) && !openFence(line) && !isRule(line);
}

/** Whether a line begins an item; where it would interrupt a paragraph, an empty one or a number above 1 does not. */
function startsItem(line) {
  const item = ITEM.exec(line);
  return Boolean(item && item[1].length < 4);
}

/** Whether a line begins something that ends a paragraph before it. */
function startsBlock(line) {
  if (openFence(line) || HEADING.test(line) || isRule(line) || QUOTE.test(line)) return true;
  const item = ITEM.exec(line);
  return Boolean(item && item[1].length < 4 && item[6] && (!item[3] || item[3] === "1"));
}

function list(reader) {
  const first = ITEM.exec(reader.lines[reader.at]);
  if (!first || isRule(reader.lines[reader.at])) return null;
  const kind = first[4] ?? first[2];
  const out = { type: "list", ordered: Boolean(first[3]), start: first[3] ? Number(first[3]) : 1, tight: true, items: [] };
  let gap = false; // blank lines came before this item
  while (reader.at < reader.lines.length) {
    const line = reader.lines[reader.at];
    const found = ITEM.exec(line);
    if (!found || (found[4] ?? found[2]) !== kind || isRule(line) || found[1].length > first[1].length + 3) break;
    if (gap) out.tight = false;
    const item = readItem(reader, found);
    const blocks = parseLines(item.lines, reader.depth + 1);
    if (blocks.some((block, index) => index > 0 && block.apart)) out.tight = false;
    out.items.push({ blocks, checked: item.checked });
    gap = item.gap;
  }
  return out;
}

/** The lines of one item without its indentation. `gap`: blank lines follow it. */
function readItem(reader, [, indent, marker, , , spaces, rest]) {
  const width = indent.length + marker.length + (!spaces || spaces.length > 4 || !rest ? 1 : spaces.length);
  const extra = spaces && spaces.length > 4 && rest ? " ".repeat(spaces.length - 1) : "";
  const task = /^\[([ xX])\] +(?=\S)/.exec(rest ?? "");
  const lines = [task ? rest.slice(task[0].length) : extra + (rest ?? "")];
  let blanks = 0;
  let fenced = openFence(lines[0]);
  reader.at += 1;
  for (; reader.at < reader.lines.length; reader.at += 1) {
    const line = reader.lines[reader.at];
    if (blank(line)) {
      blanks += 1;
      continue;
    }
    if (blanks && lines.length === 1 && blank(lines[0])) break; // an item begins with at most one blank line
    const inside = indentOf(line) >= width;
    if (!inside && (blanks || fenced || startsBlock(line) || ITEM.test(line) || !continuesParagraph(lines))) break;
    const text = inside ? line.slice(width) : line;
    for (; blanks; blanks -= 1) lines.push("");
    if (fenced) fenced = closes(text, fenced) ? null : fenced;
    else fenced = openFence(text);
    lines.push(text);
  }
  return { lines, gap: blanks > 0, checked: task ? task[1] !== " " : null };
}

function closes(line, [, , marks]) {
  const trimmed = line.trim();
  return trimmed.length >= marks.length && trimmed[0] === marks[0] && isRun(trimmed);
}

function table(reader) {
  const header = reader.lines[reader.at];
  const ruleLine = reader.lines[reader.at + 1];
  if (!header.includes("|") || ruleLine === undefined || !ruleLine.includes("-") || !TABLE_RULE.test(ruleLine.trim())) return null;
  const head = cells(header);
  const rules = cells(ruleLine);
  if (head.length !== rules.length || head.length > MAX_COLUMNS) return null;
  const align = rules.map((mark) => (mark.endsWith(":") ? (mark.startsWith(":") ? "center" : "end") : "start"));
  const rows = [];
  reader.at += 2;
  for (; reader.at < reader.lines.length; reader.at += 1) {
    const line = reader.lines[reader.at];
    if (blank(line) || startsBlock(line)) break;
    const row = cells(line).slice(0, head.length);
    while (row.length < head.length) row.push("");
    rows.push(row);
  }
  return { type: "table", align, head, rows };
}

function cells(line) {
  const out = [];
  let cell = "";
  const trimmed = line.trim();
  for (let at = trimmed[0] === "|" ? 1 : 0; at < trimmed.length; at += 1) {
    if (trimmed[at] === "\\" && trimmed[at + 1] === "|") {
      cell += "|";
      at += 1;
    } else if (trimmed[at] === "|") {
      out.push(cell.trim());
      cell = "";
    } else cell += trimmed[at];
  }
  if (cell.trim() || !trimmed.endsWith("|")) out.push(cell.trim());
  return out;
}

function paragraph(reader) {
  const lines = [];
  while (reader.at < reader.lines.length) {
    const line = reader.lines[reader.at];
    if (blank(line)) break;
    const underline = lines.length && /^ {0,3}(=+|-+) *$/.exec(line);
    if (underline) {
      reader.at += 1;
      return { type: "heading", level: underline[1][0] === "=" ? 1 : 2, text: lines.join("\n").trim() };
    }
    if (lines.length && reader.depth < MAX_DEPTH && startsBlock(line)) break;
    if (lines.length && isTableAt(reader)) break;
    lines.push(line.trimStart());
    reader.at += 1;
  }
  return { type: "paragraph", text: lines.join("\n").trimEnd() };
}

function isTableAt({ lines, at, depth }) {
  return depth < MAX_DEPTH && lines[at].includes("|") && lines[at + 1] !== undefined && table({ lines: [lines[at], lines[at + 1]], at: 0 }) !== null;
}
