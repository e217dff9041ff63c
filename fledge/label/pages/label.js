// The labelling page: what keys and buttons do. What is judged lives on the server; the page is drawn from its answers.

import * as desk from "./desk.js";
import { forget, keep, kept } from "./memory.js";
import { drawFigures } from "./progress.js";
import { counted, drawCounts, drawReasons, drawTurns } from "./show.js";

const $ = (id) => document.getElementById(id);
const NAME = "name";
const DRAFT = "draft";
const UNREAD_MILLISECONDS = 250; // a second press that was meant for the item before
const SAID = { a: "A is better", b: "B is better", tie: "Tie", skip: "Skipped" };

let now = null; // the server's answer: {annotator, counts, last, item}
let token = ""; // of this showing of the item
let busy = false;
let shownAt = 0;
const seen = { milliseconds: 0, since: 0 }; // how long the item was in sight

// --- the item

function draw(state, said) {
  now = state;
  token = desk.newToken();
  notice("");
  const { item, counts } = state;
  $("welcome").hidden = true;
  $("item").hidden = $("controls").hidden = $("vote-skip").hidden = !item;
  $("done").hidden = Boolean(item);
  $("minor").hidden = $("way").hidden = $("who").hidden = $("open-progress").hidden = false;
  $("who-name").textContent = state.annotator;
  $("who").setAttribute("aria-label", `You are ${state.annotator}; another name`);
  $("undo").disabled = state.last === null;
  drawCounts($("counts"), $("bar"), counts);
  if (item) {
    drawPrompt(item.prompt);
    drawTurns($("a"), item.a);
    drawTurns($("b"), item.b);
    restoreDraft();
  } else {
    $("done-hint").textContent = `You judged ${counted(counts.done - counts.skipped, "pair")}.`;
    $("again").hidden = counts.skipped === 0;
    $("again").textContent = `Judge ${counted(counts.skipped, "skipped pair")}`;
  }
  $("scroll").scrollTop = 0;
  ($("again").hidden || item ? $("scroll") : $("again")).focus({ preventScroll: true });
  shownAt = performance.now();
  seen.milliseconds = 0;
  seen.since = document.visibilityState === "visible" ? shownAt : 0;
  $("status").textContent = [said, item ? `Pair ${item.number}` : "That was all"].filter(Boolean).join(". ");
}

// Its end is what is answered; whoever wants the beginning scrolls up.
function drawPrompt(messages) {
  const place = $("prompt");
  drawTurns(place, messages);
  place.scrollTop = messages.length > 1 ? place.scrollHeight : 0;
  place.parentElement.classList.toggle("longer", place.scrollHeight > place.clientHeight);
}

function secondsSeen() {
  const open = seen.since ? performance.now() - seen.since : 0;
  return (seen.milliseconds + open) / 1000;
}

// One request at a time; a key pressed meanwhile is not kept.
async function act(work, said) {
  if (busy) return;
  busy = true;
  let failure = null;
  try {
    draw(await work(), said);
  } catch (thrown) {
    failure = thrown;
  } finally {
    busy = false;
  }
  if (failure) await refused(failure);
}

async function refused(failure) {
  if (failure.status === 401) {
    notice(`${failure.message} Open the whole address that fledge label printed.`);
  } else if (failure.status === 409 && now) {
    await act(() => desk.state(now.annotator));
    notice(failure.code === "already_judged" ? "That pair was judged in another tab; here is the next." : failure.message);
  } else {
    notice(now ? `Not stored: ${failure.message} Try again.` : failure.message);
  }
}

function vote(choice) {
  if (!now?.item || performance.now() - shownAt < UNREAD_MILLISECONDS) return;
  const ballot = { annotator: now.annotator, item: now.item.number, choice, token, seconds: secondsSeen() };
  ballot.reason = $("reason").value;
  ballot.reasons = ticked();
  act(async () => {
    const next = await desk.vote(ballot);
    forget(DRAFT);
    return next;
  }, SAID[choice]);
}

function undo() {
  if (now && now.last !== null) act(() => desk.undo(now.annotator, now.last), "Undone");
}

// --- reasons, kept until they are sent

const ticked = () => [...$("reasons").querySelectorAll("input:checked")].map((box) => box.value);

function keepDraft() {
  const draft = { annotator: now.annotator, item: now.item.number, reason: $("reason").value, reasons: ticked() };
  keep(DRAFT, JSON.stringify(draft));
}

function restoreDraft() {
  let draft = {};
  try {
    draft = JSON.parse(kept(DRAFT) || "{}");
  } catch {
    draft = {};
  }
  const own = draft.annotator === now.annotator && draft.item === now.item.number;
  $("reason").value = own ? draft.reason : "";
  for (const box of $("reasons").querySelectorAll("input")) box.checked = own && draft.reasons.includes(box.value);
}

function sayWhy() {
  if (!now?.item) return;
  $("why").open = true;
  $("reason").focus();
}

// --- names, dialogs, notices

function askName(name) {
  $("welcome").hidden = false;
  for (const id of ["item", "done", "controls", "minor", "way", "who", "open-progress"]) $(id).hidden = true;
  $("name").value = name;
  $("name").focus();
  now = null;
}

async function begin(name) {
  await act(async () => {
    const state = await desk.state(name);
    keep(NAME, state.annotator);
    keep(NAME, state.annotator, true);
    return state;
  });
}

function notice(text) {
  $("notice").hidden = !text;
  $("notice").textContent = text;
}

function toggle(dialog) {
  if (dialog.open) dialog.close();
  else if (!document.querySelector("dialog[open]")) dialog.showModal();
  return dialog.open;
}

async function progress() {
  if (!now || !toggle($("progress"))) return;
  try {
    drawFigures($("figures"), await desk.progress());
  } catch (failure) {
    $("figures").textContent = failure.message;
  }
}

// --- keys

const KEYS = {
  a: () => vote("a"), 1: () => vote("a"), arrowleft: () => vote("a"),
  b: () => vote("b"), 2: () => vote("b"), arrowright: () => vote("b"),
  t: () => vote("tie"), 0: () => vote("tie"),
  s: () => vote("skip"), u: undo, r: sayWhy, p: progress,
  "?": () => toggle($("help")),
};

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || event.isComposing) return;
  const typing = event.target.matches("textarea, input:not([type=checkbox])");
  if (typing) {
    if (event.key === "Escape" && event.target === $("reason")) $("scroll").focus();
    return;
  }
  const open = document.querySelector("dialog[open]");
  const key = event.key.toLowerCase();
  if (open && !(key === "?" && open === $("help")) && !(key === "p" && open === $("progress"))) return;
  const work = KEYS[key];
  if (!work) return;
  event.preventDefault();
  work();
}

function connect() {
  document.addEventListener("keydown", onKey);
  for (const choice of ["a", "b", "tie", "skip"]) $(`vote-${choice}`).addEventListener("click", () => vote(choice));
  $("undo").addEventListener("click", undo);
  $("again").addEventListener("click", () => act(() => desk.again(now.annotator)));
  $("who").addEventListener("click", () => askName(now.annotator));
  $("open-help").addEventListener("click", () => toggle($("help")));
  $("open-progress").addEventListener("click", progress);
  $("reason").addEventListener("input", keepDraft);
  $("welcome").addEventListener("submit", (event) => {
    event.preventDefault();
    begin($("name").value);
  });
  document.addEventListener("visibilitychange", () => {
    const moment = performance.now();
    if (document.visibilityState === "visible") seen.since = moment;
    else if (seen.since) {
      seen.milliseconds += moment - seen.since;
      seen.since = 0;
    }
  });
  // Put aside by the browser and taken up again: what it shows may be judged by now.
  addEventListener("pageshow", (event) => event.persisted && now && begin(now.annotator));
}

async function start() {
  desk.takeKey();
  connect();
  try {
    const told = await desk.about();
    drawReasons($("reasons"), told.reasons, keepDraft);
    $("how-many").textContent = `There are ${counted(told.items, "pair")}.`;
    const name = kept(NAME) || told.annotator || kept(NAME, true);
    if (name) await begin(name);
    else askName("");
  } catch (failure) {
    await refused(failure);
  }
}

start();
