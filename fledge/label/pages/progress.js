// The figures of all annotators, as `fledge label report` prints them.

import { element } from "./show.js";

export function drawFigures(place, found) {
  const parts = [];
  const people = Object.entries(found.annotators);
  if (!people.length) {
    place.replaceChildren(element("p", "note", "Nobody has voted yet."));
    return;
  }
  const rows = people.map(([name, one]) => [
    name, String(one.done), String(one.left), String(one.ties), String(one.skipped),
    one.seconds_median.toFixed(1), figure(one.first_shown),
  ]);
  parts.push(table(["annotator", "done", "left", "ties", "skipped", "s / pair", "A wins"], rows));
  const all = element("p", "note");
  all.append("A wins, of all preferences: ", figure(found.first_shown), ". Near 0.5 its place doesn't matter.");
  parts.push(all);
  const { pairs, alpha } = found.agreement;
  if (pairs.length) {
    parts.push(element("h3", "", "Agreement"));
    const both = pairs.map((pair) => [
      pair.annotators.join(" and "), String(pair.n), figure(pair.same), figure(pair.kappa),
    ]);
    parts.push(table(["annotators", "both judged", "same", "Cohen's kappa"], both));
  }
  const told = element("p", "note");
  told.append("Krippendorff's alpha: ", figure(alpha));
  told.append(alpha ? ` over ${alpha.n} pairs that two or more judged.` : " (needs two who judged the same pairs).");
  parts.push(told);
  const reasons = Object.entries(found.reasons);
  if (reasons.length) {
    parts.push(element("h3", "", "Reasons"));
    parts.push(element("p", "note", reasons.map(([reason, n]) => `${reason} ${n}`).join(", ")));
  }
  place.replaceChildren(...parts);
}

function figure(score) {
  const shown = element("span");
  if (!score) {
    shown.textContent = "none";
    return shown;
  }
  const number = (value) => value.toFixed(2).replace("-", "\u2212");
  shown.append(number(score.value));
  if (score.interval) {
    const [low, high] = score.interval;
    shown.append(element("span", "range", ` ${number(low)}..${number(high)}`));
  }
  return shown;
}

function table(head, rows) {
  const made = element("table", "figures-table");
  const line = (cells, kind) => {
    const row = element("tr");
    for (const cell of cells) {
      const place = element(kind);
      place.append(cell);
      row.append(place);
    }
    return row;
  };
  made.append(line(head, "th"), ...rows.map((row) => line(row, "td")));
  const scrolled = element("div", "scrolled");
  scrolled.append(made);
  return scrolled;
}
