// Loss, speed and peers, drawn by uPlot. A chart is made once and then only given new data.

import { clock, count, loss } from "./format.js";

const charts = new Map(); // by element id
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const FONT = "12px Inter, system-ui, sans-serif";

export const forget = () => { for (const chart of charts.values()) chart.destroy(); charts.clear(); };

export function listen(again) {
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
  for (const id of ["loss-chart", "speed-chart", "peers-chart"]) {
    const node = document.getElementById(id);
    new ResizeObserver(() => charts.get(id)?.setSize({ width: node.clientWidth, height: node.clientHeight })).observe(node);
  }
}

function draw(id, data, options) {
  const node = document.getElementById(id);
  document.getElementById(id.replace("chart", "empty"))?.toggleAttribute("hidden", data[0].length > 0);
  document.getElementById(`${id}-empty`)?.toggleAttribute("hidden", data[0].length > 0);
  if (!data[0].length) return;
  const chart = charts.get(id);
  if (chart) return chart.setData(data);
  charts.set(id, new uPlot({ width: node.clientWidth, height: node.clientHeight, legend: { show: false }, ...options() }, data, node));
}

const axis = (values, size, extra = {}) => ({
  stroke: colour("soft"), font: FONT, grid: { stroke: colour("grid"), width: 1 }, ticks: { show: false }, values, size, ...extra,
});

function tip(words) {
  let node;
  return { hooks: {
    init: (u) => { node = document.createElement("div"); node.className = "tip"; node.hidden = true; u.over.append(node); },
    setCursor: (u) => {
      const { idx, left } = u.cursor;
      node.hidden = idx == null || left < 0;
      if (node.hidden) return;
      node.textContent = words(u, idx);
      const right = left > u.over.clientWidth / 2;
      node.style.left = right ? "" : `${left + 12}px`;
      node.style.right = right ? `${u.over.clientWidth - left + 12}px` : "";
      node.style.top = "6px";
    },
  } };
}

// --- loss ------------------------------------------------------------------------------------------------------------

export function losses({ losses }) {
  const rounds = [...new Set([...losses.train, ...losses.eval].map(([round]) => round))].sort((a, b) => a - b);
  const along = (points) => { const found = new Map(points); return rounds.map((round) => found.get(round) ?? null); };
  const few = rounds.length < 60;
  draw("loss-chart", [rounds, along(losses.train), along(losses.eval)], () => ({
    padding: [8, 12, 0, 0],
    scales: { x: { time: false, range: (u, low, high) => [low, Math.max(high, low + 4)] } },
    cursor: { points: { size: 7 } },
    axes: [
      axis((u, ticks) => ticks.map((it) => (Number.isInteger(it) ? `${it}` : "")), 28),
      axis((u, ticks) => ticks.map((it) => it.toFixed(it >= 10 ? 0 : 1)), 42),
    ],
    series: [
      {},
      { label: "training", stroke: colour("train"), width: 2, spanGaps: true, points: { show: few, size: 4 } },
      { label: "held-out", stroke: colour("eval"), width: 2, dash: [7, 4], spanGaps: true, points: { show: few, size: 4 } },
    ],
    plugins: [tip((u, at) => `round ${u.data[0][at]}\ntraining ${loss(u.data[1][at])}\nheld-out ${loss(u.data[2][at])}`)],
  }));
  const last = losses.train.at(-1);
  if (last) document.getElementById("loss-chart").setAttribute("aria-label", `Loss by round: ${loss(losses.train[0][1])} at first, ${loss(last[1])} in round ${last[0]}`);
}

// --- over time -------------------------------------------------------------------------------------------------------

const when = (u, ticks) => ticks.map((it) => new Date(it * 1000).toLocaleTimeString([], {
  hour: "2-digit", minute: "2-digit", hour12: false, ...(u.scales.x.max - u.scales.x.min < 600 && { second: "2-digit" }),
}));

const fromZero = (u, low, high) => [0, Math.max(1, high * 1.12)];

export function speed({ speed }) {
  const column = (index) => speed.points.map((point) => point[index]);
  const [times, paces, peers] = [column(0), column(1), column(2)];
  draw("speed-chart", [times, paces], () => ({
    padding: [8, 30, 0, 0], // half a time label stands out on the right
    scales: { y: { range: fromZero } },
    axes: [axis(when, 28, { space: 90 }), axis((u, ticks) => ticks.map((it) => count(it).replace(/\.0+(?=[kMBT])/, "")), 50)],
    series: [{}, { label: "tokens/s", stroke: colour("accent"), width: 2, fill: colour("accent-soft"), points: { show: false } }],
    plugins: [tip((u, at) => `${clock(u.data[0][at])}\n${count(u.data[1][at])} tokens/s`)],
  }));
  marks = speed.marks;
  draw("peers-chart", [times, peers], () => ({
    padding: [8, 30, 0, 0], // half a time label stands out on the right
    scales: { y: { range: (u, low, high) => [0, Math.ceil(Math.max(2, high * 1.15))] } },
    axes: [axis(when, 28, { space: 90 }), axis((u, ticks) => ticks.map((it) => (Number.isInteger(it) ? it : "")), 34)],
    series: [{}, { label: "peers", stroke: colour("ink"), width: 2, paths: uPlot.paths.stepped({ align: 1 }), points: { show: false } }],
    hooks: { draw: [drawMarks] },
    plugins: [tip((u, at) => `${clock(u.data[0][at])}\n${u.data[1][at]} peers${near(u.data[0][at])}`)],
  }));
}

let marks = [];

function near(time) {
  const found = marks.filter(([at]) => Math.abs(at - time) < 6).map(([, , text]) => text);
  return found.length ? `\n${found.slice(0, 4).join("\n")}` : "";
}

function drawMarks(u) {
  const { ctx } = u;
  const { left, top, width, height } = u.bbox;
  const unit = devicePixelRatio;
  const down = top + height - 7 * unit;
  for (const [time, kind] of marks) {
    const x = u.valToPos(time, "x", true);
    if (x < left || x > left + width) continue;
    ctx.fillStyle = colour(kind === "joined" ? "apply" : "bad");
    ctx.beginPath();
    if (kind === "joined") ctx.arc(x, down, 4 * unit, 0, 7);
    else { const r = 5 * unit; ctx.moveTo(x, down - r); ctx.lineTo(x + r, down); ctx.lineTo(x, down + r); ctx.lineTo(x - r, down); }
    ctx.fill();
  }
}
