// Conversations live in IndexedDB. An answer that is arriving is also written to localStorage several times a second,
// because that write is done when it returns: a reload, a crash or a closed tab loses nothing that was shown.

import { newId } from "./dom.js";
import { nodeById } from "./conversation.js";

const DATABASE = "mlcrt";
const TABLE = "conversations";
const LIVE = "mlcrt.live."; // + tab: the answers that a tab is receiving
export const STALE_MS = 8_000; // a live record of another tab that is older belongs to a tab that is gone

function asPromise(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

/** Storage that may be missing altogether (blocked cookies, private windows): then reads give null, writes false. */
function guarded(storage) {
  return {
    get(key) {
      try {
        return window[storage].getItem(key);
      } catch {
        return null;
      }
    },
    set(key, value) {
      try {
        if (value === null) window[storage].removeItem(key);
        else window[storage].setItem(key, value);
        return true;
      } catch {
        return false;
      }
    },
    keys() {
      try {
        return Object.keys(window[storage]);
      } catch {
        return [];
      }
    },
  };
}

export const local = guarded("localStorage");
export const session = guarded("sessionStorage");

export class Store {
  /** `onChange(id)`: another tab saved or deleted this conversation. */
  constructor(onChange) {
    this.memory = null; // id → conversation, when there is no IndexedDB
    this.database = null;
    this.tab = session.get("mlcrt.tab") ?? newId();
    session.set("mlcrt.tab", this.tab);
    this.channel = "BroadcastChannel" in window ? new BroadcastChannel("mlcrt") : null;
    if (this.channel) this.channel.onmessage = ({ data }) => typeof data === "string" && onChange(data);
  }

  /** True when conversations will be kept, false when they end with the tab. */
  async open() {
    try {
      const request = indexedDB.open(DATABASE, 1);
      request.onupgradeneeded = () => request.result.createObjectStore(TABLE, { keyPath: "id" });
      this.database = await asPromise(request);
      this.database.onversionchange = () => this.database.close();
    } catch {
      this.memory = new Map();
    }
    return this.memory === null;
  }

  table(mode) {
    return this.database.transaction(TABLE, mode).objectStore(TABLE);
  }

  async all() {
    const found = this.memory ? [...this.memory.values()] : await asPromise(this.table("readonly").getAll());
    return found.sort((a, b) => b.updated - a.updated);
  }

  async get(id) {
    return (this.memory ? this.memory.get(id) : await asPromise(this.table("readonly").get(id))) ?? null;
  }

  async put(conversation) {
    if (this.memory) this.memory.set(conversation.id, structuredClone(conversation));
    else await asPromise(this.table("readwrite").put(conversation));
    this.channel?.postMessage(conversation.id);
  }

  async delete(id) {
    if (this.memory) this.memory.delete(id);
    else await asPromise(this.table("readwrite").delete(id));
    this.channel?.postMessage(id);
  }

  /** Write down what this tab is receiving: [{conversation, node, content}]. `leaving`: it will receive no more. */
  keepLive(answers, leaving = false) {
    local.set(LIVE + this.tab, answers.length ? JSON.stringify({ at: leaving ? 0 : Date.now(), answers }) : null);
  }

  /**
   * Put answers that a reload or a crash cut off into their conversations, as "interrupted". True when there are some
   * of a tab that may be alive or may have crashed just now.
   */
  async recover() {
    let unsure = false;
    for (const key of local.keys()) {
      if (!key.startsWith(LIVE)) continue;
      let record = null;
      try {
        record = JSON.parse(local.get(key));
      } catch {
        // damaged: nothing can be taken from it
      }
      if (record && key !== LIVE + this.tab && Date.now() - record.at < STALE_MS) {
        unsure = true;
        continue;
      }
      for (const { conversation: id, node: nodeId, content } of record?.answers ?? []) {
        const conversation = await this.get(id);
        const node = conversation && nodeById(conversation, nodeId);
        if (!node || node.state !== "streaming") continue;
        if (content.length > node.content.length) node.content = content;
        node.state = "interrupted";
        await this.put(conversation);
      }
      local.set(key, null);
    }
    return unsure;
  }
}
