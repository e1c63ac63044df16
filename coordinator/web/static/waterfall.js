// The last rounds, a lane for each peer: who trained, handed in, waited and applied when.

import { count, duration } from "./format.js";

const $ = (id) => document.getElementById(id);
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const LANE = 26, BAR = 16, HEAD = 22, ROUNDS = 4, GAP = 26;
const LENS = 700; // pixels from which the magnified end has room beside the rounds; else it stands below
let boxes = []; // what is drawn where, for the pointer

export function listen(state) {
  new ResizeObserver(() => draw(state)).observe($("waterfall"));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => draw(state));
  $("waterfall").addEventListener("pointermove", point);
  $("waterfall").addEventListener("pointerleave", () => { $("waterfall-tip").hidden = true; });
}

// Spans of one peer in one round: [kind, from, to]. `now` ends what goes on.
export function spans(round, peer, now) {
  const found = [];
  const add = (kind, from, to) => { if (from !== null && to !== null && to > from) found.push([kind, from, to]); };
  const end = round.published ?? now;
  const closed = round.closing ?? end;
  const until = Math.min(peer.handed_in ?? end, peer.handed_in === null ? end : closed);
  add("train", peer.started, until);
  if (peer.handed_in !== null) {
    add("close", Math.max(until, peer.started ?? until), peer.handed_in);
    add("exchange", peer.handed_in, peer.arrived ?? end);
    if (peer.arrived !== null) add("wait", peer.arrived, end);
  }
  if (round.published !== null && peer.started !== null) add("apply", round.published, peer.applied ?? (round.live ? now : round.published));
  return found;
}

export function draw(state) {
  if (!state.recent || !state.now) return;
  const rounds = [...(state.rounds?.rounds ?? []), ...state.recent.rounds].filter((it, index, all) => all.findIndex((other) => other.round === it.round) === index);
  const shown = rounds.filter((it) => it.opened !== null && it.peers.length).slice(innerWidth < 640 ? -3 : -ROUNDS);
  $("waterfall-empty").hidden = shown.length > 0;
  $("waterfall-canvas").hidden = shown.length === 0;
  if (!shown.length) return;
  const newest = shown.findLast((it) => it.published !== null);
  const finished = state.now.state === "finished";
  const now = finished && newest ? newest.published + 1 : state.now.time;
  if (newest) { newest.live = !finished && now - newest.published < 60; words(newest); }
  const names = new Map();
  for (const round of shown) for (const peer of round.peers) names.set(peer.id, peer.name);
  const lanes = [...names].sort((a, b) => a[1].localeCompare(b[1]) || (a[0] < b[0] ? -1 : 1)).slice(0, innerWidth < 640 ? 12 : 40);
  paint(shown, lanes, now, state.run?.overlap);
}

function words(round) {
  const close = round.closing ?? round.published;
  const applied = round.peers.map((it) => it.applied).filter((it) => it !== null);
  const everywhere = applied.length ? `; applied by the last of ${applied.length} peers ${duration(Math.max(...applied) - round.published)} later` : "";
  const text = `Round ${count(round.round)} took ${duration(round.published - round.opened)}: ${duration(close - round.opened)} until it closed, ${duration(round.published - close)} more until its record${everywhere}.`;
  if ($("waterfall-words").textContent !== text) $("waterfall-words").textContent = text;
}

function paint(rounds, lanes, now, overlap) {
  const canvas = $("waterfall-canvas");
  const width = $("waterfall").clientWidth, block = HEAD + lanes.length * LANE + 4;
  const ended = rounds.findLast((it) => it.published !== null);
  const beside = width >= LENS, height = ended && !beside ? 2 * block + 8 : block;
  const ratio = devicePixelRatio || 1;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    canvas.style.height = `${height}px`;
  }
  const ctx = canvas.getContext("2d");
  ctx.setTransform(ratio, 0, 0, ratio, 0, 0);
  ctx.clearRect(0, 0, width, height);
  ctx.font = "12px Inter, system-ui, sans-serif";
  ctx.textBaseline = "middle";
  const label = Math.min(150, width * 0.24);
  const fill = { train: colour("train"), close: colour("close"), exchange: colour("exchange"), wait: hatch(ctx), apply: colour("apply"),
    ink: colour("ink"), soft: colour("soft"), line: colour("line"), bad: colour("bad") };
  boxes = [];
  const right = ended && beside ? Math.round(width * 0.62) : width;
  const whole = { left: label, right, top: 0, bottom: block, from: rounds[0].opened, to: Math.max(now, rounds[0].opened + 1) };
  names(ctx, lanes, label - 14, 0, fill);
  region(ctx, rounds, lanes, now, overlap, fill, whole, (round, wide) => (wide > 70 ? `round ${round.round}` : wide > 18 ? `${round.round}` : ""));
  if (!ended) return;
  const lens = beside ? { left: right + GAP, right: width, top: 0, bottom: block } : { left: label, right: width, top: block + 8, bottom: height };
  Object.assign(lens, closeOf(ended));
  if (!beside) names(ctx, lanes, label - 14, lens.top, fill);
  region(ctx, rounds, lanes, now, overlap, fill, lens, () => "");
  ctx.fillStyle = fill.soft;
  ctx.fillText(`the end of round ${ended.round}, magnified: ${duration(lens.to - lens.from)}`, lens.left, lens.top + 9);
}

function names(ctx, lanes, width, top, fill) {
  ctx.fillStyle = fill.ink;
  lanes.forEach(([, name], index) => ctx.fillText(fitted(ctx, name, width), 0, top + HEAD + index * LANE + LANE / 2));
}

// From a little before a round's close until its last peer has applied it.
function closeOf(round) {
  const first = Math.min(round.closing ?? round.published, ...round.peers.map((it) => it.handed_in ?? Infinity));
  const last = Math.max(round.published, ...round.peers.map((it) => it.applied ?? 0));
  const rim = Math.max(0.15, 0.12 * (last - first));
  return { from: first - rim, to: last + rim };
}

function region(ctx, rounds, lanes, now, overlap, fill, area, title) {
  const x = (time) => area.left + ((time - area.from) / (area.to - area.from)) * (area.right - area.left);
  ctx.save();
  ctx.beginPath(); ctx.rect(area.left, area.top, area.right - area.left, area.bottom - area.top); ctx.clip();
  for (const round of rounds) {
    const left = x(round.opened), right = x(round.published ?? now);
    ctx.strokeStyle = fill.line;
    ctx.beginPath(); ctx.moveTo(Math.round(left) + 0.5, area.top + HEAD - 6); ctx.lineTo(Math.round(left) + 0.5, area.bottom); ctx.stroke();
    ctx.fillStyle = fill.soft;
    ctx.fillText(title(round, right - left), left + 4, area.top + 9);
  }
  lanes.forEach(([id], index) => {
    const top = area.top + HEAD + index * LANE + (LANE - BAR) / 2;
    for (const round of rounds) {
      const peer = round.peers.find((it) => it.id === id);
      if (peer) lane(ctx, round, peer, now, top, x, fill, overlap, area);
    }
  });
  ctx.restore();
}

function lane(ctx, round, peer, now, top, x, fill, overlap, area) {
  for (const [kind, start, end] of spans(round, peer, now)) {
    const left = x(start), wide = Math.max(1.2, x(end) - left - 0.6);
    if (left > area.right || left + wide < area.left) continue;
    ctx.fillStyle = fill[kind];
    ctx.fillRect(left, top, wide, BAR);
    boxes.push({ left: Math.max(left, area.left), right: Math.min(left + wide, area.right), top, bottom: top + BAR, kind, seconds: end - start, round, peer });
    if (overlap && kind !== "train" && kind !== "apply") { ctx.fillStyle = fill.train; ctx.fillRect(left, top + BAR - 3, wide, 3); }
  }
  if (peer.outcome === "refused" || peer.outcome === "late") {
    const at = x(round.published ?? now) - 7, middle = top + BAR / 2;
    ctx.strokeStyle = fill.bad; ctx.lineWidth = 2.5;
    ctx.beginPath(); ctx.moveTo(at - 5, middle - 5); ctx.lineTo(at + 5, middle + 5); ctx.moveTo(at + 5, middle - 5); ctx.lineTo(at - 5, middle + 5); ctx.stroke();
    ctx.lineWidth = 1;
  }
}

function fitted(ctx, text, width) {
  let shown = [...text];
  if (ctx.measureText(text).width <= width) return text;
  while (shown.length && ctx.measureText(`${shown.join("")}…`).width > width) shown.pop();
  return `${shown.join("")}…`;
}

function hatch(ctx) {
  const tile = document.createElement("canvas");
  tile.width = tile.height = 6;
  const pen = tile.getContext("2d");
  pen.strokeStyle = colour("wait"); pen.lineWidth = 1.6;
  pen.beginPath();
  for (const shift of [-6, 0, 6]) { pen.moveTo(shift - 1, 7); pen.lineTo(shift + 7, -1); }
  pen.stroke();
  return ctx.createPattern(tile, "repeat");
}

const KINDS = { train: "training", close: "finishing the step, encoding, handing in", exchange: "the sequencer fetches and checks",
  wait: "waiting for the others", apply: "fetching and applying the record" };

function point(event) {
  const area = $("waterfall").getBoundingClientRect(), tip = $("waterfall-tip");
  const [left, top] = [event.clientX - area.left, event.clientY - area.top];
  const box = boxes.findLast((it) => left >= it.left - 1 && left <= it.right + 1 && top >= it.top && top <= it.bottom);
  tip.hidden = !box;
  if (!box) return;
  const outcome = box.peer.outcome ? `, ${box.peer.outcome}` : "";
  tip.textContent = `${box.peer.name}, round ${box.round.round}\n${KINDS[box.kind]}: ${duration(box.seconds)}\n${count(box.peer.tokens)} tokens${outcome}`;
  const right = left > area.width / 2;
  tip.style.left = right ? "" : `${left + 14}px`;
  tip.style.right = right ? `${area.width - left + 14}px` : "";
  tip.style.top = `${top + 16}px`;
}
