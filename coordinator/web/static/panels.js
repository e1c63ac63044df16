// Everything that is text. What strangers wrote goes in as text nodes only, never as markup.

import { clock, count, duration, loss, plural, size } from "./format.js";

const $ = (id) => document.getElementById(id);

function put(id, text) {
  const node = $(id);
  if (node.textContent !== text) node.textContent = text;
}

function element(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) if (value !== "") node.setAttribute(key, value);
  node.append(...children);
  return node;
}

const hasNone = (id, none) => { $(id).hidden = !none; };

// --- the run ---------------------------------------------------------------------------------------------------------

export function run({ run }) {
  put("run-name", run.name);
  put("run-description", run.description);
  put("join-command", run.join);
  put("join-words", run.access === "invite" ? "By invitation: the organiser gives you a token. Install Commonweights and run" : "Any computer will do; no account, no open port. Install Commonweights and run");
  put("download-command", `commonweights download ${location.origin}/ticket`);
  put("fact-parameters", count(run.parameters));
}

export function now({ run, now }) {
  $("state").dataset.state = now.state;
  put("state-title", now.title);
  put("state-detail", now.detail);
  put("fact-digest", now.state_digest);
  document.title = `${now.title} · ${run?.name ?? "Commonweights"}`;
}

export function figures({ run, now }) {
  if (!run || !now) return;
  put("f-speed", now.state === "finished" ? "–" : count(now.tokens_per_second));
  put("f-peers", count(now.peers));
  put("f-contributors", `${plural(now.contributors, "contributor")} so far`);
  put("f-round", count(now.rounds_done));
  put("f-rounds", run.target_rounds ? `of ${count(run.target_rounds)} done` : "done");
  put("f-loss", loss(now.loss));
  put("f-live", now.live_loss === null || now.state === "finished" ? "nats/token" : `live ${loss(now.live_loss)}`);
  put("f-eval", loss(now.eval_loss));
  put("f-merged", count(now.contributions));
  put("f-refused", now.refusals ? `and ${count(now.refusals)} refused` : "contributions");
  progress(run, now);
}

function progress(run, now) {
  const round = Math.min(1, now.round_tokens / run.round_target_tokens);
  const byTokens = run.target_tokens ? now.tokens / run.target_tokens : 0;
  const byRounds = run.target_rounds ? now.rounds_done / run.target_rounds : 0;
  const limited = run.target_tokens || run.target_rounds;
  const done = now.state === "finished" ? 1 : Math.min(1, Math.max(byTokens, byRounds));
  const step = byTokens >= byRounds && run.target_tokens ? now.round_tokens / run.target_tokens : round / (run.target_rounds || 1);
  $("progress-fill").style.width = `${(limited ? done : 0) * 100}%`;
  $("progress-round").style.left = `${(limited ? done : 0) * 100}%`;
  $("progress-round").style.width = `${(limited ? Math.min(step, 1 - done) : round) * 100}%`;
  $("progress").setAttribute("aria-valuenow", Math.round((limited ? done : round) * 100));
  const target = run.target_tokens ? ` of ${count(run.target_tokens)}` : "";
  const share = limited ? `, ${(done * 100).toFixed(done < 0.1 ? 1 : 0)} %` : ", open-ended";
  put("progress-done", `${count(now.tokens)}${target} tokens${share}`);
  put("progress-eta", eta(now, limited));
}

function eta(now, limited) {
  if (now.state === "finished") return "done";
  if (!limited) return "goes on for as long as there are peers";
  if (now.eta_seconds === null) return "time left: known after two rounds";
  if (now.state === "paused" || now.state === "waiting") return `about ${duration(now.eta_seconds)} of training left`;
  const slow = duration(now.eta_seconds_p90);
  const usual = duration(now.eta_seconds);
  return slow === usual ? `about ${usual} left` : `about ${usual} left; ${slow} at the slower of recent paces`;
}

export function connection(state, silent) {
  $("connection").dataset.state = state;
  const words = { live: "live", waiting: "connecting", lost: `lost connection for ${Math.round(silent)} s, retrying` };
  const shown = $("connection").lastElementChild;
  if (shown.textContent !== words[state]) shown.textContent = words[state];
}

// --- tables ----------------------------------------------------------------------------------------------------------

function rows(table, wanted) {
  const body = $(table).tBodies[0];
  wanted.forEach((cells, index) => {
    const row = body.rows[index] ?? body.insertRow();
    cells.forEach(([text, kind, extra], column) => {
      const cell = row.cells[column] ?? row.insertCell();
      const key = `${text}|${kind}|${extra ?? ""}`;
      if (cell.dataset.key === key) return;
      cell.dataset.key = key;
      cell.className = kind ?? "";
      cell.title = kind?.includes("quiet") || kind?.includes("health") || kind === "who" ? text : "";
      cell.replaceChildren(text);
      if (extra) cell.append(element("small", {}, extra));
    });
    while (row.cells.length > cells.length) row.deleteCell(-1);
  });
  while (body.rows.length > wanted.length) body.deleteRow(-1);
}

const PHASES = { syncing: "syncing", training: "training", encoding: "compressing", submitting: "handing in",
  waiting: "waiting", applying: "applying", leaving: "leaving", paused: "pausing" };

export function peers({ peers, now }) {
  hasNone("peers-empty", peers.total === 0);
  put("peers-empty", now?.state === "following" && now.peers ? `${plural(now.peers, "peer")} with ${now.sequencer_name}, who leads at the moment and knows how they do.` : "Nobody is here. The command above changes that.");
  const more = peers.total - peers.peers.length;
  put("peers-aside", more > 0 ? `the ${peers.peers.length} with most credit, ${count(more)} more are here` : plural(peers.total, "peer"));
  rows("peers-table", peers.peers.map((peer) => [
    [peer.name, "who", peer.team],
    [PHASES[peer.phase] ?? peer.phase],
    [peer.health_words, `health ${peer.health}`],
    [count(peer.round_tokens), "n"],
    [`${count(peer.tokens_per_second)}/s`, "n"],
    [loss(peer.loss), "n"],
    [size(peer.bytes_sent), "n"],
    [size(peer.bytes_received), "n"],
    [peer.hardware || "not told", "quiet"],
  ]));
}

let boardOf = "peers";

export function leaderboard({ leaderboard }) {
  const teams = boardOf === "teams";
  const list = leaderboard[boardOf];
  hasNone("board-empty", list.length === 0);
  put("board-empty", teams && leaderboard.total ? "Nobody trains for a team yet; join with --team NAME." : "Credit is accepted tokens, and nothing has been accepted yet.");
  put("board-who", teams ? "Team" : "Peer");
  put("board-count", teams ? "Peers" : "Merged");
  rows("board-table", list.map((item, index) => [
    [String(index + 1), "n"],
    teams ? [item.team, "who"] : [item.name, "who", item.team],
    [count(item.credit_tokens), "n"],
    [`${((100 * item.credit_tokens) / Math.max(1, leaderboard.tokens)).toFixed(1)} %`, "n"],
    teams ? [count(item.peers), "n"] : [count(item.contributions), "n", item.refused ? `and ${count(item.refused)} refused` : ""],
  ]));
}

// --- lists -----------------------------------------------------------------------------------------------------------

export function incidents({ incidents }) {
  hasNone("incidents-empty", incidents.incidents.length === 0);
  $("incidents").replaceChildren(...incidents.incidents.map((it) => element("li", {},
    element("time", { datetime: new Date(it.time * 1000).toISOString() }, clock(it.time)),
    element("span", { class: `kind ${it.kind}`, title: it.kind }),
    element("span", {}, it.text))));
}

export function copies({ now }) {
  const words = now.copies.map((it) => `${it.destination}: ${it.complete ? "all copied" : it.failures ? "cannot be written at the moment" : "being copied"}`);
  put("copies", words.join("; "));
  $("copies").hidden = !words.length;
}

export function checkpoints({ checkpoints }) {
  const open = new Set([...$("checkpoints").querySelectorAll("details[open]")].map((node) => node.dataset.name));
  hasNone("checkpoints-empty", checkpoints.checkpoints.length === 0);
  $("checkpoints").replaceChildren(...checkpoints.checkpoints.map((it) => {
    const files = it.files.map((file) => element("li", {},
      element("a", { href: `/checkpoints/${encodeURIComponent(it.name)}/${file.name.split("/").map(encodeURIComponent).join("/")}`, download: "" }, file.name),
      element("span", {}, size(file.bytes))));
    const details = element("details", { "data-name": it.name }, element("summary", {}, `Download: ${plural(it.files.length, "file")}, ${size(it.bytes)}`),
      element("ul", { class: "files" }, ...files));
    details.open = open.has(it.name);
    const measured = it.eval_loss === null ? "" : `, held-out loss ${loss(it.eval_loss)}`;
    const when = element("time", { datetime: new Date(it.time * 1000).toISOString() }, clock(it.time));
    return element("li", {}, element("h3", {}, `Round ${count(it.round)}`, when),
      element("p", {}, `after ${count(it.tokens)} tokens${measured}`), details);
  }));
}

// --- samples ---------------------------------------------------------------------------------------------------------

let shown = null; // {round, place} of the sample that the reader chose; null: always the newest

/** The samples, newest evaluation first; within one, in the order of the prompts, `place` 0 first. */
function placed(samples) {
  const seen = new Map();
  return samples.map((it) => {
    const place = seen.get(it.round) ?? 0;
    seen.set(it.round, place + 1);
    return { ...it, place };
  });
}

const chosen = (list) => Math.max(0, list.findIndex((it) => it.round === shown?.round && it.place === shown.place));

export function samples({ samples }) {
  const list = placed(samples.samples);
  hasNone("sample-empty", list.length === 0);
  if (!list.length) return;
  const at = chosen(list);
  const it = list[at];
  put("sample-round", it.round ? `after round ${count(it.round)}, held-out loss ${loss(it.loss)}` : "before training");
  const text = it.text.startsWith(it.prompt) ? it.text.slice(it.prompt.length) : it.text;
  if ($("sample").textContent !== it.prompt + text) $("sample").replaceChildren(element("mark", {}, it.prompt), text);
  $("sample-newer").disabled = at === 0;
  $("sample-older").disabled = at === list.length - 1;
}

function turn(state, step) {
  const list = placed(state.samples.samples);
  const at = Math.min(chosen(list) + step, list.length - 1);
  shown = at <= 0 ? null : list[at];
  samples(state);
}

// --- what a reader can do --------------------------------------------------------------------------------------------

export function listen(state) {
  $("sample-older").addEventListener("click", () => turn(state, 1));
  $("sample-newer").addEventListener("click", () => turn(state, -1));
  for (const [id, of] of [["by-peer", "peers"], ["by-team", "teams"]]) {
    $(id).addEventListener("click", () => {
      boardOf = of;
      $("by-peer").setAttribute("aria-pressed", String(of === "peers"));
      $("by-team").setAttribute("aria-pressed", String(of === "teams"));
      if (state.leaderboard) leaderboard(state);
    });
  }
  $("copy").addEventListener("click", copy);
}

async function copy() {
  const code = $("join-command");
  let words = "Copied";
  try {
    await navigator.clipboard.writeText(code.textContent);
  } catch { // not a secure origin: select it, and the reader's own keys do the rest
    getSelection().selectAllChildren(code);
    words = document.execCommand("copy") ? "Copied" : "Press Ctrl-C";
  }
  $("copy").textContent = words;
  setTimeout(() => { $("copy").textContent = "Copy"; }, 2000);
}
