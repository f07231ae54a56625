// The broker, as this page speaks with it: the key, requests, problems, and a job as it happens.

const KEY = "reelbroker-key";

export const key = {
  /** Whether something can be a key: what is pasted may have picked up what no header can carry. */
  isOne: (/** @type {string} */ value) => /^[\x21-\x7e]+$/.test(value),
  get: () => localStorage.getItem(KEY) ?? "",
  set: (/** @type {string} */ value) => localStorage.setItem(KEY, value),
};

/** What the broker refused: its problem document. `status` 0: it could not be reached. */
export class Problem extends Error {
  /**
   * @param {number} status
   * @param {{errors?: Objection[], detail?: string}} document
   */
  constructor(status, document) {
    const errors = document.errors ?? [];
    super(
      errors.map(({ detail }) => detail).join("; ") ||
        document.detail ||
        `The broker answered ${status}.`,
    );
    this.status = status;
    this.errors = errors;
  }
}

/** Whether an error is a refusal with one of these statuses. */
export const refusedWith = (/** @type {unknown} */ error, /** @type {number[]} */ ...statuses) =>
  error instanceof Problem && statuses.includes(error.status);

/** What an error says. */
export const saying = (/** @type {unknown} */ error) =>
  error instanceof Error ? error.message : String(error);

const headers = (/** @type {Record<string, string> | undefined} */ more) =>
  key.get() ? { Authorization: `Bearer ${key.get()}`, ...more } : { ...more };

/** The address of one of the broker's paths: a proxy may serve them, and the page, below one. */
export const address = (/** @type {string} */ path) => new URL(`.${path}`, document.baseURI).href;

/**
 * Sends a request and returns the answer; raises Problem.
 * @param {string} method
 * @param {string} path
 * @param {{body?: unknown, headers?: Record<string, string>, signal?: AbortSignal}} options
 */
export async function send(method, path, { body, headers: more, signal } = {}) {
  const sent =
    body === undefined ? headers(more) : headers({ "Content-Type": "application/json", ...more });
  let reply;
  try {
    const content = body === undefined ? undefined : JSON.stringify(body);
    reply = await fetch(address(path), { method, headers: sent, body: content, signal });
  } catch (error) {
    if (error instanceof DOMException && error.name === "AbortError") throw error;
    throw new Problem(0, { detail: "The broker cannot be reached." });
  }
  if (!reply.ok && reply.status !== 304) {
    throw new Problem(reply.status, await reply.json().catch(() => ({})));
  }
  return reply;
}

/**
 * As `send`, and returns the answer's JSON.
 * @param {string} method
 * @param {string} path
 * @param {Parameters<typeof send>[2]} [options]
 * @returns {Promise<any>}
 */
export const ask = async (method, path, options) => {
  const reply = await send(method, path, options);
  return reply.status === 204 ? null : reply.json();
};

/** A presigned URL of one of the user's own objects. */
export const objectUrl = async (/** @type {string} */ objectKey) => {
  const path = `/api/storage/presigned-url?key=${encodeURIComponent(objectKey)}`;
  return /** @type {string} */ ((await ask("GET", path)).url);
};

export const sleep = (/** @type {number} */ ms, /** @type {AbortSignal} */ signal) =>
  new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener(
      "abort",
      () => (clearTimeout(timer), reject(new DOMException("", "AbortError"))),
      { once: true },
    );
  });

/** A proxy that holds a stream back does so for longer. */
const FIRST_FRAME_MS = 8000;
/** The broker says something at least every 15 s. */
const SILENCE_MS = 40000;
const TRIES = 3;

/**
 * Follows a job until its end, whatever happens to the line: over the event stream, and by polling
 * where streams do not come through. Events come in order, each once.
 *
 * `onevent` is called with each event, `onjob` with the whole job while polling, and `online`
 * whenever the state of the line changes.
 *
 * @typedef {{
 *   onevent: (event: JobEvent) => void,
 *   onjob: (job: Job) => void,
 *   online: (line: Line) => void,
 *   signal: AbortSignal,
 * }} Follower
 *
 * @param {string} id
 * @param {Follower} follower
 */
export async function follow(id, { onevent, onjob, online, signal }) {
  let seen = 0;
  let failures = 0;
  const heard = () => {
    failures = 0;
    online("live");
  };
  const take = (/** @type {JobEvent} */ event) => {
    if (event.seq <= seen) return false;
    seen = event.seq;
    onevent(event);
    return ended(event.changes.status);
  };
  const passing = (/** @type {unknown} */ error) => {
    if (signal.aborted || refusedWith(error, 401, 404)) throw error;
    failures += 1;
    return false;
  };
  const streamed = () =>
    stream(id, seen, {
      take,
      heard,
      signal,
      patience: failures < TRIES ? FIRST_FRAME_MS : FIRST_FRAME_MS / 4,
    });
  try {
    while (!(await streamed().catch(passing))) {
      const before = failures;
      // Perhaps it is streams alone that do not come through. In the end, they are asked once more
      // for what happened meanwhile.
      if (failures >= TRIES && (await poll(id, onjob, online, signal).catch(passing))) {
        return await streamed().catch(passing);
      }
      if (failures >= TRIES && failures === before) continue;
      online("away");
      await sleep(Math.min(8000, 300 * 2 ** failures) * (0.75 + Math.random() / 2), signal);
    }
  } catch (error) {
    if (!signal.aborted) throw error;
  }
}

export const ended = (/** @type {Status | undefined} */ status) =>
  status === "complete" || status === "error" || status === "cancelled";

/**
 * Reads server-sent events with `fetch`, which can send the key; returns whether the job has ended.
 * @param {string} id
 * @param {number} after the number of the last event that is known
 * @param {{
 *   take: (event: JobEvent) => boolean,
 *   heard: () => void,
 *   signal: AbortSignal,
 *   patience: number,
 * }} options
 */
async function stream(id, after, { take, heard, signal, patience }) {
  const quiet = new AbortController();
  const stop = () => quiet.abort();
  signal.addEventListener("abort", stop, { once: true });
  let watchdog = setTimeout(stop, patience);
  try {
    const reply = await send("GET", `/api/jobs/${id}/events?after=${after}`, {
      signal: quiet.signal,
    });
    if (reply.status === 204) return true;
    if (reply.body === null) throw new Error("the stream has no body");
    const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) throw new Error("the stream ended before the job");
      heard();
      clearTimeout(watchdog);
      watchdog = setTimeout(stop, SILENCE_MS);
      const frames = (rest + value).split("\n\n");
      rest = frames.pop() ?? "";
      for (const frame of frames) {
        const data = frame
          .split("\n")
          .filter((line) => line.startsWith("data:"))
          .map((line) => line.slice(5).trimStart());
        if (data.length && take(JSON.parse(data.join("\n")))) return true;
      }
    }
  } finally {
    clearTimeout(watchdog);
    signal.removeEventListener("abort", stop);
    quiet.abort();
  }
}

/**
 * Asks for the job a few times, each time waiting for a change; returns whether it has ended.
 * @param {string} id
 * @param {Follower["onjob"]} onjob
 * @param {Follower["online"]} online
 * @param {AbortSignal} signal
 */
async function poll(id, onjob, online, signal) {
  let etag = null;
  for (let turn = 0; turn < 10; turn += 1) {
    const reply = await send("GET", `/api/jobs/${id}`, {
      headers: etag ? { "If-None-Match": etag, Prefer: "wait=20" } : {},
      signal,
    });
    online("polling");
    if (reply.status === 304) continue;
    etag = reply.headers.get("ETag");
    const job = await reply.json();
    onjob(job);
    if (ended(job.status)) return true;
    await sleep(500, signal);
  }
  return false;
}

/** A UUID; `crypto.randomUUID` is there on https and on this machine only. */
export function uuid() {
  const random = crypto.getRandomValues(new Uint8Array(16));
  random[6] = (random[6] & 15) | 64;
  random[8] = (random[8] & 63) | 128;
  const hex = Array.from(random, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, "$1-$2-$3-$4-$5");
}
