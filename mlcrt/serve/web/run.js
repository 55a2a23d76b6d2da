// One answer on its way: from the request to its last token, through waiting, refusals and stops.

import { ServerError, streamChat } from "./api.js";
import { messagesFor } from "./conversation.js";

const MAX_WAITS = 5; // how often a busy server is asked again without being told to
const LEAVE_MS = 300; // a reload breaks the connection, and the page may hear of that before it hears of the reload
const LEAST_SPAN_S = 0.05; // below it a rate would be noise

export class Run {
  /** `onChange(run)`: text or phase changed. `phase`: "waiting", "streaming", "held" (busy server) or "over". */
  constructor({ conversation, node, settings, onChange }) {
    Object.assign(this, { conversation, node, settings, onChange });
    this.phase = "waiting";
    this.error = null;
    this.stopped = false;
    this.waits = 0;
    this.heldUntil = 0;
    this.wake = null;
    this.controller = new AbortController();
    this.restart();
  }

  restart() {
    this.sentAt = performance.now();
    this.firstAt = this.lastAt = null;
    this.pieces = 0;
  }

  /** Runs to the end; the node then has its state, reason and figures. Never throws. */
  async go() {
    this.node.state = "streaming";
    this.node.model = this.settings.model;
    for (;;) {
      try {
        this.finish(await this.attempt());
        break;
      } catch (error) {
        if (this.stopped || error.name === "AbortError") {
          this.node.state = "stopped";
          this.measure(null);
          break;
        }
        const busy = error instanceof ServerError && error.kind === "busy";
        if (busy && error.retryAfter !== null && this.waits < MAX_WAITS && (await this.hold(error.retryAfter))) continue;
        if (["offline", "broken"].includes(error.kind)) await new Promise((resolve) => setTimeout(resolve, LEAVE_MS));
        if (this.stopped) {
          this.node.state = "stopped";
          break;
        }
        this.error = error;
        this.node.state = this.node.content ? "interrupted" : "failed";
        this.node.reason = error instanceof ServerError ? error.message : `This page failed: ${String(error?.message ?? error).slice(0, 200)}`;
        this.measure(null);
        break;
      }
    }
    this.phase = "over";
    this.onChange(this);
  }

  attempt() {
    this.restart();
    this.phase = "waiting";
    this.onChange(this);
    return streamChat({
      messages: messagesFor(this.conversation, { id: this.node.parent }),
      settings: this.settings,
      signal: this.controller.signal,
      onText: (piece) => {
        this.lastAt = performance.now();
        this.firstAt ??= this.lastAt;
        this.pieces += 1;
        this.node.content += piece;
        this.phase = "streaming";
        this.onChange(this);
      },
    });
  }

  finish({ reason, usage, model }) {
    this.node.state = "done";
    this.node.reason = reason ?? "stop";
    if (model) this.node.model = model;
    this.measure(usage);
  }

  measure(usage) {
    const figures = {};
    if (Number.isFinite(usage?.prompt_tokens)) figures.prompt = usage.prompt_tokens;
    if (Number.isFinite(usage?.completion_tokens)) figures.completion = usage.completion_tokens;
    if (this.firstAt !== null) figures.first = (this.firstAt - this.sentAt) / 1000;
    const tokens = figures.completion ?? this.pieces;
    const span = this.span();
    if (tokens > 1 && span >= LEAST_SPAN_S) figures.rate = (tokens - 1) / span;
    this.node.figures = figures;
  }

  /** How it ended, to be said aloud. */
  get ending() {
    const { state, reason, figures = {} } = this.node;
    if (state === "stopped") return "Stopped.";
    if (state !== "done") return reason;
    const rate = figures.rate ? `, ${Math.round(figures.rate)} tokens per second` : "";
    return figures.completion ? `Answer complete: ${figures.completion} tokens${rate}.` : "Answer complete.";
  }

  span() {
    return this.firstAt === null ? 0 : (this.lastAt - this.firstAt) / 1000;
  }

  /** Tokens/s so far: pieces are tokens for most tokenizers and answers, the figure at the end counts exactly. */
  get rate() {
    const span = this.span();
    return this.pieces > 2 && span >= LEAST_SPAN_S ? (this.pieces - 1) / span : null;
  }

  /** Seconds until a busy server is asked again. */
  get held() {
    return Math.max(1, Math.ceil((this.heldUntil - Date.now()) / 1000));
  }

  /** Wait out Retry-After, telling once a second; false when stopped. */
  async hold(seconds) {
    this.waits += 1;
    this.phase = "held";
    this.heldUntil = Date.now() + seconds * 1000;
    const tick = setInterval(() => this.onChange(this), 1000);
    this.onChange(this);
    await new Promise((resolve) => {
      this.wake = resolve;
      setTimeout(resolve, seconds * 1000);
    });
    clearInterval(tick);
    return !this.stopped;
  }

  /** Ask a busy server again at once. */
  hurry() {
    this.wake?.();
  }

  stop() {
    this.stopped = true;
    this.controller.abort();
    this.wake?.();
  }
}
