// Markdown to DOM nodes. Text only ever becomes a text node: nothing a model writes can be an element, an attribute
// but a checked http(s) address, or a request to another host. Images are named, never loaded.

// Each takes time in proportion to its line, whatever stands there: nothing that can fail follows two repetitions that
// could share a character.
const FENCE = /^ {0,3}(`{3,}|~{3,})(.*)$/s;
const HEADING = /^ {0,3}(#{1,6})\s+(.*)$/s;
const RULE = /^ {0,3}(?:(?:\*\s*){3,}|(?:-\s*){3,}|(?:_\s*){3,})$/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/s;
const COLUMN = /^:?-+:?$/;
const MAX_DEPTH = 8;

function element(name, className, ...children) {
  const node = document.createElement(name);
  if (className) node.className = className;
  node.append(...children);
  return node;
}

// Replace the content of `target` with `source`, rendered.
export function render(target, source) {
  target.replaceChildren(...blocks(source.replace(/\r\n?/g, "\n").split("\n"), 0));
}

function blocks(lines, depth) {
  const nodes = [];
  let i = 0;
  while (i < lines.length) {
    const line = lines[i];
    const found = fenceOf(line);
    if (!line.trim()) {
      i += 1;
    } else if (found) {
      i = code(lines, i, found, nodes);
    } else if (HEADING.test(line)) {
      const [, marks, text] = HEADING.exec(line);
      nodes.push(element(`h${Math.min(6, marks.length + 2)}`, "", ...inline(headingText(text), 0)));
      i += 1;
    } else if (RULE.test(line)) {
      nodes.push(element("hr"));
      i += 1;
    } else if (depth < MAX_DEPTH && /^ {0,3}>/.test(line)) {
      const start = i;
      while (i < lines.length && /^ {0,3}>/.test(lines[i])) i += 1;
      const quoted = lines.slice(start, i).map((one) => one.replace(/^ {0,3}> ?/, ""));
      nodes.push(element("blockquote", "", ...blocks(quoted, depth + 1)));
    } else if (depth < MAX_DEPTH && ITEM.test(line)) {
      i = list(lines, i, depth, nodes);
    } else if (line.includes("|") && i + 1 < lines.length && isTableRule(lines[i + 1])) {
      i = table(lines, i, nodes);
    } else {
      i = paragraph(lines, i, nodes);
    }
  }
  return nodes;
}

// {mark, language} of a line that opens a block of code, else null.
function fenceOf(line) {
  const found = FENCE.exec(line);
  if (!found || found[2].includes("`")) return null;
  return { mark: found[1], language: found[2].trim().split(/\s/, 1)[0] };
}

// Without the marks that may close a heading; "C#" is none.
function headingText(text) {
  const trimmed = text.trimEnd();
  let end = trimmed.length;
  while (end && trimmed[end - 1] === "#") end -= 1;
  return end && /\S/.test(trimmed[end - 1]) ? trimmed : trimmed.slice(0, end).trimEnd();
}

function isTableRule(line) {
  return line.includes("-") && rowCells(line).every((cell) => COLUMN.test(cell));
}

function rowCells(line) {
  return line.trim().replace(/^\||\|$/g, "").split("|").map((cell) => cell.trim());
}

function code(lines, start, { mark: fence, language }, nodes) {
  let end = start + 1;
  while (end < lines.length && !(lines[end].trim().startsWith(fence) && !lines[end].trim().slice(fence.length).replaceAll(fence[0], ""))) end += 1;
  const text = lines.slice(start + 1, end).join("\n");
  const copy = element("button", "copy-code", "Copy");
  copy.type = "button";
  const head = element("div", "code-head", element("span", "", language.slice(0, 24) || "text"), copy);
  nodes.push(element("div", "code", head, element("pre", "", element("code", "", text))));
  return end + 1;
}

function list(lines, start, depth, nodes) {
  const [, indent, mark] = ITEM.exec(lines[start]);
  const ordered = /\d/.test(mark);
  const holder = element(ordered ? "ol" : "ul");
  if (ordered) holder.start = Number.parseInt(mark, 10);
  let i = start;
  while (i < lines.length) {
    const found = ITEM.exec(lines[i]);
    if (!found || found[1].length > indent.length + 1 || /\d/.test(found[2]) !== ordered) break;
    if (found[1].length < indent.length) break;
    const inside = [found[3]];
    const margin = found[1].length + found[2].length + 1;
    i += 1;
    while (i < lines.length) {
      const deeper = lines[i].search(/\S/);
      if (deeper === -1) {
        const next = lines[i + 1];
        if (next === undefined || next.search(/\S/) < margin) break;
      } else if (deeper <= indent.length && (ITEM.test(lines[i]) || !inside.at(-1).trim() || startsBlock(lines[i]))) {
        break;
      }
      inside.push(lines[i].slice(Math.min(margin, Math.max(0, deeper))));
      i += 1;
    }
    const children = blocks(inside, depth + 1);
    if (children.length && children[0].tagName === "P") children.splice(0, 1, ...children[0].childNodes);
    holder.append(element("li", "", ...children));
    while (i < lines.length && !lines[i].trim() && i + 1 < lines.length && ITEM.test(lines[i + 1])) i += 1;
  }
  nodes.push(holder);
  return i;
}

function startsBlock(line) {
  return fenceOf(line) || HEADING.test(line) || RULE.test(line) || /^ {0,3}>/.test(line);
}

function table(lines, start, nodes) {
  const row = (line, tag) => element("tr", "", ...rowCells(line).map((cell) => element(tag, "", ...inline(cell, 0))));
  const body = element("tbody");
  let i = start + 2;
  while (i < lines.length && lines[i].includes("|")) {
    body.append(row(lines[i], "td"));
    i += 1;
  }
  nodes.push(element("div", "table", element("table", "", element("thead", "", row(lines[start], "th")), body)));
  return i;
}

function paragraph(lines, start, nodes) {
  let i = start + 1;
  while (i < lines.length && lines[i].trim() && !startsBlock(lines[i]) && !ITEM.test(lines[i])) i += 1;
  nodes.push(element("p", "", ...inline(lines.slice(start, i).join("\n"), 0)));
  return i;
}

// Inline marks, longest first; each pattern is linear in the text between its marks.
const MARKS = [
  [/^(`+)([^`]|[^`][\s\S]{0,2000}?[^`])\1(?!`)/, (m) => element("code", "", m[2].replace(/\n/g, " "))],
  [/^!\[([^\]\n]{0,400})\]\(([^()\s]{0,2000})(?:\s+"[^"\n]{0,400}")?\)/, (m) => element("span", "image", `[image: ${m[1] || m[2]}]`)],
  [/^\[([^\]\n]{1,400})\]\(([^()\s]{1,2000})(?:\s+"[^"\n]{0,400}")?\)/, (m, depth) => link(m[2], m[1], depth, m[0])],
  [/^<(https?:\/\/[^\s<>]{1,2000})>/, (m) => link(m[1], m[1], MAX_DEPTH, m[0])],
  [/^https?:\/\/[^\s<>"'`)\]]{1,2000}[^\s<>"'`)\].,;:!?]/, (m) => link(m[0], m[0], MAX_DEPTH, m[0])],
  [/^(\*\*|__)(?=\S)([\s\S]{1,2000}?\S)\1/, (m, depth) => element("strong", "", ...inline(m[2], depth + 1))],
  [/^~~(?=\S)([^\n]{1,2000}?\S)~~/, (m, depth) => element("s", "", ...inline(m[1], depth + 1))],
  [/^\*(?=[^\s*])([^*\n]{0,2000}?[^\s*])\*/, (m, depth) => element("em", "", ...inline(m[1], depth + 1))],
  [/^_(?=[^\s_])([^_\n]{0,2000}?[^\s_])_(?!\w)/, (m, depth) => element("em", "", ...inline(m[1], depth + 1))],
  [/^ {2,}\n/, () => element("br")],
];
const ESCAPED = /^\\([\\`*_{}[\]()#+\-.!|~<>])/;

function inline(text, depth) {
  const nodes = [];
  let plain = "";
  let i = 0;
  while (i < text.length) {
    const next = text.slice(i).search(/[`![<h*_~\\ ]/);
    if (next !== 0) {
      plain += next === -1 ? text.slice(i) : text.slice(i, i + next);
      i = next === -1 ? text.length : i + next;
      continue;
    }
    const rest = text.slice(i, i + 4200);
    const escaped = ESCAPED.exec(rest);
    const inWord = /\w/.test(text[i - 1] || "") && /[_h]/.test(text[i]);
    const hit = !escaped && !inWord && depth < MAX_DEPTH ? firstMark(rest, depth) : null;
    if (hit) {
      if (plain) nodes.push(document.createTextNode(plain));
      plain = "";
      nodes.push(hit.node);
      i += hit.length;
    } else {
      const run = escaped ? 0 : /^`*/.exec(rest)[0].length; // backticks that close nowhere are text, all of them
      plain += escaped ? escaped[1] : text.slice(i, i + Math.max(1, run));
      i += escaped ? 2 : Math.max(1, run);
    }
  }
  if (plain) nodes.push(document.createTextNode(plain));
  return nodes;
}

function firstMark(rest, depth) {
  for (const [pattern, make] of MARKS) {
    const found = pattern.exec(rest);
    if (found) return { node: make(found, depth), length: found[0].length };
  }
  return null;
}

// A link when the address is plainly http(s); else what was written.
function link(address, label, depth, written) {
  let url;
  try {
    url = new URL(address);
  } catch {
    return document.createTextNode(written);
  }
  if (url.protocol !== "http:" && url.protocol !== "https:") return document.createTextNode(written);
  const node = element("a", "", ...(depth < MAX_DEPTH ? inline(label, MAX_DEPTH) : [label]));
  node.href = url.href;
  node.title = url.href;
  node.target = "_blank";
  node.rel = "noopener noreferrer nofollow";
  return node;
}
