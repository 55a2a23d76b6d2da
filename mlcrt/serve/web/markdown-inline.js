// Inline Markdown → a tree of plain objects, after CommonMark 0.31.2 (delimiter runs, brackets, code spans) with GFM's
// strikethrough and bare links. Raw HTML is text. Time grows with the length of the text, whatever the text is.

const PUNCTUATION = /[!-/:-@[-`{-~\p{P}\p{S}]/u;
const PLAIN = /[^\\`*_~[\]!<&$\nhw]+/y;
const ENTITY = /&(?:#(\d{1,7})|#[xX]([0-9a-fA-F]{1,6})|(amp|lt|gt|quot|apos|nbsp|copy|reg|hellip|mdash|ndash|times|deg|rarr|larr));/y;
const ENTITIES = {
  amp: "&", lt: "<", gt: ">", quot: '"', apos: "'", nbsp: "\u00a0", copy: "©", reg: "®", hellip: "…", mdash: "—",
  ndash: "–", times: "×", deg: "°", rarr: "→", larr: "←",
};
const AUTOLINK = /<([a-zA-Z][a-zA-Z0-9+.-]{1,31}:[^\s<>]{0,2000}|[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8})>/y;
const BARE = /(?:https?:\/\/|www\.)[^\s<]{1,2000}/y;
const TITLE = /[ \n]{1,8}(?:"((?:\\.|[^"\\]){0,500})"|'((?:\\.|[^'\\]){0,500})'|\(((?:\\.|[^()\\]){0,500})\))/y;
const DOLLARS = /\$((?=\S)[^$\n]{0,299}[^\s$])\$(?!\d)/y;
const MATH = { "\\(": "\\)", "\\[": "\\]", $$: "$$" };
const MAX_DESTINATION = 2000;

// A linked list of nodes: emphasis takes nodes out of the middle, which would cost too much in an array.
class Nodes {
  constructor() {
    this.end = { type: "end" };
    this.end.next = this.end.previous = this.end;
  }
  push(node) {
    node.previous = this.end.previous;
    node.next = this.end;
    this.end.previous.next = node;
    this.end.previous = node;
    return node;
  }
}

function unlink(node) {
  node.previous.next = node.next;
  node.next.previous = node.previous;
}

/** Put `wrapper` in the place of first…last, which become its children. */
function wrap(first, last, wrapper) {
  wrapper.previous = first.previous;
  wrapper.next = last.next;
  first.previous.next = wrapper;
  last.next.previous = wrapper;
  wrapper.children = [];
  last.next = null;
  for (let node = first; node; node = node.next) wrapper.children.push(node);
  return wrapper;
}

const ESCAPED = new RegExp(`\\\\([!-/:-@[-\`{-~])|${ENTITY.source}`, "g");

export function unescape(text) {
  return text.replace(ESCAPED, (whole, char, ...entity) => char ?? decodeEntity([whole, ...entity]));
}

function decodeEntity([, decimal, hexadecimal, name]) {
  if (name) return ENTITIES[name];
  const code = decimal ? parseInt(decimal, 10) : parseInt(hexadecimal, 16);
  const valid = code > 0 && code <= 0x10ffff && !(code >= 0xd800 && code <= 0xdfff);
  return valid ? String.fromCodePoint(code) : "\ufffd";
}

/**
 * Nodes of one run of text: {type: "text" | "code" | "math", text}, {type: "break"},
 * {type: "em" | "strong" | "del", children}, {type: "link", href, title, children}, {type: "image", href, title, children}.
 */
export function parseInline(text) {
  return new Parser(text).run();
}

class Parser {
  constructor(text) {
    this.text = text;
    this.at = 0;
    this.nodes = new Nodes();
    this.delimiter = null; // the newest of a stack of delimiter runs
    this.bracket = null; // the newest of a stack of open brackets
    this.unclosed = new Set(); // closers of math that the rest of the text lacks
    this.runs = null; // length → positions of backtick runs, oldest first
  }

  run() {
    while (this.at < this.text.length) this.step();
    this.emphasis(null);
    const out = [];
    for (let node = this.nodes.end.next; node !== this.nodes.end; node = node.next) out.push(node);
    return out;
  }

  match(pattern) {
    pattern.lastIndex = this.at;
    return pattern.exec(this.text);
  }

  put(text) {
    const last = this.nodes.end.previous;
    if (last.type === "text" && !last.fixed) last.text += text;
    else this.nodes.push({ type: "text", text });
  }

  step() {
    const plain = this.match(PLAIN);
    if (plain) {
      this.put(plain[0]);
      this.at += plain[0].length;
      return;
    }
    const char = this.text[this.at];
    const done =
      ((char === "\\" || char === "$") && this.math()) ||
      (char === "\\" && this.escape()) ||
      (char === "`" && this.codeSpan()) ||
      ((char === "*" || char === "_" || char === "~") && this.delimiters(char)) ||
      (char === "[" && this.open("[")) ||
      (char === "!" && this.text[this.at + 1] === "[" && this.open("![")) ||
      (char === "]" && this.close()) ||
      (char === "<" && this.autolink()) ||
      (char === "&" && this.entity()) ||
      (char === "\n" && this.newline()) ||
      ((char === "h" || char === "w") && this.bareLink());
    if (!done) {
      this.put(char);
      this.at += 1;
    }
  }

  escape() {
    const next = this.text[this.at + 1];
    if (next === "\n") {
      this.nodes.push({ type: "break" });
      this.at += 2;
      while (this.text[this.at] === " ") this.at += 1;
      return true;
    }
    if (!next || !/[!-/:-@[-`{-~]/.test(next)) return false;
    this.put(next);
    this.at += 2;
    return true;
  }

  /** TeX between \( \), \[ \], $$ $$, or $ $ with a TeX sign in it: its stars and underscores are not Markdown. */
  math() {
    const dollars = this.match(DOLLARS);
    if (dollars && /[\\^_]/.test(dollars[1])) {
      this.nodes.push({ type: "math", text: dollars[1] });
      this.at += dollars[0].length;
      return true;
    }
    const opener = this.text.slice(this.at, this.at + 2);
    const closer = MATH[opener];
    if (!closer || this.unclosed.has(closer)) return false;
    const end = this.text.indexOf(closer, this.at + 2);
    if (end < 0) this.unclosed.add(closer);
    if (end < 0 || end === this.at + 2) return false;
    this.nodes.push({ type: "math", text: this.text.slice(this.at + 2, end).trim() });
    this.at = end + 2;
    return true;
  }

  codeSpan() {
    if (!this.runs) {
      this.runs = new Map();
      for (const run of this.text.matchAll(/`+/g)) {
        const known = this.runs.get(run[0].length);
        if (known) known.positions.push(run.index);
        else this.runs.set(run[0].length, { positions: [run.index], next: 0 });
      }
    }
    let length = 1;
    while (this.text[this.at + length] === "`") length += 1;
    const start = this.at + length;
    const runs = this.runs.get(length);
    while (runs && runs.positions[runs.next] < start) runs.next += 1;
    const end = runs?.positions[runs.next];
    if (end === undefined) {
      this.put("`".repeat(length));
      this.at = start;
      return true;
    }
    let code = this.text.slice(start, end).replace(/\n/g, " ");
    if (/^ .* $/.test(code) && /[^ ]/.test(code)) code = code.slice(1, -1);
    this.nodes.push({ type: "code", text: code });
    this.at = end + length;
    return true;
  }

  delimiters(char) {
    let length = 1;
    while (this.text[this.at + length] === char) length += 1;
    const before = this.at ? characterBefore(this.text, this.at) : "\n";
    const after = this.at + length < this.text.length ? String.fromCodePoint(this.text.codePointAt(this.at + length)) : "\n";
    const spaceAfter = /\s/u.test(after);
    const spaceBefore = /\s/u.test(before);
    const left = !spaceAfter && (!PUNCTUATION.test(after) || spaceBefore || PUNCTUATION.test(before));
    const right = !spaceBefore && (!PUNCTUATION.test(before) || spaceAfter || PUNCTUATION.test(after));
    const word = char === "_";
    const node = this.nodes.push({ type: "text", text: char.repeat(length), fixed: true });
    this.at += length;
    if (char === "~" && length > 2) return true;
    const entry = {
      char, node, length, original: length, older: this.delimiter, newer: null, position: this.at,
      canOpen: left && (!word || !right || PUNCTUATION.test(before)),
      canClose: right && (!word || !left || PUNCTUATION.test(after)),
    };
    if (this.delimiter) this.delimiter.newer = entry;
    this.delimiter = entry;
    return true;
  }

  open(marker) {
    const node = this.nodes.push({ type: "text", text: marker, fixed: true });
    this.at += marker.length;
    this.bracket = { node, image: marker === "![", active: true, older: this.bracket, delimiter: this.delimiter };
    return true;
  }

  close() {
    const opener = this.bracket;
    if (!opener) return false;
    this.bracket = opener.older;
    if (!opener.active) return false;
    const tail = this.linkTail(this.at + 1);
    if (!tail) return false;
    this.emphasis(opener.delimiter);
    const type = opener.image ? "image" : "link";
    const node = wrap(opener.node, this.nodes.end.previous, { type, href: tail.href, title: tail.title });
    node.children.shift(); // the bracket itself
    // Links do not nest: bare ones inside turn back into text, and brackets further out can no longer become links.
    if (!opener.image) {
      node.children = node.children.map((child) => (child.bare ? { type: "text", text: child.bare } : child));
      for (let older = this.bracket; older && older.active; older = older.older) if (!older.image) older.active = false;
    }
    this.at = tail.end;
    return true;
  }

  linkTail(start) {
    const text = this.text;
    if (text[start] !== "(") return null;
    const spaces = (at) => {
      while (at < text.length && at < start + 64 && (text[at] === " " || text[at] === "\n")) at += 1;
      return at;
    };
    let at = spaces(start + 1);
    let href = "";
    if (text[at] === "<") {
      const stop = Math.min(text.length, at + MAX_DESTINATION);
      let end = at + 1;
      while (end < stop && text[end] !== ">" && text[end] !== "<" && text[end] !== "\n") end += text[end] === "\\" ? 2 : 1;
      if (text[end] !== ">") return null;
      href = text.slice(at + 1, end);
      at = end + 1;
    } else {
      const from = at;
      const stop = Math.min(text.length, at + MAX_DESTINATION);
      let depth = 0;
      for (; at < stop; at += 1) {
        const char = text[at];
        if (char === "\\" && /[!-/:-@[-`{-~]/.test(text[at + 1] ?? "")) at += 1;
        else if (char === "(") {
          depth += 1;
          if (depth > 16) return null;
        } else if (char === ")") {
          if (depth === 0) break;
          depth -= 1;
        } else if (char <= " " || char === "\u007f") break;
      }
      if (depth !== 0) return null;
      href = text.slice(from, at);
    }
    let title = "";
    TITLE.lastIndex = at;
    const found = TITLE.exec(text);
    if (found) {
      title = found[1] ?? found[2] ?? found[3];
      at += found[0].length;
    }
    while (at < text.length && (text[at] === " " || text[at] === "\n")) at += 1;
    if (text[at] !== ")") return null;
    return { href: unescape(href), title: unescape(title), end: at + 1 };
  }

  autolink() {
    const found = this.match(AUTOLINK);
    if (!found) return false;
    const mail = !/^[a-zA-Z][a-zA-Z0-9+.-]*:/.test(found[1]);
    const text = { type: "text", text: found[1] };
    this.nodes.push({ type: "link", href: (mail ? "mailto:" : "") + found[1], title: "", children: [text] });
    this.at += found[0].length;
    return true;
  }

  bareLink() {
    if (this.at && !/[\s*_~(]/.test(this.text[this.at - 1])) return false;
    const found = this.match(BARE);
    if (!found) return false;
    let url = found[0].replace(/[?!.,:*_~'"]+$/, "");
    url = url.replace(/&[a-zA-Z0-9]+;$/, "");
    const closing = url.split(")").length - url.split("(").length;
    if (closing > 0) url = url.replace(new RegExp(`\\){1,${closing}}$`), "");
    if (!/^(?:https?:\/\/|www\.)[^/?#]*[\p{L}\p{N}]/u.test(url)) return false;
    const href = url.startsWith("www.") ? `https://${url}` : url;
    this.nodes.push({ type: "link", href, title: "", bare: url, children: [{ type: "text", text: url }] });
    this.at += url.length;
    return true;
  }

  entity() {
    const found = this.match(ENTITY);
    if (!found) return false;
    this.put(decodeEntity(found));
    this.at += found[0].length;
    return true;
  }

  newline() {
    const last = this.nodes.end.previous;
    let spaces = 0;
    if (last.type === "text" && !last.fixed) {
      while (spaces < last.text.length && last.text[last.text.length - 1 - spaces] === " ") spaces += 1;
      if (spaces) last.text = last.text.slice(0, -spaces);
    }
    if (spaces >= 2) this.nodes.push({ type: "break" });
    else this.put("\n");
    this.at += 1;
    while (this.text[this.at] === " ") this.at += 1;
    return true;
  }

  /** Pair the delimiter runs above `bottom` (CommonMark, "process emphasis"), and forget them. */
  emphasis(bottom) {
    const floor = new Map(); // no opener for such a closer lies at this position of the text or before
    let closer = this.delimiter;
    while (closer && closer.older !== bottom) closer = closer.older;
    while (closer) {
      if (!closer.canClose) {
        closer = closer.newer;
        continue;
      }
      const key = closer.char === "~" ? `~${closer.length}` : `${closer.char}${closer.canOpen}${closer.original % 3}`;
      const lowest = floor.get(key) ?? -1;
      const inReach = (entry) => entry && entry !== bottom && entry.position > lowest;
      let opener = closer.older;
      while (inReach(opener) && !pairs(opener, closer)) opener = opener.older;
      if (!inReach(opener)) {
        floor.set(key, closer.older ? closer.older.position : -1);
        const next = closer.newer;
        if (!closer.canOpen) this.forget(closer);
        closer = next;
        continue;
      }
      while (closer.older !== opener) this.forget(closer.older);
      const used = closer.char === "~" ? closer.length : opener.length >= 2 && closer.length >= 2 ? 2 : 1;
      const type = closer.char === "~" ? "del" : used === 2 ? "strong" : "em";
      if (opener.node.next !== closer.node) wrap(opener.node.next, closer.node.previous, { type });
      for (const end of [opener, closer]) {
        end.length -= used;
        end.node.text = end.char.repeat(end.length);
        if (end.length === 0) unlink(end.node);
      }
      if (opener.length === 0) this.forget(opener);
      if (closer.length === 0) {
        const next = closer.newer;
        this.forget(closer);
        closer = next;
      }
    }
    this.delimiter = bottom;
    if (bottom) bottom.newer = null;
  }

  forget(entry) {
    if (entry.older) entry.older.newer = entry.newer;
    if (entry.newer) entry.newer.older = entry.older;
    else this.delimiter = entry.older;
  }
}

function pairs(opener, closer) {
  if (opener.char !== closer.char || !opener.canOpen) return false;
  if (closer.char === "~") return opener.length === closer.length;
  const ambiguous = opener.canClose || closer.canOpen;
  return !ambiguous || (opener.original + closer.original) % 3 !== 0 || (opener.original % 3 === 0 && closer.original % 3 === 0);
}

function characterBefore(text, at) {
  const low = text.charCodeAt(at - 1);
  return low >= 0xdc00 && low <= 0xdfff && at > 1 ? text.slice(at - 2, at) : text[at - 1];
}
