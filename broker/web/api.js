// The broker, as this page speaks with it: the key, requests, problems, and a job as it happens.

const KEY = "reelbroker-key";

export const key = {
  /** Whether something can be a key: what is pasted may have picked up what no header can carry. */
  isOne: (value) => /^[\x21-\x7e]+$/.test(value),
  get: () => localStorage.getItem(KEY) ?? "",
  set: (value) => localStorage.setItem(KEY, value),
};

/** What the broker refused: its problem document. `status` 0: it could not be reached. */
export class Problem extends Error {
  constructor(status, document) {
    const errors = document.errors ?? [];
    super(errors.map(({ detail }) => detail).join("; ") || document.detail || `The broker answered ${status}.`);
    Object.assign(this, { status, errors });
  }
}

const headers = (more) => (key.get() ? { Authorization: `Bearer ${key.get()}`, ...more } : { ...more });

/** The address of one of the broker's paths: a proxy may serve them, and the page, below one. */
export const address = (path) => new URL(`.${path}`, document.baseURI).href;

/** Sends a request and returns the answer; raises Problem. */
export async function send(method, path, { body, headers: more, signal } = {}) {
  const sent = body === undefined ? headers(more) : headers({ "Content-Type": "application/json", ...more });
  let reply;
  try {
    const content = body === undefined ? undefined : JSON.stringify(body);
    reply = await fetch(address(path), { method, headers: sent, body: content, signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, { detail: "The broker cannot be reached." });
  }
  if (!reply.ok && reply.status !== 304) throw new Problem(reply.status, await reply.json().catch(() => ({})));
  return reply;
}

/** As `send`, and returns the answer's JSON. */
export const ask = async (method, path, options) => {
  const reply = await send(method, path, options);
  return reply.status === 204 ? null : reply.json();
};

/** A presigned URL of one of the user's own objects. */
export const objectUrl = async (objectKey) => (await ask("GET", `/api/storage/presigned-url?key=${encodeURIComponent(objectKey)}`)).url;

export const sleep = (ms, signal) =>
  new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, ms);
    signal?.addEventListener("abort", () => (clearTimeout(timer), reject(new DOMException("", "AbortError"))), { once: true });
  });

const FIRST_FRAME_MS = 8000; // a proxy that holds a stream back does so for longer
const SILENCE_MS = 40000; // the broker says something at least every 15 s
const TRIES = 3;

/**
 * Follows a job until its end, whatever happens to the line: over the event stream, and by polling where streams do not come
 * through. Events come in order, each once.
 *
 * @param onevent called with each event: {seq, at, kind, changes}
 * @param onjob called with the whole job, while polling
 * @param online called with "live", "polling" or "away" whenever that changes
 */
export async function follow(id, { onevent, onjob, online, signal }) {
  let seen = 0;
  let failures = 0;
  const heard = () => {
    failures = 0;
    online("live");
  };
  const take = (event) => {
    if (event.seq <= seen) return false;
    seen = event.seq;
    onevent(event);
    return ended(event.changes.status);
  };
  const passing = (error) => {
    if (signal.aborted || [401, 404].includes(error.status)) throw error;
    failures += 1;
    return false;
  };
  const streamed = () => stream(id, seen, { take, heard, signal, patience: failures < TRIES ? FIRST_FRAME_MS : FIRST_FRAME_MS / 4 });
  try {
    while (!(await streamed().catch(passing))) {
      const before = failures;
      // Perhaps it is streams alone that do not come through. In the end, they are asked once more for what happened meanwhile.
      if (failures >= TRIES && (await poll(id, onjob, online, signal).catch(passing))) return await streamed().catch(passing);
      if (failures >= TRIES && failures === before) continue;
      online("away");
      await sleep(Math.min(8000, 300 * 2 ** failures) * (0.75 + Math.random() / 2), signal);
    }
  } catch (error) {
    if (!signal.aborted) throw error;
  }
}

export const ended = (status) => ["complete", "error", "cancelled"].includes(status);

/** Reads server-sent events with `fetch`, which can send the key; returns whether the job has ended. */
async function stream(id, after, { take, heard, signal, patience }) {
  const quiet = new AbortController();
  const stop = () => quiet.abort();
  signal.addEventListener("abort", stop, { once: true });
  let watchdog = setTimeout(stop, patience);
  try {
    const reply = await send("GET", `/api/jobs/${id}/events?after=${after}`, { signal: quiet.signal });
    if (reply.status === 204) return true;
    const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) throw new Error("the stream ended before the job");
      heard();
      clearTimeout(watchdog);
      watchdog = setTimeout(stop, SILENCE_MS);
      const frames = (rest + value).split("\n\n");
      rest = frames.pop();
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

/** Asks for the job a few times, each time waiting for a change; returns whether it has ended. */
async function poll(id, onjob, online, signal) {
  let etag = null;
  for (let turn = 0; turn < 10; turn += 1) {
    const reply = await send("GET", `/api/jobs/${id}`, { headers: etag ? { "If-None-Match": etag, Prefer: "wait=20" } : {}, signal });
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
