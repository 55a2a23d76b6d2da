// Conversations live in IndexedDB. A change is also written to localStorage until IndexedDB confirms it, and an answer
// that is arriving several times a second, because that write is done when it returns: a reload, a crash or a closed
// tab (which abort what IndexedDB has begun) loses nothing that was shown.

import { newId } from "./dom.js";
import { nodeById } from "./conversation.js";
import { baseOf, givenBase, keepBase, take } from "./merge.js";

const DATABASE = "mlcrt";
const TABLE = "conversations";
const LIVE = "mlcrt.live."; // + tab: the answers that a tab is receiving
const TAB = "mlcrt.tab";
const PENDING = "mlcrt.pending."; // + tab + "." + id: a change that IndexedDB has not confirmed
export const STALE_MS = 8_000; // a record of another tab that is older belongs to a tab that is gone

function asPromise(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
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
  /**
   * `onChange(id)`: another tab saved or deleted this conversation. `running(id)`: the id of the answer to it that this
   * tab is receiving, or null.
   */
  constructor(onChange, running) {
    this.running = running;
    this.memory = null; // id → conversation, when there is no IndexedDB
    this.database = null;
    this.changes = new Map(); // id → the last change of it by this tab, while it is not confirmed
    this.tab = session.get(TAB) ?? newId();
    this.back();
    this.begun = false; // records of this tab are of its life before the reload
    this.channel = "BroadcastChannel" in window ? new BroadcastChannel("mlcrt") : null;
    if (this.channel) this.channel.onmessage = ({ data }) => typeof data === "string" && onChange(data);
  }

  /** The name of the tab is for its next page only: the copy that a duplicated tab starts with must not hold it. */
  leave() {
    session.set(TAB, this.tab);
  }

  back() {
    session.set(TAB, null);
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

  /** Conversations as they are stored, which what they are taken into is told of (take). */
  async all() {
    const found = this.memory ? [...this.memory.values()] : await asPromise(this.table("readonly").getAll());
    for (const conversation of found) keepBase(conversation, baseOf(conversation));
    return found.sort((a, b) => b.updated - a.updated);
  }

  /** One of them or null; not while changes by this tab are on their way. */
  async get(id) {
    let found;
    do {
      await this.changes.get(id);
      found = (this.memory ? this.memory.get(id) : await asPromise(this.table("readonly").get(id))) ?? null;
    } while (this.changes.has(id));
    if (found) keepBase(found, baseOf(found));
    return found;
  }

  /** `mine`, a conversation of this tab, gets what `stored` has of other tabs. */
  take(mine, stored) {
    take(mine, stored, this.running(mine.id));
  }

  put(conversation) {
    return this.change(conversation.id, conversation);
  }

  delete(id) {
    return this.change(id, null);
  }

  /** `conversation`: null deletes. */
  async change(id, conversation) {
    const key = `${PENDING}${this.tab}.${id}`;
    const base = conversation && givenBase(conversation);
    const record = JSON.stringify({ tab: this.tab, at: Date.now(), id, conversation, base });
    if (!this.memory && !local.set(key, record)) local.set(key, null); // no room: an older change must not come back instead
    const written = this.write(id, conversation);
    const over = written.catch(() => {}).then(() => this.changes.get(id) === over && this.changes.delete(id));
    this.changes.set(id, over);
    await written;
    if (local.get(key) === record) local.set(key, null); // else a later change of it is on its way
    if (!this.memory) this.channel?.postMessage(id);
  }

  async write(id, conversation) {
    let base = null;
    await this.update(id, (stored) => {
      if (stored && conversation && !this.memory) this.take(conversation, stored);
      base = conversation && baseOf(conversation);
      return conversation;
    });
    if (conversation) keepBase(conversation, base);
  }

  /** Store what `change(stored, or null)` gives, with no other change between; null deletes, undefined leaves it. */
  update(id, change) {
    return new Promise((resolve, reject) => {
      if (this.memory) {
        const next = change(this.memory.get(id) ?? null);
        if (next) this.memory.set(id, structuredClone(next));
        else if (next === null) this.memory.delete(id);
        resolve();
        return;
      }
      const table = this.table("readwrite");
      const { transaction } = table;
      transaction.oncomplete = () => resolve(); // requests succeed before that
      transaction.onabort = () => reject(transaction.error);
      table.get(id).onsuccess = ({ target }) => {
        try {
          const next = change(target.result ?? null);
          if (next) table.put(next);
          else if (next === null) table.delete(id);
          transaction.commit?.();
        } catch (error) {
          reject(error);
          transaction.abort();
        }
      };
    });
  }

  /** Write down what this tab is receiving: [{conversation, node, content}]. `leaving`: it will receive no more. */
  keepLive(answers, leaving = false) {
    local.set(LIVE + this.tab, answers.length ? JSON.stringify({ at: leaving ? 0 : Date.now(), answers }) : null);
  }

  /** True when this record, {at}, is of a tab that may be alive or may have crashed just now. */
  inUse(record, tab) {
    if (tab === this.tab) return this.begun;
    return Boolean(record) && Date.now() - record.at < STALE_MS;
  }

  /**
   * Do what a reload or a crash kept from being done. `ids`: conversations that were changed so. `unsure`: there are
   * records of other tabs that may be alive.
   */
  async recover() {
    const out = { ids: new Set(), unsure: false };
    for (const [prefix, one] of [[PENDING, this.recoverChange], [LIVE, this.recoverAnswers]]) {
      for (const key of local.keys()) {
        if (!key.startsWith(prefix)) continue;
        const record = parsed(local.get(key));
        const tab = key.slice(prefix.length).split(".")[0];
        if (this.inUse(record, tab)) {
          out.unsure ||= tab !== this.tab;
          continue;
        }
        try {
          if (record) for (const id of await one.call(this, record)) out.ids.add(id);
          local.set(key, null);
        } catch {
          // the browser's storage is full or damaged: tried again at the next start
        }
      }
    }
    this.begun = true;
    for (const id of out.ids) this.channel?.postMessage(id);
    return out;
  }

  async recoverChange({ id, at, conversation, base }) {
    if (this.memory) return [];
    if (conversation) keepBase(conversation, base);
    await this.update(id, (stored) => {
      const newer = stored?.updated > at; // by a tab that did not see this one
      if (!conversation) return newer ? undefined : null;
      if (!stored) return conversation;
      const [first, second] = newer ? [stored, conversation] : [conversation, stored];
      take(first, second);
      return first;
    });
    return [id];
  }

  /** Put answers that were cut off into their conversations, as "interrupted". */
  async recoverAnswers({ answers }) {
    for (const { conversation, node: nodeId, content } of answers) {
      await this.update(conversation, (stored) => {
        const node = stored && nodeById(stored, nodeId);
        if (!node || node.state !== "streaming") return undefined;
        if (content.length > node.content.length) node.content = content;
        node.state = "interrupted";
        return stored;
      });
    }
    return answers.map(({ conversation }) => conversation);
  }
}
