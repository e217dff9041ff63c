// The chat page: what the buttons do. The conversation is `state`; the page is drawn from it.

import { answer, servedModels } from "./stream.js";
import { KEY, load, loadKey, save, saveKey } from "./store.js";
import { announce, drawMessage, drawTotals, scrollDown, stuckToBottom } from "./view.js";

const $ = (id) => document.getElementById(id);
const SAVE_MILLISECONDS = 700;

const state = load();
const rows = [];
let models = [];
let model = { id: "", context: 0, chat: true, beside: false };
let running = null; // AbortController of the answer under way
let undoable = null;
let leaving = false;
let dirty = false; // something is not kept yet

// --- the conversation

function persist() {
  dirty = !save(state);
  if (dirty) notice("This browser keeps no more data: the conversation will be gone after a reload.");
}

// Take over what was kept: by another tab (`live`), or before the browser put this page aside. What is being typed here
// stays.
function reload(live) {
  Object.assign(state, load(live), { draft: $("input").value, editing: null });
  applyTheme();
  showSettings();
  redraw();
  if (models.length) chooseModel();
}

function redraw() {
  $("empty").hidden = state.messages.length > 0;
  $("messages").replaceChildren();
  rows.length = 0;
  state.messages.forEach((_, index) => addRow(index));
  drawTotals($("totals"), state.messages, model);
}

function addRow(index) {
  const row = drawMessage(null, state.messages[index], {
    retry: () => retry(index),
    edit: () => edit(index),
    send: (text) => resend(index, text),
    typed: (text) => {
      state.editing = text === null ? null : { index, text };
      persist();
    },
  });
  rows[index] = row;
  $("messages").append(row);
}

function update(index, message) {
  if (state.messages[index] !== message) return; // a new chat was begun meanwhile
  const follow = stuckToBottom($("scroll"));
  drawMessage(rows[index], message);
  if (follow) scrollDown($("scroll"));
}

// Everything before the answer that the model should see. Empty answers (failed ones) say nothing.
function history(end) {
  const told = state.messages.slice(0, end).filter((message) => message.role === "user" || message.content.trim());
  return told.map(({ role, content }) => ({ role, content }));
}

async function respond() {
  const index = state.messages.length;
  const message = { role: "assistant", content: "", state: "streaming", figures: {} };
  state.messages.push(message);
  $("empty").hidden = true;
  addRow(index);
  persist();
  scrollDown($("scroll"));
  running = new AbortController();
  setBusy(true);
  announce("The model is answering.");
  const clock = { begun: performance.now(), first: 0, last: 0, chunks: 0 };
  let drawn = 0;
  let saved = performance.now();
  try {
    for await (const part of answer(model, history(index), state.settings, loadKey(), running.signal)) {
      take(message, part, clock);
      dirty = true;
      if (performance.now() - saved > SAVE_MILLISECONDS) {
        saved = performance.now();
        persist();
      }
      if (!drawn) {
        drawn = requestAnimationFrame(() => {
          drawn = 0;
          update(index, message);
        });
      }
    }
    message.state = "done";
    announce("The answer is complete.");
  } catch (failure) {
    settle(message, failure);
  } finally {
    cancelAnimationFrame(drawn);
    running = null;
    setBusy(false);
    persist();
    update(index, message);
    drawTotals($("totals"), state.messages, model);
    if (!model.context) greet(); // the page was opened while the model was loading
  }
}

function take(message, part, clock) {
  const now = performance.now();
  const figures = message.figures;
  if (part.seed) figures.seed = part.seed;
  if (part.text) {
    clock.first ||= now;
    clock.last = now;
    clock.chunks += 1;
    message.content += part.text;
    figures.wait = clock.first - clock.begun;
    figures.tokens = clock.chunks; // a guess until the usage comes: a piece of text may be several tokens
  }
  if (part.finish) figures.finish = part.finish;
  if (part.usage) {
    figures.tokens = part.usage.completion_tokens;
    figures.promptTokens = part.usage.prompt_tokens;
  }
  const seconds = (clock.last - clock.first) / 1000;
  if (figures.tokens > 1 && seconds > 0.02) figures.rate = (figures.tokens - 1) / seconds;
}

function settle(message, failure) {
  if (leaving) return; // the next page finds an answer that was still streaming
  if (failure.name === "AbortError") {
    message.state = "stopped";
    announce("Stopped.");
    return;
  }
  message.state = "failed";
  const offline = failure instanceof TypeError;
  message.error = offline ? "The server can't be reached. What you wrote is kept; try again." : failure.message;
  if (failure.status === 401) openSettings("key");
  announce("The answer failed.");
}

function retry(index) {
  if (running) return;
  state.editing = null;
  const last = state.messages[index].role === "assistant" ? index : index + 1;
  state.messages.length = last;
  redraw();
  respond();
}

function edit(index) {
  if (running) return;
  const text = state.editing && state.editing.index === index ? state.editing.text : state.messages[index].content;
  state.editing = { index, text };
  drawMessage(rows[index], state.messages[index], null, text);
}

function resend(index, text) {
  state.editing = null;
  if (running || !text.trim()) return;
  state.messages.length = index;
  state.messages.push({ role: "user", content: text, state: "done" });
  redraw();
  respond();
}

// --- the composer

function setBusy(busy) {
  const button = $("send");
  button.querySelector("use").setAttribute("href", busy ? "#icon-stop" : "#icon-send");
  button.setAttribute("aria-label", busy ? "Stop" : "Send");
  button.disabled = !busy && !$("input").value.trim();
}

function submit() {
  if (running) {
    running.abort();
    return;
  }
  const text = $("input").value;
  if (!text.trim()) return;
  notice("");
  state.messages.push({ role: "user", content: text, state: "done" });
  addRow(state.messages.length - 1);
  $("input").value = "";
  state.draft = "";
  grow();
  respond();
}

function grow() {
  const input = $("input");
  input.style.height = "auto";
  input.style.height = `${input.scrollHeight}px`;
  setBusy(running !== null);
}

function notice(text) {
  $("notice").textContent = text;
  $("notice").hidden = !text;
}

// --- settings, theme, a new chat

function openSettings(field) {
  if (!$("settings").open) $("settings").showModal();
  $(field || "system").focus();
}

const SETTINGS = { system: "system", temperature: "temperature", "max-tokens": "maxTokens", seed: "seed" };

function showSettings() {
  for (const [id, name] of Object.entries(SETTINGS)) {
    if ($(id).value !== String(state.settings[name])) $(id).value = state.settings[name];
  }
  $("temperature-value").textContent = Number(state.settings.temperature).toFixed(2);
}

function bindSettings() {
  for (const [id, name] of Object.entries(SETTINGS)) {
    $(id).addEventListener("input", () => {
      state.settings[name] = $(id).value;
      showSettings();
      persist();
    });
  }
  showSettings();
  $("models").addEventListener("change", () => {
    state.settings.model = $("models").value;
    persist();
    chooseModel();
  });
  $("key").value = loadKey();
  $("key").addEventListener("change", () => {
    saveKey($("key").value.trim());
    greet();
  });
  $("open-settings").addEventListener("click", () => openSettings());
  $("settings").addEventListener("click", (event) => {
    if (event.target === $("settings")) $("settings").close(); // a click beside the panel
  });
}

function applyTheme() {
  if (state.theme) document.documentElement.dataset.theme = state.theme;
  const dark = state.theme ? state.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  $("theme").querySelector("use").setAttribute("href", dark ? "#icon-sun" : "#icon-moon");
  return dark;
}

function newChat() {
  if (running) running.abort();
  if (!state.messages.length) return;
  undoable = state.messages;
  state.messages = [];
  state.editing = null;
  persist();
  redraw();
  $("toast-text").textContent = "New chat begun.";
  $("toast").hidden = false;
  setTimeout(() => {
    $("toast").hidden = true;
  }, 8000);
  $("input").focus();
}

// The model that was chosen, or the server's own where it is not there (any more).
function chooseModel() {
  model = models.find((one) => one.beside && one.id === state.settings.model) || models[0];
  const title = model.context ? `${model.id}, context ${model.context} tokens` : model.id;
  $("models").hidden = models.length < 2;
  $("model").hidden = models.length > 1;
  $("models").value = $("model").textContent = model.id;
  $("models").title = $("model").title = title;
  $("input").placeholder = model.chat ? "Message" : "A text to go on from";
  drawTotals($("totals"), state.messages, model);
}

async function greet() {
  try {
    models = await servedModels(loadKey());
    $("models").replaceChildren(...models.map((one) => new Option(one.id, one.id)));
    chooseModel();
    notice("");
  } catch (failure) {
    if (failure.status === 401) notice("This server asks for an API key. It goes into the settings, at the top right.");
    else notice(failure.status ? failure.message : "The server can't be reached.");
  }
  drawTotals($("totals"), state.messages, model);
}

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
$("input").addEventListener("input", () => {
  state.draft = $("input").value;
  persist();
  grow();
});
$("input").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    if (!running) submit();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && running && !$("settings").open) running.abort();
});
$("new").addEventListener("click", newChat);
$("undo").addEventListener("click", () => {
  if (undoable && !state.messages.length && !running) {
    state.messages = undoable;
    persist();
    redraw();
  }
  $("toast").hidden = true;
});
$("theme").addEventListener("click", () => {
  state.theme = applyTheme() ? "light" : "dark";
  applyTheme();
  persist();
});
// Only what was changed here is written as the page goes: another tab may have written since.
function keep() {
  if (dirty) persist();
}

addEventListener("beforeunload", keep); // it may be called off
addEventListener("pagehide", () => {
  leaving = true;
  keep();
});
addEventListener("pageshow", (event) => {
  leaving = false;
  if (event.persisted && !running) reload(false); // put aside in mid answer, and brought back
});
addEventListener("storage", (event) => {
  if (event.key === KEY && !running && !state.editing) reload(true);
});

applyTheme();
bindSettings();
redraw();
$("input").value = state.draft;
grow();
scrollDown($("scroll"));
if (state.messages[state.editing?.index]?.role === "user") edit(state.editing.index);
else state.editing = null;
greet();
