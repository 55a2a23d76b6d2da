// What a screen reader says: finished sentences of an answer as it arrives, never single tokens.

import { el } from "./dom.js";
import { parseInline } from "./markdown-inline.js";
import { plainText } from "./markdown.js";

const SENTENCE_END = /[.!?…]["'”’)\]*_]*(?=\s)|[。！？]/g;
const FENCE = /^\s*(```|~~~)/;
const KEPT = 8; // spoken paragraphs left in the document

export class Speech {
  constructor(spoken, said) {
    this.spoken = spoken;
    this.said = said;
    this.begin();
  }

  /** One short message at once: "Stopped.", "Code copied." */
  say(text) {
    this.said.textContent = "";
    this.said.textContent = text;
  }

  begin() {
    this.at = 0; // so much of the text was spoken or passed over
    this.code = null; // lines of an open listing so far
  }

  /** Speak what is whole: lines, and sentences of a line that is still growing; with `finished` the rest too. */
  progress(text, finished = false) {
    const out = [];
    for (;;) {
      const end = text.indexOf("\n", this.at);
      if (end < 0) break;
      this.line(text.slice(this.at, end), out);
      this.at = end + 1;
    }
    const rest = text.slice(this.at);
    if (finished && rest) {
      this.line(rest, out);
      this.at = text.length;
    } else if (this.code === null && !FENCE.test(rest) && !rest.startsWith("|")) {
      let cut = 0;
      for (const match of rest.matchAll(SENTENCE_END)) cut = match.index + match[0].length;
      if (cut) out.push(speakable(rest.slice(0, cut)));
      this.at += cut;
    }
    if (finished && this.code !== null) out.push(listing(this.code));
    if (finished) this.code = null;
    const words = out.filter(Boolean).join(" ");
    if (words) this.spoken.append(el("p", { text: words }));
    while (this.spoken.childElementCount > KEPT) this.spoken.firstElementChild.remove();
  }

  line(line, out) {
    if (FENCE.test(line)) {
      if (this.code !== null) out.push(listing(this.code));
      this.code = this.code === null ? 0 : null;
    } else if (this.code !== null) this.code += 1;
    else out.push(speakable(line));
  }
}

const listing = (lines) => `Listing of ${lines} ${lines === 1 ? "line" : "lines"}.`;

function speakable(text) {
  if (/^[\s|:-]*$/.test(text)) return "";
  const line = text.trim().replace(/^(?:#{1,6}|[-+*>]|\|)\s*/, "").replace(/\s*\|\s*/g, ", ").replace(/<\/?think>/g, "");
  return plainText(parseInline(line)).trim();
}
