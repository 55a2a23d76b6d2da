// Simple colouring of listings: comments, strings, numbers and keywords, by one scan with a pattern per language.

import { el } from "./dom.js";

const words = (text) => new Set(text.split(" "));
const C_LIKE = "break case char const continue default do double else enum extern float for goto if inline int long return short signed sizeof static struct switch typedef union unsigned void volatile while";
const SCRIPT = "async await break case catch class const continue debugger default delete do else export extends false finally for from function if import in instanceof let new null of return static super switch this throw true try typeof undefined var void while yield";

const LINE = { slash: "\\/\\/[^\\n]*", hash: "#[^\\n]*", dash: "--[^\\n]*", semicolon: ";[^\\n]*" };
const BLOCK = { c: "\\/\\*[\\s\\S]*?(?:\\*\\/|$)", html: "<!--[\\s\\S]*?(?:-->|$)" };
const QUOTED = '"(?:\\\\.|[^"\\\\\\n])*"?';
const SINGLE = "'(?:\\\\.|[^'\\\\\\n])*'?";
const BACKTICK = "`(?:\\\\.|[^`\\\\])*`?";
const TRIPLE = '"""[\\s\\S]*?(?:"""|$)|\'\'\'[\\s\\S]*?(?:\'\'\'|$)';
const NUMBER = "\\b(?:0[xX][\\da-fA-F_]+|0[bB][01_]+|\\d[\\d_]*(?:\\.\\d[\\d_]*)?(?:[eE][+-]?\\d+)?)\\w*";

function language(comments, strings, keywords, ignoreCase = false) {
  const pattern = `(${comments.join("|") || "(?!)"})|(${strings.join("|")})|(${NUMBER})|([A-Za-z_$][\\w$]*)`;
  return { pattern: new RegExp(pattern, "g"), keywords: words(keywords), ignoreCase };
}

const C = language([LINE.slash, BLOCK.c], [QUOTED, SINGLE], `${C_LIKE} alignas auto bool catch class concept consteval constexpr decltype delete explicit export false final friend mutable namespace new noexcept nullptr operator override private protected public requires template this throw true try typename using virtual __global__ __device__ __shared__ __host__ kernel device threadgroup constant`);
const JAVASCRIPT = language([LINE.slash, BLOCK.c], [QUOTED, SINGLE, BACKTICK], `${SCRIPT} abstract any as boolean declare enum implements interface keyof namespace never number private protected public readonly string type unknown`);
const JAVA = language([LINE.slash, BLOCK.c], [TRIPLE, QUOTED, SINGLE], `${C_LIKE} abstract boolean byte catch class extends false final finally fun implements import instanceof interface internal is let namespace new null object override package private protected public record sealed super synchronized this throw throws true try using val var virtual when yield`);
const LANGUAGES = {
  python: language([LINE.hash], [TRIPLE, QUOTED, SINGLE], "False None True and as assert async await break case class continue def del elif else except finally for from global if import in is lambda match nonlocal not or pass raise return self try while with yield"),
  shell: language([LINE.hash], [QUOTED, "'[^']*'?"], "case do done elif else esac exit export fi for function if in local return set then until while"),
  rust: language([LINE.slash, BLOCK.c], [QUOTED], "as async await break const continue crate dyn else enum extern false fn for if impl in let loop match mod move mut pub ref return self Self static struct super trait true type unsafe use where while"),
  go: language([LINE.slash, BLOCK.c], [QUOTED, SINGLE, BACKTICK], "break case chan const continue default defer else fallthrough false for func go goto if import interface iota map nil package range return select struct switch true type var"),
  sql: language([LINE.dash, BLOCK.c], [SINGLE, QUOTED], "add all alter and as asc between by case create cross delete desc distinct drop else end exists foreign from full group having in index inner insert into is join key left like limit not null offset on or order outer primary references right select set table then union unique update values view when where with", true),
  json: language([], [QUOTED], "true false null"),
  yaml: language([LINE.hash], [QUOTED, SINGLE], "true false null yes no"),
  css: language([BLOCK.c], [QUOTED, SINGLE], "important media supports import font-face keyframes root not is where has hover focus"),
  html: language([BLOCK.html], [QUOTED, SINGLE], "html head body div span script style link meta title p a ul ol li table tr td th form input button svg path"),
  ruby: language([LINE.hash], [QUOTED, SINGLE], "alias and begin break case class def do else elsif end ensure false for if in module next nil not or redo rescue retry return self super then true undef unless until when while yield"),
  lua: language([LINE.dash], [QUOTED, SINGLE], "and break do else elseif end false for function goto if in local nil not or repeat return then true until while"),
  haskell: language([LINE.dash], [QUOTED], "case class data deriving do else if import in infixl infixr instance let module newtype of then type where"),
  lisp: language([LINE.semicolon], [QUOTED], "define defun lambda let let* cond if else begin set! quote defmacro loop"),
  c: C, javascript: JAVASCRIPT, java: JAVA,
};
const ALIASES = {
  py: "python", python3: "python", sh: "shell", bash: "shell", zsh: "shell", console: "shell", makefile: "shell", dockerfile: "shell",
  rs: "rust", golang: "go", postgresql: "sql", sqlite: "sql", mysql: "sql", json5: "json", jsonc: "javascript", yml: "yaml", toml: "yaml", ini: "yaml",
  scss: "css", xml: "html", svg: "html", rb: "ruby", hs: "haskell", scheme: "lisp", clojure: "lisp", elisp: "lisp", h: "c",
  "c++": "c", cpp: "c", cc: "c", hpp: "c", cuda: "c", cu: "c", metal: "c", opencl: "c", glsl: "c", hip: "c", js: "javascript",
  jsx: "javascript", ts: "javascript", tsx: "javascript", typescript: "javascript", cs: "java", csharp: "java", "c#": "java", kotlin: "java",
  kt: "java", scala: "java", swift: "java", dart: "java", php: "javascript",
};
const CLASSES = ["c-comment", "c-string", "c-number"];

/** Nodes for a listing: text, and spans of the classes c-comment, c-string, c-number, c-keyword. */
export function colour(text, name) {
  const found = Object.hasOwn(LANGUAGES, name) ? LANGUAGES[name] : Object.hasOwn(ALIASES, name) && LANGUAGES[ALIASES[name]];
  if (!found) return [document.createTextNode(text)];
  const out = [];
  let plain = 0;
  for (const match of text.matchAll(found.pattern)) {
    let kind = CLASSES.find((_, index) => match[index + 1] !== undefined);
    const word = found.ignoreCase ? match[0].toLowerCase() : match[0];
    if (!kind && found.keywords.has(word)) kind = "c-keyword";
    if (!kind) continue;
    if (match.index > plain) out.push(document.createTextNode(text.slice(plain, match.index)));
    out.push(el("span", { class: kind, text: match[0] }));
    plain = match.index + match[0].length;
  }
  out.push(document.createTextNode(text.slice(plain)));
  return out;
}
