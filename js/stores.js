// Where a worker keeps what it has begun and done, until the colony has acknowledged it. A store is
// {set(id, value), delete(id), entries()}, each of them async; values are plain JSON.

/** Forgets with the program. */
export class MemoryStore {
  #kept = new Map();

  async set(id, value) {
    this.#kept.set(id, value);
  }

  async delete(id) {
    this.#kept.delete(id);
  }

  async entries() {
    return [...this.#kept];
  }
}

/** In `sessionStorage` or `localStorage` of a page. One worker to a prefix. */
export class WebStore {
  constructor(storage, prefix = "colonyd:") {
    this.storage = storage;
    this.prefix = prefix;
  }

  async set(id, value) {
    this.storage.setItem(this.prefix + id, JSON.stringify(value));
  }

  async delete(id) {
    this.storage.removeItem(this.prefix + id);
  }

  async entries() {
    const keys = Array.from({ length: this.storage.length }, (_, at) => this.storage.key(at));
    return keys
      .filter((key) => key.startsWith(this.prefix))
      .map((key) => [key.slice(this.prefix.length), JSON.parse(this.storage.getItem(key))]);
  }
}

/** In IndexedDB, which pages and service workers have. One worker to a name. */
export class IndexedStore {
  #opened = null;

  constructor(name = "colonyd") {
    this.name = name;
  }

  async #table(mode, act) {
    this.#opened ??= new Promise((resolve, reject) => {
      const asked = indexedDB.open(this.name, 1);
      asked.onupgradeneeded = () => asked.result.createObjectStore("results");
      asked.onsuccess = () => resolve(asked.result);
      asked.onerror = () => reject(asked.error);
    });
    const transaction = (await this.#opened).transaction("results", mode);
    const done = act(transaction.objectStore("results"));
    return new Promise((resolve, reject) => {
      transaction.oncomplete = () => resolve(done);
      transaction.onerror = transaction.onabort = () => reject(transaction.error);
    });
  }

  async set(id, value) {
    await this.#table("readwrite", (table) => table.put(value, id));
  }

  async delete(id) {
    await this.#table("readwrite", (table) => table.delete(id));
  }

  async entries() {
    const [ids, values] = await this.#table("readonly", (table) => [table.getAllKeys(), table.getAll()]);
    return ids.result.map((id, at) => [id, values.result[at]]);
  }
}
