// The server's API: one answer as a stream of chunks. The same requests as any other client's.

export class ApiFailure extends Error {
  constructor(message, code, status) {
    super(message);
    this.code = code;
    this.status = status;
  }
}

function headersWith(key) {
  const headers = { "content-type": "application/json" };
  if (key) headers.authorization = `Bearer ${key}`;
  return headers;
}

async function failureOf(response) {
  let error = {};
  try {
    error = (await response.json()).error || {};
  } catch {
    error = {};
  }
  return new ApiFailure(error.message || `The server answered ${response.status}.`, error.code, response.status);
}

// [{id, context, chat, beside}], the model itself first; `beside`: an adapter, which requests have to name
export async function servedModels(key) {
  const response = await fetch("/v1/models", { headers: headersWith(key) });
  if (!response.ok) throw await failureOf(response);
  return (await response.json()).data.map((card) => ({
    id: card.id,
    context: card.max_model_len,
    chat: card.chat !== false,
    beside: Boolean(card.parent),
  }));
}

// What to send: a conversation, or for a base model its last text to go on from.
function requestFor(model, messages, settings) {
  const body = { stream: true, stream_options: { include_usage: true }, temperature: Number(settings.temperature) };
  if (model.beside) body.model = model.id;
  const limit = Number.parseInt(settings.maxTokens, 10);
  const seed = Number.parseInt(settings.seed, 10);
  if (Number.isFinite(limit)) body.max_tokens = limit;
  if (Number.isFinite(seed)) body.seed = seed;
  if (!model.chat) {
    if (body.max_tokens === undefined) body.max_tokens = 256;
    return ["/v1/completions", { ...body, prompt: messages.at(-1).content }];
  }
  const system = settings.system.trim() ? [{ role: "system", content: settings.system }] : [];
  return ["/v1/chat/completions", { ...body, messages: [...system, ...messages] }];
}

// Yields {text}, {finish}, {usage} and first of all {seed}. Throws ApiFailure, or what fetch throws.
export async function* answer(model, messages, settings, key, signal) {
  const [url, body] = requestFor(model, messages, settings);
  const response = await fetch(url, { method: "POST", headers: headersWith(key), body: JSON.stringify(body), signal });
  if (!response.ok) throw await failureOf(response);
  yield { seed: response.headers.get("x-fledge-seed") };
  let finished = false;
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ApiFailure(chunk.error.message, chunk.error.code, 200);
    if (chunk.usage) yield { usage: chunk.usage };
    const choice = chunk.choices && chunk.choices[0];
    if (!choice) continue;
    const text = choice.delta ? choice.delta.content : choice.text;
    if (text) yield { text };
    if (choice.finish_reason) {
      finished = true;
      yield { finish: choice.finish_reason };
    }
  }
  if (!finished) throw new ApiFailure("The connection ended before the answer did.", "cut_off", 200);
}

// The data of server-sent events; lines may be cut anywhere between two reads.
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      rest += value;
      const frames = rest.split("\n\n");
      rest = frames.pop();
      for (const frame of frames) {
        const lines = frame.split("\n").filter((line) => line.startsWith("data:"));
        if (lines.length) yield lines.map((line) => line.slice(5).trimStart()).join("\n");
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
