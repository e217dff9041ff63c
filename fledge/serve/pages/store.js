// What must survive a reload: the conversation, the draft, the settings. Everything lives in this browser alone.

export const KEY = "fledge.chat.1";

const FRESH = {
  messages: [], // {role, content, state: "done" | "streaming" | "stopped" | "failed", error?, figures?}
  draft: "",
  editing: null, // {index, text}: an edit that was begun
  settings: { model: "", system: "", temperature: 0.7, maxTokens: "", seed: "" },
  theme: "",
};

// What was kept. With `live` another tab may be at work on it, so an unfinished answer is not a broken one.
export function load(live) {
  let kept = {};
  try {
    kept = JSON.parse(localStorage.getItem(KEY)) || {};
  } catch {
    kept = {}; // unreadable: begin anew
  }
  const state = { ...structuredClone(FRESH), ...kept };
  state.settings = { ...FRESH.settings, ...kept.settings };
  state.messages = (Array.isArray(kept.messages) ? kept.messages : []).filter(
    (message) => message && typeof message.content === "string" && ["user", "assistant"].includes(message.role),
  );
  for (const message of state.messages) {
    if (message.state === "streaming" && !live) {
      message.state = "failed";
      message.error = "The page was closed before the answer was finished.";
    }
  }
  return state;
}

// True when it was written; storage may be full or forbidden, and the page works on without it.
export function save(state) {
  try {
    localStorage.setItem(KEY, JSON.stringify(state));
    return true;
  } catch {
    return false;
  }
}

// The API key is a secret: it lives as long as the tab.
export function loadKey() {
  try {
    return sessionStorage.getItem(KEY + ".key") || "";
  } catch {
    return "";
  }
}

export function saveKey(key) {
  try {
    sessionStorage.setItem(KEY + ".key", key);
  } catch {
    // a private window may forbid it; the field still holds the key
  }
}
