// What the browser keeps between two loads of the page: for the tab, or for all of them. Where it keeps nothing (a private
// window may forbid it) the page itself remembers until it is left, and works on.

const PREFIX = "fledge.label.";
const own = new Map();

function area(everywhere) {
  try {
    return everywhere ? localStorage : sessionStorage;
  } catch {
    return null;
  }
}

export function keep(name, value, everywhere = false) {
  own.set(name, value);
  try {
    area(everywhere)?.setItem(PREFIX + name, value);
  } catch {
    // full or forbidden
  }
}

export function kept(name, everywhere = false) {
  try {
    return area(everywhere)?.getItem(PREFIX + name) ?? own.get(name) ?? "";
  } catch {
    return own.get(name) ?? "";
  }
}

export function forget(name) {
  own.delete(name);
  try {
    area(false)?.removeItem(PREFIX + name);
  } catch {
    // nothing was kept
  }
}
