// Numbers for people: short, with a unit; a dash where nothing is known.

const known = (value) => typeof value === "number" && Number.isFinite(value);

function scaled(value, units, space) {
  let power = Math.min(Math.max(1, Math.floor(Math.log10(Math.abs(value)) / 3 + 1e-9)), units.length);
  let rest = value / 1000 ** power;
  if (Math.abs(rest) >= 999.5 && power < units.length) { power += 1; rest /= 1000; }
  const digits = Math.abs(rest) < 9.995 ? 2 : Math.abs(rest) < 99.95 ? 1 : 0;
  return rest.toFixed(digits) + space + units[power - 1];
}

export function count(value) {
  if (!known(value)) return "–";
  if (Math.abs(value) < 9999.5) return Math.round(value).toLocaleString("en");
  return scaled(value, ["k", "M", "B", "T"], "");
}

export function size(bytes) {
  if (!known(bytes)) return "–";
  return bytes < 999.5 ? `${Math.round(bytes)} B` : scaled(bytes, ["kB", "MB", "GB", "TB", "PB"], " ");
}

export function duration(seconds) {
  if (!known(seconds) || seconds < 0) return "–";
  if (seconds < 9.95) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  if (whole < 90) return `${whole} s`;
  const minutes = Math.round(whole / 60);
  if (minutes < 90) return `${minutes} min`;
  const hours = Math.round(minutes / 60);
  if (hours < 36) return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
  return `${Math.round(hours / 24)} days`;
}

export const loss = (value) => (known(value) ? value.toFixed(3) : "–");

export const plural = (number, word) => `${count(number)} ${word}${number === 1 ? "" : "s"}`;

export function clock(seconds) {
  const then = new Date(seconds * 1000);
  const today = then.toDateString() === new Date().toDateString();
  return today
    ? then.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false })
    : then.toLocaleDateString([], { day: "numeric", month: "short" });
}
