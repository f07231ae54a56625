// The shapes that the page's JSDoc names: what the broker answers, as far as the page reads it, and
// what the page's modules hand to one another.

type Status = "pending" | "processing" | "complete" | "error" | "cancelled";
type JobType = "framing" | "upscale" | "overlay" | "annotate" | "multi_clip";

interface Me {
  user_id: string;
  admin: boolean;
}

interface Box {
  x: number;
  y: number;
  width: number;
  height: number;
}

interface Ellipse {
  x: number;
  y: number;
  radius_x: number;
  radius_y: number;
}

interface CropKey extends Box {
  time: number;
}

/** As a request may give it: by a moment or by the number of a frame. */
interface GivenCropKey extends Box {
  time?: number;
  frame?: number;
}

interface EllipseKey extends Ellipse {
  time: number;
}

interface Region {
  start_time: number;
  end_time?: number;
  keyframes: EllipseKey[];
  video_width?: number;
  video_height?: number;
}

interface TextLayer {
  text?: string;
  start_time?: number;
  end_time?: number;
  x?: number;
  y?: number;
  anchor?: string;
  font_size?: number;
  color?: string;
  outline_width?: number;
  video_width?: number;
  video_height?: number;
}

interface Clip {
  input_key?: string;
  start_time: number;
  end_time?: number;
  name?: string;
  rating?: number;
}

interface Segment {
  start: number;
  end?: number;
  speed?: number;
}

/** What is edited. The page shows what else there is as JSON and leaves it alone. */
interface Params {
  output_width?: number;
  output_height?: number;
  export_mode?: string;
  target_fps?: number;
  include_audio?: boolean;
  start_time?: number;
  end_time?: number;
  rotation?: number;
  crop_keyframes?: CropKey[];
  interpolation?: string;
  segments?: Segment[];
  effect_type?: string;
  effect_strength?: number;
  highlight_regions?: Region[];
  text_layers?: TextLayer[];
  clips?: Clip[];
  transition?: { type: string; duration?: number };
}

interface ExportRequest {
  type: JobType;
  input_key?: string;
  params: Params;
  project_id?: unknown;
  game_id?: unknown;
  metadata?: object;
  source_seconds?: number;
}

interface Result {
  width: number;
  height: number;
  fps: number;
  frames: number;
  bytes: number;
  duration_seconds: number;
  video_codec: string;
  audio_codec: string | null;
  warnings?: string[];
}

interface Job {
  job_id: string;
  type: JobType;
  status: Status;
  phase: string;
  progress: number;
  message: string;
  input_key: string | null;
  output_key: string;
  params: Params;
  result: Result | null;
  error: string | null;
  error_code: string | null;
  retryable: boolean;
  stalled: boolean;
  attempt: number;
  max_attempts: number;
  created_at: string;
  started_at: string | null;
  completed_at: string | null;
  cancel_requested_at: string | null;
  gpu_seconds: number | null;
  cost_usd: number | null;
  retry_of: string | null;
  runpod_job_id: string | null;
  modal_call_id: string | null;
  last_evidence: { source: string; at: string } | null;
  project_id: unknown;
  game_id: unknown;
  metadata: object;
}

interface JobEvent {
  seq: number;
  at: string;
  kind: string;
  changes: Partial<Job>;
}

interface Quote {
  basis: string;
  output_seconds: number;
  gpu_seconds: number;
  gpu_seconds_p90: number;
  cost_usd: number | null;
  cost_usd_p90: number | null;
}

interface Hour {
  at: string;
  complete: number;
  error: number;
  cancelled: number;
  gpu_seconds: number;
  cost_usd: number | null;
}

type WorkerState = "running" | "idle" | "starting" | "throttled" | "unhealthy";

type Workers = Record<WorkerState, number | null>;

interface Tally {
  complete: number;
  error: number;
  cancelled: number;
  gpu_seconds: number;
  cost_usd: number | null;
}

interface Place {
  provider: string;
  target: string;
  queued: number | null;
  workers: Workers | null;
  error: string | null;
}

interface Fleet {
  at: string;
  draining: boolean;
  places: Place[];
  today_by_provider: Record<string, Tally>;
  open_jobs: Record<string, number>;
  oldest_wait_seconds: number | null;
  error_codes: Record<string, number>;
  today: Tally;
  hours: Hour[];
  stalled: { job_id: string; user_id: string; phase: string; progress: number; since: string }[];
  orphans: {
    job_id: string;
    attempt: number;
    runpod_job_id: string | null;
    modal_call_id: string | null;
    why: string;
    seconds_at_most: number;
    usd_at_most: number | null;
  }[];
}

interface Part {
  number: number;
  offset: number;
  bytes: number;
  upload_url: string;
}

interface Ticket {
  upload_id: string;
  video_key: string;
  upload_url: string | null;
  headers: Record<string, string>;
  parts: Part[];
  completed: boolean;
}

/** What is wrong with a request, and where in it. */
interface Objection {
  pointer: string;
  detail: string;
}

/** What a screen gets: who asks, where they are, and when they have left. */
interface Visit {
  me: Me;
  path: string[];
  query: URLSearchParams;
  signal: AbortSignal;
  fail: (error: unknown) => void;
}

type Line = "live" | "polling" | "away" | "gone";

// ── elements ────────────────────────────────────────────────────────────────────────────────────

type SvgTag =
  "svg" | "g" | "rect" | "path" | "circle" | "ellipse" | "line" | "text" | "title" | "mask";

type Made<T extends string> = T extends SvgTag
  ? SVGElementTagNameMap[T]
  : T extends keyof HTMLElementTagNameMap
    ? HTMLElementTagNameMap[T]
    : HTMLElement;

type Child = Node | string | 0 | false | null | undefined | Child[];

interface Props {
  onclick?: (event: MouseEvent) => void;
  onkeydown?: (event: KeyboardEvent) => void;
  onsubmit?: (event: SubmitEvent) => void;
  onchange?: (event: Event) => void;
  oninput?: (event: Event) => void;
  onfocusin?: (event: FocusEvent) => void;
  style?: Record<string, string | number>;
  [name: string]: unknown;
}

// ── the picture ─────────────────────────────────────────────────────────────────────────────────

interface Lettering {
  x: number;
  y: number;
  font_size: number;
}

/** What can be moved on the picture. `geometry` is its place now; `change` gets the new one. */
type Item = { id: string; label: string } & (
  | { shape: "box"; geometry: Box; change: (geometry: Box) => void }
  | { shape: "ellipse"; geometry: Ellipse; change: (geometry: Ellipse) => void }
  | {
      shape: "text";
      geometry: Lettering;
      change: (geometry: Lettering) => void;
      text: string;
      anchor: string;
    }
);

interface Marks {
  from: number;
  to: number | undefined;
  keys: { time: number; label: string }[];
  bars: { from: number; to: number; label: string }[];
}

/** `seconds` of the result from `source` on, at a speed. */
interface Piece {
  source: number;
  seconds: number;
  speed: number;
}
