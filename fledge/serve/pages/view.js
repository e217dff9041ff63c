// Drawing: a message's row, its figures, the totals. Everything that is not ours goes in as text.

import { render } from "./markdown.js";

const $ = (id) => document.getElementById(id);
const COPIED_MILLISECONDS = 1400;

// Build (row is null) or update the row of a message. `actions` are the handlers of a new row; with `editing` the body
// becomes an editor holding that text.
export function drawMessage(row, message, actions, editing) {
  const node = row || build(message, actions);
  node.className = `message ${message.role} ${message.state}`;
  node.setAttribute("aria-busy", String(message.state === "streaming"));
  if (editing !== undefined) {
    openEditor(node, editing);
    return node;
  }
  const body = node.querySelector(".body");
  if (message.role === "assistant") render(body, message.content);
  else body.textContent = message.content;
  for (const button of body.querySelectorAll(".copy-code")) bindCopy(button);
  const failure = node.querySelector(".failure");
  failure.hidden = message.state !== "failed";
  failure.textContent = message.state === "failed" ? message.error || "The answer failed." : "";
  node.querySelector(".figures").textContent = figures(message);
  return node;
}

function build(message, actions) {
  const node = $("message-template").content.cloneNode(true).firstElementChild;
  const mine = message.role === "user";
  node.querySelector(".who").textContent = mine ? "You" : "Model";
  node.querySelector(".copy").addEventListener("click", (event) => copy(event.currentTarget, message.content));
  node.querySelector(".retry").addEventListener("click", actions.retry);
  node.querySelector(".edit").addEventListener("click", actions.edit);
  node.querySelector(".retry").hidden = mine;
  node.querySelector(".edit").hidden = !mine;
  node.actions = actions;
  return node;
}

function openEditor(node, text) {
  const form = $("editor-template").content.cloneNode(true).firstElementChild;
  const area = form.querySelector("textarea");
  const hidden = [node.querySelector(".body"), node.querySelector(".actions")];
  const fit = () => {
    area.style.height = "auto";
    area.style.height = `${area.scrollHeight + 2}px`;
  };
  const close = () => {
    form.remove();
    hidden.forEach((part) => (part.hidden = false));
    node.actions.typed(null);
  };
  if (node.querySelector(".editor")) return;
  hidden.forEach((part) => (part.hidden = true));
  area.value = text;
  area.addEventListener("input", () => {
    node.actions.typed(area.value);
    fit();
  });
  area.addEventListener("keydown", (event) => {
    if (event.key === "Escape") close();
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      form.requestSubmit();
    }
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    node.actions.send(area.value);
  });
  form.querySelector(".cancel").addEventListener("click", close);
  node.append(form);
  fit();
  area.focus();
}

function figures({ role, state, figures: found }) {
  if (role !== "assistant" || !found || !found.tokens) return state === "stopped" ? "stopped" : "";
  const parts = [`${found.tokens} ${found.tokens === 1 ? "token" : "tokens"}`];
  if (found.rate) parts.push(`${found.rate.toFixed(found.rate < 10 ? 1 : 0)} tokens/s`);
  if (state === "streaming") return line(parts);
  if (found.wait) parts.push(`first after ${(found.wait / 1000).toFixed(2)} s`);
  if (found.seed) parts.push(`seed ${found.seed}`);
  if (state === "stopped") parts.push("stopped");
  else if (found.finish === "length") parts.push("cut at the limit");
  return line(parts);
}

// Figures break between, never inside.
function line(parts) {
  return parts.map((part) => part.replaceAll(" ", "\u00a0")).join("\u00a0· ");
}

export function drawTotals(target, messages, model) {
  const last = messages.findLast((message) => message.figures && message.figures.promptTokens);
  if (!last) {
    target.textContent = model.context ? `Context: ${model.context.toLocaleString("en")} tokens.` : "";
    return;
  }
  const used = last.figures.promptTokens + last.figures.tokens;
  const share = model.context ? ` of ${model.context.toLocaleString("en")}` : "";
  target.textContent = `${used.toLocaleString("en")}${share} tokens of context in use.`;
}

function bindCopy(button) {
  button.addEventListener("click", () => copy(button, button.closest(".code").querySelector("code").textContent));
}

async function copy(button, text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    fallbackCopy(text); // no clipboard without https
  }
  const label = button.querySelector("span") || button;
  const before = label.textContent;
  if (before === "Copied") return;
  label.textContent = "Copied";
  announce("Copied.");
  setTimeout(() => (label.textContent = before), COPIED_MILLISECONDS);
}

function fallbackCopy(text) {
  const area = document.createElement("textarea");
  area.value = text;
  area.className = "hidden";
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}

// For screen readers: the state, not every token.
export function announce(text) {
  $("status").textContent = text;
}

export function stuckToBottom(scroller) {
  return scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 80;
}

export function scrollDown(scroller) {
  scroller.scrollTop = scroller.scrollHeight;
}
