// Listens to the coordinator's events and hands each section to its panel. A section always replaces the one before,
// so after a lost connection, a restart or a night's sleep the page is right again with the next event.

import * as charts from "./charts.js";
import * as panels from "./panels.js";
import * as waterfall from "./waterfall.js";

const SILENT_SECONDS = 6; // news come every second
const AGAIN_SECONDS = 4;
const state = {}; // newest value of each section
const drawn = {
  run: [panels.run, panels.figures],
  now: [panels.now, panels.figures, panels.copies, waterfall.draw],
  peers: [panels.peers],
  losses: [charts.losses],
  speed: [charts.speed],
  recent: [waterfall.draw],
  rounds: [waterfall.draw],
  leaderboard: [panels.leaderboard],
  samples: [panels.samples],
  incidents: [panels.incidents],
  checkpoints: [panels.checkpoints],
};

let source = null;
let heard = 0;
let lostSince = 0;

function connect() {
  source?.close();
  source = new EventSource("/api/events");
  source.addEventListener("page", (event) => {
    if (JSON.parse(event.data).version !== document.documentElement.dataset.version) location.reload();
  });
  for (const name of Object.keys(drawn)) {
    source.addEventListener(name, (event) => {
      heard = Date.now();
      state[name] = JSON.parse(event.data);
      show(name);
    });
  }
  source.onerror = () => {
    lost();
    if (source.readyState === EventSource.CLOSED) setTimeout(connect, AGAIN_SECONDS * 1000);
  };
}

function show(name) {
  if (document.hidden && name !== "now") return; // drawn when somebody looks again
  for (const draw of drawn[name]) draw(state);
}

function lost() {
  lostSince ||= Date.now();
  watch();
}

function watch() {
  const silent = (Date.now() - heard) / 1000;
  if (heard && silent < SILENT_SECONDS && source.readyState === EventSource.OPEN) lostSince = 0;
  else if (heard) lostSince ||= Date.now();
  panels.connection(lostSince ? "lost" : heard ? "live" : "waiting", lostSince ? silent : 0);
  if (lostSince && silent > 20 && Date.now() - lostSince > 20000) { lostSince = Date.now(); connect(); } // a line that hangs
}

function drawAll() {
  for (const name of Object.keys(state)) show(name);
}

panels.listen(state);
charts.listen(() => { charts.forget(); drawAll(); });
waterfall.listen(state);
document.addEventListener("visibilitychange", () => { if (!document.hidden) { watch(); drawAll(); } });
setInterval(watch, 1000);
connect();
