// Draws the charts of a page with Chart.js, from the JSON beside each, in the colours of the page. The table behind each
// has the same data, so a page whose scripts do not run lacks nothing.

const { Chart } = globalThis;
const root = document.documentElement;
const drawn = new Set();
// The charts of this page by the id of their data, for scripts that have newer numbers: `renew`.
export const charts = new Map();

const DASHES = [[], [6, 4], [2, 3]];
const POINTS = ["circle", "triangle", "rect"];

const colour = (name) => getComputedStyle(root).getPropertyValue(`--${name}`).trim();
const compact = new Intl.NumberFormat(root.lang, { notation: "compact", maximumFractionDigits: 1, useGrouping: "always" });

function exact(digits) {
  return new Intl.NumberFormat(root.lang, { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

function datasets(data) {
  return data.series.map((series, n) => (data.kind === "bars"
    ? { label: series.label, data: series.values, stack: "all", maxBarThickness: 56, categoryPercentage: 0.85, barPercentage: 0.95 }
    : { label: series.label, data: series.values, pointStyle: POINTS[n % POINTS.length], borderDash: DASHES[n % DASHES.length], borderWidth: 2, pointRadius: data.marks.length > 40 ? 0 : 3, pointHoverRadius: 5, tension: 0 }));
}

// Set everything that depends on light and dark.
function paint(chart, data) {
  data.series.forEach((series, n) => {
    const set = chart.data.datasets[n], own = colour(`series-${series.shade}`);
    set.backgroundColor = own;
    // A thin line between the parts of a bar: neighbours can be distinguished without their colours.
    set.borderColor = data.kind === "bars" ? colour("card") : own;
    if (data.kind === "bars") set.borderWidth = { top: n < data.series.length - 1 ? 1 : 0 };
  });
  const { x, y } = chart.options.scales, { tooltip } = chart.options.plugins;
  x.ticks.color = y.ticks.color = colour("soft");
  y.grid.color = colour("line");
  x.border.color = colour("strong-line");
  tooltip.backgroundColor = colour("text");
  tooltip.titleColor = tooltip.bodyColor = tooltip.footerColor = colour("page");
  chart.update(); // not "none": with that, bars that are drawn for the first time keep the colours of Chart.js
}

function tooltip(data) {
  const number = exact(data.digits);
  const value = (item) => (data.series.length > 1 ? `${item.dataset.label}: ` : "") + `${number.format(item.parsed.y)} ${data.measure}`;
  return {
    mode: "index", intersect: false, padding: 10, boxPadding: 4, cornerRadius: 6, usePointStyle: data.kind === "lines",
    itemSort: (a, b) => b.datasetIndex - a.datasetIndex,
    filter: (item) => data.kind === "lines" || item.parsed.y !== 0,
    callbacks: {
      title: ([item]) => (item ? data.titles[item.dataIndex] : ""),
      label: value,
      footer: (items) => (data.total && items.length > 1 ? `${data.total}: ${number.format(items.reduce((sum, item) => sum + item.parsed.y, 0))} ${data.measure}` : ""),
    },
  };
}

// `data` as Chart.script_data in portal/usage/chart.py. The chart that is returned may be given new numbers by `renew`.
function draw(canvas, data) {
  const { fontFamily } = getComputedStyle(document.body);
  const chart = new Chart(canvas, {
    type: data.kind === "bars" ? "bar" : "line",
    data: { labels: data.marks, datasets: datasets(data) },
    options: {
      maintainAspectRatio: false,
      animation: false, // the page's numbers are not animated either, and colours change at once with the theme
      font: { family: fontFamily, size: 12 },
      interaction: { mode: "index", intersect: false },
      onClick: (_, items) => { const to = items.length && data.links[items[0].index]; if (to) location.assign(to); },
      onHover: (event, items) => { event.native.target.style.cursor = items.length && data.links[items[0].index] ? "pointer" : ""; },
      scales: {
        x: { stacked: data.kind === "bars", grid: { display: false }, border: {}, ticks: { maxRotation: 0, autoSkipPadding: 14 } },
        y: { stacked: data.kind === "bars", beginAtZero: true, suggestedMax: [4, 10, 0.5][data.digits], grid: {}, border: { display: false }, ticks: { maxTicksLimit: 5, precision: data.digits ? undefined : 0, callback: (value) => compact.format(value) } },
      },
      plugins: { colors: { enabled: false }, legend: { display: false }, tooltip: tooltip(data) },
    },
  });
  paint(chart, data);
  const one = { chart, data };
  drawn.add(one);
  return {
    renew(fresh) {
      Object.assign(data, fresh);
      chart.data.labels = data.marks;
      chart.data.datasets = datasets(data);
      paint(chart, data);
    },
  };
}

// A text that a spreadsheet would take for a formula is marked as a text, as in the exports of the server.
const cell = (value) => {
  const text = /^[=+\-@\t\r]/.test(value) && typeof value === "string" ? `'${value}` : String(value ?? "");
  return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
};

function csv(data) {
  const lines = [[data.unit, ...data.series.map((series) => series.label)]];
  data.slots.forEach((slot, n) => lines.push([slot, ...data.series.map((series) => series.values[n])]));
  return lines.map((line) => `${line.map(cell).join(",")}\r\n`).join("");
}

function offer(figure, data) {
  const text = csv(data), link = figure.querySelector("[data-csv]");
  document.getElementById(`${figure.dataset.chart}-csv`).textContent = text;
  // With a mark in front, without which Excel takes Japanese for another encoding.
  link.href = URL.createObjectURL(new Blob(["\ufeff", text], { type: "text/csv;charset=utf-8" }));
  link.hidden = false;
}

function repaint() {
  for (const { chart, data } of drawn) paint(chart, data);
}

new MutationObserver(repaint).observe(root, { attributes: true, attributeFilter: ["data-theme"] });
// Paper is white and narrower than the window.
for (const media of ["(prefers-color-scheme: dark)", "print"]) matchMedia(media).addEventListener("change", repaint);

for (const figure of document.querySelectorAll("[data-chart]")) {
  const data = JSON.parse(document.getElementById(figure.dataset.chart).textContent);
  offer(figure, data);
  if (Chart) charts.set(figure.dataset.chart, { data, ...draw(figure.querySelector("canvas"), data) });
  else figure.classList.add("undrawn");
}
