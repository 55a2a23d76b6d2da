// The server's side of a conversation: /v1/models, /v1/chat/completions as a stream, and errors as sentences.

import { local, session } from "./store.js";

const KEY = "mlcrt.key";
// Errors that end a stream come when the status has gone out: their codes stand for these.
const STREAM_ERRORS = { service_unavailable: 503, request_timeout: 408, context_length_exceeded: 400 };

/** kind: "offline", "key", "busy", "full", "broken" or "refused". `retryAfter`: seconds, for "busy". */
export class ServerError extends Error {
  constructor(kind, sentence, retryAfter = null) {
    super(sentence);
    this.kind = kind;
    this.retryAfter = retryAfter;
  }
}

export const key = {
  get: () => session.get(KEY),
  set: (value) => session.set(KEY, value || null),
};

async function request(path, options = {}) {
  const headers = { ...options.headers };
  if (key.get()) headers.Authorization = `Bearer ${key.get()}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers, credentials: "same-origin", redirect: "error" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("offline", "The server cannot be reached. See whether mlcrt serve is still running, then try again.");
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response) {
  let error = {};
  try {
    error = (await response.json())?.error ?? {};
  } catch {
    // not JSON: the status alone has to do
  }
  return asError(response.status, error, response.headers.get("retry-after"));
}

function asError(status, { message, code }, retryAfter = null) {
  const said = typeof message === "string" && message ? sentence(message.slice(0, 400)) : "";
  if (status === 401) {
    return new ServerError("key", key.get() ? "The server refused this API key." : "This server asks for an API key.");
  }
  if (status === 429) {
    const wait = waitOf(retryAfter);
    return new ServerError("busy", `The server is busy with other requests.${wait === null ? " Try again in a moment." : ""}`, wait);
  }
  if (code === "context_length_exceeded") {
    const then = "Start a new conversation, edit an earlier message to shorten it, or lower “Longest answer”.";
    return new ServerError("full", `This conversation no longer fits the model's context. ${then}`);
  }
  if (status === 413) return new ServerError("full", "This message is larger than the server accepts. Shorten it and send it again.");
  if (status === 408) return new ServerError("broken", said || "The server gave up on this request because it took too long.");
  if (status === 503) return new ServerError("broken", "The server is shutting down or not ready yet. Try again in a moment.");
  if (status === 404) return new ServerError("refused", said || "The server does not know this model. Choose another one in the settings.");
  if (status >= 500) return new ServerError("broken", `The server failed. ${said || "Its log says why."}`);
  return new ServerError("refused", `The server refused the request${status ? ` (${status})` : ""}. ${said}`.trim());
}

function sentence(text) {
  const trimmed = text.trim().replace(/^\p{Ll}/u, (letter) => letter.toUpperCase());
  return /[.!?]$/.test(trimmed) ? trimmed : `${trimmed}.`;
}

/** Retry-After as seconds, from a number or a date; null when there is none. */
export function waitOf(header, now = Date.now()) {
  if (!header) return null;
  const seconds = /^\d+$/.test(header.trim()) ? Number(header) : Math.ceil((Date.parse(header) - now) / 1000);
  return Number.isFinite(seconds) ? Math.min(600, Math.max(1, seconds)) : null;
}

/** Models the server offers: [{id, context}], context in tokens or null (mlcrt's field, or vLLM's). */
export async function models(signal) {
  const response = await request("/v1/models", { signal });
  const data = await response.json().catch(() => null);
  const list = Array.isArray(data?.data) ? data.data : [];
  return list
    .filter((model) => typeof model?.id === "string")
    .map(({ id, context, max_model_len }) => ({ id, context: [context, max_model_len].find(Number.isInteger) ?? null }));
}

/** Texts of `data` fields, one per event (WHATWG HTML, server-sent events). */
export async function* serverSentEvents(body) {
  const decoder = new TextDecoder();
  const reader = body.getReader();
  let rest = "";
  let data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      rest += done ? decoder.decode() : decoder.decode(value, { stream: true });
      // A lone \r at the end may be half of \r\n: it waits for what follows.
      const lines = rest.split(/\r\n|\n|\r(?!$)/);
      rest = lines.pop();
      for (const line of lines) {
        if (line === "") {
          if (data.length) yield data.join("\n");
          data = [];
        } else if (line === "data" || line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
      }
      if (done) return;
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/**
 * One answer. `onText(text)` for each piece as it arrives. Gives {reason, usage, model}, usage being the server's
 * {prompt_tokens, completion_tokens, …} or null. Throws ServerError, or AbortError after `signal`.
 */
export async function streamChat({ messages, settings, signal, onText }) {
  const { system, ...sampling } = settings; // the system prompt is the first of the messages
  const body = { ...sampling, messages, stream: true, stream_options: { include_usage: true } };
  const response = await request("/v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json", Accept: "text/event-stream" },
    body: JSON.stringify(body),
    signal,
  });
  if (!response.headers.get("content-type")?.startsWith("text/event-stream")) {
    throw new ServerError("broken", "The server answered with something that is not a stream. Is this address really mlcrt serve?");
  }
  const out = { reason: null, usage: null, model: null };
  const broken = () =>
    new ServerError("broken", "The connection broke before the answer was complete. What arrived is kept.");
  try {
    for await (const data of serverSentEvents(response.body)) {
      if (data.trim() === "[DONE]") return out;
      let chunk;
      try {
        chunk = JSON.parse(data);
      } catch {
        throw new ServerError("broken", "The server sent something that could not be read. What arrived is kept.");
      }
      if (chunk?.error) throw asError(STREAM_ERRORS[chunk.error.code] ?? 500, chunk.error);
      if (typeof chunk?.model === "string") out.model = chunk.model;
      if (chunk?.usage) out.usage = chunk.usage;
      const choice = chunk?.choices?.[0];
      if (choice?.finish_reason) out.reason = choice.finish_reason;
      const piece = choice?.delta?.content;
      if (typeof piece === "string" && piece) onText(piece);
    }
  } catch (error) {
    if (error instanceof ServerError || error.name === "AbortError") throw error;
    throw broken();
  }
  if (out.reason) return out; // complete, only the closing mark is missing
  throw broken();
}

export const remembered = {
  get: (name) => {
    try {
      return JSON.parse(local.get(`mlcrt.${name}`));
    } catch {
      return null;
    }
  },
  set: (name, value) => local.set(`mlcrt.${name}`, JSON.stringify(value)),
};
