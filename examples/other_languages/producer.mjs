// Adds tasks and reads their results from Node, with ioredis; see docs/format.md.
//
// It needs ioredis (npm ci, beside this file), enqueue.lua and watch.lua here or in the folder SCRIPTS
// (redistq script enqueue > enqueue.lua; redistq script watch > watch.lua), and a worker with handlers
// named double, add and broken. Node 20.11 or newer.
import { randomUUID } from "node:crypto";
import { readFileSync } from "node:fs";
import Redis from "ioredis";

const SETTLED = ["succeeded", "failed", "cancelled", "expired"];

export class Producer {
  constructor(url, { queue = "tasks", group = "workers", scripts = import.meta.dirname } = {}) {
    this.queue = queue;
    this.group = group;
    this.redis = new Redis(url);
    this.listener = new Redis(url); // for reads that wait
    this.inbox = `node-${randomUUID()}`; // where the ends of our tasks are told; ours alone
    this.waiting = new Map();
    const lua = (name) => readFileSync(`${scripts}/${name}.lua`, "utf8");
    // ioredis calls them by their SHA1, and sends the text where the server does not know it.
    this.redis.defineCommand("enqueueTask", { numberOfKeys: 3, lua: lua("enqueue") });
    this.redis.defineCommand("watchTask", { numberOfKeys: 3, lua: lua("watch") });
  }

  // Adds a task and returns its id; of an id that is known already nothing is added.
  async add(name, payload, { id = randomUUID(), delay = null, ...options } = {}) {
    const opts = JSON.stringify({ ...options, inbox: this.inbox });
    const due = delay === null ? "" : `+${Math.round(1000 * delay)}`;
    const refused = await this.redis.enqueueTask(
      this.queue, `delayed:${this.queue}`, `task:${this.queue}:`,
      `wake:${this.queue}`, id, name, JSON.stringify(payload), opts, due,
    );
    if (Array.isArray(refused[0])) throw new Error(`task ${id} was not stored: ${refused[0][1]}`);
    return id;
  }

  // Returns the result of a task as soon as it is there; throws the error of one that failed.
  async result(id) {
    const ended = new Promise((resolve) => this.waiting.set(id, resolve));
    this.listening ??= this.#listen();
    // How it stands, and where its end is to be told, in one step: none is missed.
    const [state, flat] = await this.redis.watchTask(
      this.queue, `task:${this.queue}:`, `waiters:${this.queue}`, this.group, id, this.inbox,
    );
    if (state === "unknown") throw new Error(`there is no task ${id}`);
    let record = SETTLED.includes(state) ? fields(flat) : await ended;
    this.waiting.delete(id);
    if (record.body === undefined && record.result === undefined) {
      record = await this.redis.hgetall(`task:${this.queue}:${id}`); // too large for an inbox
    }
    const body = record.body ?? record.result ?? record.error ?? record.reason;
    if (record.state === "succeeded") return JSON.parse(body);
    if (record.state !== "failed") throw new Error(`task ${id} ${record.state}: ${body}`);
    const { type, message } = JSON.parse(body);
    throw Object.assign(new Error(message), { name: type });
  }

  async #listen() {
    const key = `inbox:${this.queue}:${this.inbox}`;
    for (let last = "0-0"; ; ) {
      let found;
      try {
        found = await this.listener.xread("BLOCK", 5000, "STREAMS", key, last);
      } catch (error) {
        if (this.closed) return;
        throw error;
      }
      for (const [entry, flat] of found?.[0][1] ?? []) {
        last = entry;
        const note = fields(flat);
        this.waiting.get(note.id)?.(note);
      }
    }
  }

  close() {
    this.closed = true;
    this.listener.disconnect();
    this.redis.disconnect();
  }
}

const fields = (flat) =>
  Object.fromEntries(flat.flatMap((name, i) => (i % 2 ? [] : [[name, flat[i + 1]]])));

if (process.argv[1] === import.meta.filename) {
  const producer = new Producer(process.env.REDISTQ_URL, { scripts: process.env.SCRIPTS });
  const id = await producer.add("double", 21);
  console.log("now:", await producer.result(id));
  const later = await producer.add("double", "later ", { delay: 0.3, retries: 2 });
  console.log("later:", await producer.result(later));
  await producer.add("double", "never", { id }); // known: nothing is added
  console.log("again:", await producer.result(id));
  const large = await producer.add("double", "x".repeat(20_000));
  console.log("large:", (await producer.result(large)).length);
  const sum = await producer.add("add", { args: [2], kwargs: { b: 3 } }); // it takes arguments
  console.log("arguments:", await producer.result(sum));
  const broken = await producer.add("broken", { why: "no such customer" });
  await producer.result(broken).catch((error) => console.log("error:", `${error.name}: ${error.message}`));
  producer.close();
}
