// Conversations live in IndexedDB. A change is also written to localStorage until IndexedDB confirms it, and an answer
// that is arriving several times a second, because that write is done when it returns: a reload, a crash or a closed
// tab (which abort what IndexedDB has begun) loses nothing that was shown.

import { newId } from "./dom.js";
import { nodeById } from "./conversation.js";

const DATABASE = "mlcrt";
const TABLE = "conversations";
const LIVE = "mlcrt.live."; // + tab: the answers that a tab is receiving
const PENDING = "mlcrt.pending."; // + tab + id: a change that IndexedDB has not confirmed
export const STALE_MS = 8_000; // a record of another tab that is older belongs to a tab that is gone

function asPromise(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

/** When all of a transaction is kept; its requests succeed before that. */
function committed(transaction) {
  return new Promise((resolve, reject) => {
    transaction.oncomplete = () => resolve();
    transaction.onabort = () => reject(transaction.error);
  });
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null; // damaged: nothing can be taken from it
  }
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

  put(conversation) {
    return this.change(conversation.id, conversation);
  }

  delete(id) {
    return this.change(id, null);
  }

  /** `conversation`: null deletes. */
  async change(id, conversation) {
    if (this.memory) {
      if (conversation) this.memory.set(id, structuredClone(conversation));
      else this.memory.delete(id);
    } else {
      const key = `${PENDING}${this.tab}.${id}`;
      const record = JSON.stringify({ tab: this.tab, at: Date.now(), id, conversation });
      if (!local.set(key, record)) local.set(key, null); // no room: an older change must not come back instead
      await this.write(id, conversation);
      if (local.get(key) === record) local.set(key, null); // else a later change of it is on its way
    }
    this.channel?.postMessage(id);
  }

  write(id, conversation) {
    const table = this.table("readwrite");
    const done = committed(table.transaction);
    if (conversation) table.put(conversation);
    else table.delete(id);
    return done;
  }

  /** Write down what this tab is receiving: [{conversation, node, content}]. `leaving`: it will receive no more. */
  keepLive(answers, leaving = false) {
    local.set(LIVE + this.tab, answers.length ? JSON.stringify({ at: leaving ? 0 : Date.now(), answers }) : null);
  }

  /** True when this record, {tab, at}, is of another tab that may be alive or may have crashed just now. */
  inUse(record, tab) {
    return Boolean(record) && tab !== this.tab && Date.now() - record.at < STALE_MS;
  }

  /** Do what a reload or a crash kept from being done. True when there are records of tabs that may be alive. */
  async recover() {
    const pending = await this.recoverChanges();
    const live = await this.recoverAnswers(); // into conversations that may be among the changes
    return pending || live;
  }

  async recoverChanges() {
    let unsure = false;
    for (const key of local.keys()) {
      if (!key.startsWith(PENDING)) continue;
      const record = parsed(local.get(key));
      if (this.inUse(record, record?.tab)) {
        unsure = true;
        continue;
      }
      try {
        const newer = record && (await this.get(record.id))?.updated > record.at; // by a tab that did not see this one
        if (record && !newer && !this.memory) await this.write(record.id, record.conversation);
        local.set(key, null);
      } catch {
        // the browser's storage is full or damaged: tried again at the next start
      }
    }
    return unsure;
  }

  /** Put answers that were cut off into their conversations, as "interrupted". */
  async recoverAnswers() {
    let unsure = false;
    for (const key of local.keys()) {
      if (!key.startsWith(LIVE)) continue;
      const record = parsed(local.get(key));
      if (this.inUse(record, key.slice(LIVE.length))) {
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
