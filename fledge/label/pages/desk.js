// The server's API. A request that fails changes nothing that the page shows, and may be sent again as it is.

import { keep, kept } from "./memory.js";

export class Refused extends Error {
  constructor(message, code, status) {
    super(message);
    this.code = code;
    this.status = status;
  }
}

const KEY = "key";

// The key stands behind # in the address that was printed; it lives as long as the tab.
export function takeKey() {
  const given = new URLSearchParams(location.hash.slice(1)).get("key");
  if (!given) return;
  keep(KEY, given);
  history.replaceState(null, "", location.pathname);
}

async function ask(path, body) {
  const headers = {};
  const key = kept(KEY);
  if (key) headers.authorization = `Bearer ${key}`;
  if (body) headers["content-type"] = "application/json";
  let response;
  try {
    response = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body) });
  } catch {
    throw new Refused("The server can't be reached.", "unreachable", 0);
  }
  let told = {};
  try {
    told = await response.json();
  } catch {
    told = {};
  }
  if (response.ok) return told;
  const error = told.error || {};
  throw new Refused(error.message || `The server answered ${response.status}.`, error.code, response.status);
}

export const about = () => ask("/api/about");
export const state = (annotator) => ask(`/api/state?annotator=${encodeURIComponent(annotator)}`);
export const vote = (ballot) => ask("/api/vote", ballot);
export const undo = (annotator, number) => ask("/api/undo", { annotator, vote: number });
export const again = (annotator) => ask("/api/again", { annotator });
export const progress = () => ask("/api/progress");

// 32 hexadecimal digits: by them the server knows a vote that it has had already.
export function newToken() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
