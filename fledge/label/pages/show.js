// Drawing. Prompts and answers are text and nothing else: no markup of theirs is ever read.

export function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

const NAMES = { system: "System", user: "User", assistant: "Assistant" };

// One message alone is its text; more of them have their speakers above.
export function drawTurns(place, messages) {
  place.replaceChildren(
    ...messages.map(({ role, content }) => {
      const turn = element("div", "turn");
      if (messages.length > 1) turn.append(element("h3", "", NAMES[role] || role));
      turn.append(element("div", "said", content));
      return turn;
    }),
  );
}

export function drawCounts(place, bar, counts) {
  bar.max = counts.items;
  bar.value = counts.done;
  const less = element("span", "less", ` · ${counted(counts.ties, "tie")} · ${counts.skipped} skipped`);
  place.replaceChildren(`${counts.done} of ${counts.items}`, less);
}

export function counted(n, word) {
  return `${n} ${word}${n === 1 ? "" : "s"}`;
}

export function drawReasons(place, reasons, changed) {
  place.replaceChildren(
    ...reasons.map((reason) => {
      const label = element("label");
      const box = element("input");
      box.type = "checkbox";
      box.value = reason;
      box.addEventListener("change", changed);
      label.append(box, reason);
      return label;
    }),
  );
}
