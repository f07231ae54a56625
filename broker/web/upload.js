// A file on its way into the bucket: straight there, in parts when it is large, and on from where
// it was after a cut line.

import { ask, refusedWith, saying, send, sleep } from "./api.js";

/** @type {Record<string, string>} */
const TYPES = {
  mp4: "video/mp4",
  m4v: "video/x-m4v",
  mov: "video/quicktime",
  webm: "video/webm",
  mkv: "video/x-matroska",
  avi: "video/x-msvideo",
  ts: "video/mp2t",
};
const AT_ONCE = 3;
const TRIES = 5;
/** As many as the broker names at once. */
const PARTS_AT_ONCE = 100;

/** Returns why a file cannot be a video to export, or null. */
export function refusal(/** @type {File} */ file) {
  if (!typeOf(file)) return `${file.name} is not a video. Choose an MP4, MOV, MKV or WebM file.`;
  if (file.size === 0) return `${file.name} is empty.`;
  return null;
}

function typeOf(/** @type {File} */ file) {
  if (/^video\/[a-z0-9.+-]{1,64}$/.test(file.type)) return file.type;
  const ending = file.name.slice(file.name.lastIndexOf(".") + 1);
  return file.type ? undefined : TYPES[ending.toLowerCase()];
}

/**
 * Uploads that go on in this page: the same file twice is two uploads.
 * @type {Set<string>}
 */
const underWay = new Set();

export class Upload {
  /**
   * @param {File} file
   * @param {(upload: Upload) => void} onchange called whenever `state`, `key`, `sent` or `error`
   *   change
   */
  constructor(file, onchange) {
    this.file = file;
    this.onchange = onchange;
    /** @type {"sending" | "done" | "failed"} */
    this.state = "sending";
    this.sent = 0;
    /** @type {string | null} */
    this.error = null;
    /** @type {string | null} */
    this.key = null;
    /** @type {string | null} */
    this.id = null;
    this.arrived = 0;
    this.isUnwanted = false;
    this.memory = `reelbroker-upload ${file.name} ${file.size} ${file.lastModified}`;
    this.cut = new AbortController();
    // Once whoever made us knows us.
    queueMicrotask(() => this.run());
  }

  /** Sends what has not arrived yet. */
  async run() {
    const { signal } = this.cut;
    this.change({ state: "sending", error: null });
    try {
      const ticket = await this.ticket();
      this.id = ticket.upload_id;
      underWay.add(ticket.upload_id);
      if (!signal.aborted) localStorage.setItem(this.memory, ticket.upload_id);
      signal.throwIfAborted();
      this.change({ key: ticket.video_key });
      await this.transfer(ticket);
      await ask("POST", `/api/videos/uploads/${this.id}/complete`, { signal });
      localStorage.removeItem(this.memory);
      this.change({ state: "done", sent: this.file.size });
    } catch (error) {
      if (!signal.aborted) this.change({ state: "failed", error: saying(error) });
      else if (this.isUnwanted) this.drop();
    }
  }

  /** Stops; what has arrived stays, for when the same file is chosen again. */
  stop() {
    this.cut.abort();
    if (this.id !== null) underWay.delete(this.id);
  }

  /** Stops, and has what arrived removed. */
  abandon() {
    this.isUnwanted = true;
    this.stop();
    localStorage.removeItem(this.memory);
    if (this.id && this.state !== "done") this.drop();
  }

  async drop() {
    // Where that fails, the broker's sweep has it.
    await send("DELETE", `/api/videos/uploads/${this.id}`).catch(() => {});
  }

  /**
   * An upload of the same file that was begun before, also before the page was loaded anew, or a
   * new one.
   * @returns {Promise<Ticket>}
   */
  async ticket() {
    const remembered = localStorage.getItem(this.memory);
    const known = this.id ?? (remembered && underWay.has(remembered) ? null : remembered);
    if (known) {
      try {
        return await ask("GET", `/api/videos/uploads/${known}`);
      } catch (error) {
        if (!refusedWith(error, 404)) throw error;
      }
    }
    const body = {
      filename: this.file.name,
      content_type: typeOf(this.file),
      bytes: this.file.size,
    };
    return ask("POST", "/api/videos/upload-url", { body });
  }

  async transfer(/** @type {Ticket} */ first) {
    const { signal } = this.cut;
    let failures = 0;
    for (let ticket = first; !ticket.completed;) {
      signal.throwIfAborted();
      const parts = ticket.upload_url
        ? [{ number: 0, offset: 0, bytes: this.file.size, upload_url: ticket.upload_url }]
        : ticket.parts;
      if (parts.length === 0) return;
      this.arrived = 0;
      try {
        await this.send(parts, ticket);
        if (ticket.upload_url) return;
      } catch (error) {
        failures = this.arrived ? 1 : failures + 1;
        if (signal.aborted || failures >= TRIES || !navigator.onLine) throw error;
        await sleep(300 * 2 ** failures, signal);
      }
      // What the bucket has counts, and URLs grow old.
      ticket = await ask("GET", `/api/videos/uploads/${this.id}`, { signal });
    }
  }

  /**
   * Puts parts, at least one, a few at a time; the first failure ends them all.
   * @param {Part[]} parts
   * @param {Ticket} ticket
   */
  async send(parts, { upload_url: whole, headers }) {
    const last = parts[parts.length - 1];
    const behind = parts.length < PARTS_AT_ONCE ? 0 : this.file.size - last.offset - last.bytes;
    const arrived = this.file.size - behind - parts.reduce((sum, part) => sum + part.bytes, 0);
    const sent = new Map();
    const waiting = [...parts];
    const round = new AbortController();
    const stop = () => round.abort();
    this.cut.signal.addEventListener("abort", stop, { once: true });
    const sender = async () => {
      for (;;) {
        const part = round.signal.aborted ? undefined : waiting.shift();
        if (part === undefined) return;
        const blob = this.file.slice(part.offset, part.offset + part.bytes);
        await put(part.upload_url, blob, whole ? headers : {}, round.signal, (count) => {
          sent.set(part.number, count);
          this.change({ sent: [...sent.values()].reduce((sum, one) => sum + one, arrived) });
        });
        this.arrived += 1;
      }
    };
    try {
      await Promise.all(Array.from({ length: AT_ONCE }, sender));
    } finally {
      round.abort();
      this.cut.signal.removeEventListener("abort", stop);
    }
  }

  change(
    /** @type {Partial<Pick<Upload, "state" | "sent" | "error" | "key">>} */
    changes,
  ) {
    Object.assign(this, changes);
    this.onchange(this);
  }
}

/**
 * Puts bytes, and says how many have gone; `fetch` does not say that.
 * @param {string} url
 * @param {Blob} blob
 * @param {Record<string, string>} headers
 * @param {AbortSignal} signal
 * @param {(count: number) => void} told
 * @returns {Promise<void>}
 */
function put(url, blob, headers, signal, told) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    const failed = (/** @type {string} */ why) => () => reject(new Error(why));
    request.open("PUT", url);
    for (const [name, value] of Object.entries(headers)) request.setRequestHeader(name, value);
    request.upload.onprogress = (event) => told(event.loaded);
    request.onload = () => {
      // 412: a file is there, from a try of which the answer was lost. The broker checks its size.
      if ((request.status >= 200 && request.status < 300) || request.status === 412) {
        resolve(told(blob.size));
      } else failed(`The bucket answered ${request.status}.`)();
    };
    request.onerror = failed(
      "The bucket cannot be reached. What has arrived is kept. (If it never can, its rules may " +
        "not let this page in: reelbroker storage setup.)",
    );
    request.onabort = failed("The upload was stopped.");
    signal.addEventListener("abort", () => request.abort(), { once: true });
    request.send(blob);
  });
}
