"use strict";

const figures = JSON.parse(document.getElementById("figures").textContent);
// plotly by itself offers to send a chart to its makers' server.
const config = {
  displaylogo: false,
  showSendToCloud: false,
  plotlyServerURL: "",
  modeBarButtons: [["zoom2d", "pan2d", "resetScale2d", "toImage"]],
};

// A figure names its colours; page.css knows them for light, dark and paper.
function coloured(value, style) {
  if (typeof value === "string" && value.startsWith("--")) return style.getPropertyValue(value).trim();
  if (Array.isArray(value)) return value.map((each) => coloured(each, style));
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([key, each]) => [key, coloured(each, style)]));
}

const axes = JSON.parse(document.getElementById("axes").textContent);
const across = document.getElementById("across");
const up = document.getElementById("up");

// The front as Python drew it, with other quantities on its axes; nets of which one of the two is not known are left out.
function withChosenAxes(figure) {
  if (across.value === "latency" && up.value === "error") return figure;
  const [x, y] = [axes[across.value], axes[up.value]];
  const known = (place) => x.values[place] !== undefined && y.values[place] !== undefined;
  const front = [];
  const data = figure.data.slice(1).map((trace) => {
    const kept = trace.customdata.map((place, number) => [place, trace.hovertext[number]]).filter(([place]) => known(place));
    const points = kept.map(([place]) => [x.values[place], y.values[place]]);
    if (trace.name.startsWith("front")) front.push(...points);
    return {
      ...trace,
      x: points.map((point) => point[0]),
      y: points.map((point) => point[1]),
      customdata: kept.map(([place]) => place),
      hovertext: kept.map(([, text]) => text),
    };
  });
  const steps = [];
  for (const point of front.sort((a, b) => a[0] - b[0] || a[1] - b[1])) {
    if (!steps.length || point[1] < steps[steps.length - 1][1]) steps.push(point);
  }
  const line = { ...figure.data[0], x: steps.map((point) => point[0]), y: steps.map((point) => point[1]) };
  const limited = across.value === "latency";
  const annotations = figure.layout.annotations
    .filter((each) => (each.name === undefined ? limited : known(each.name)))
    .map((each) => (each.name === undefined ? each : { ...each, x: x.values[each.name], y: y.values[each.name] }));
  const titled = (axis, title) => ({ ...axis, title: { ...axis.title, text: title } });
  return {
    data: [line, ...data],
    layout: {
      ...figure.layout,
      annotations,
      shapes: limited ? figure.layout.shapes : [],
      xaxis: titled(figure.layout.xaxis, x.title),
      yaxis: titled(figure.layout.yaxis, y.title),
    },
  };
}

function draw() {
  const style = getComputedStyle(document.documentElement);
  for (const [id, figure] of Object.entries(figures)) {
    const { data, layout } = coloured(id === "front" ? withChosenAxes(figure) : figure, style);
    const place = document.getElementById(id);
    Plotly.react(place, data, { ...layout, width: place.clientWidth }, config);
  }
}

// A net's row, opened. A net that was shown last is shown again although the address stays.
function show(place) {
  document.getElementById(place).querySelector("details").open = true;
  location.hash = place;
  document.getElementById(place).scrollIntoView({ block: "nearest" });
}

function paper(on) {
  document.documentElement.classList.toggle("paper", on);
  draw();
}

document.documentElement.classList.add("drawn");
draw();
for (const id of Object.keys(figures)) {
  document.getElementById(id).on("plotly_click", (event) => {
    const place = event.points[0].customdata;
    if (place) show(place);
  });
}
for (const select of [across, up]) select?.addEventListener("change", draw);
addEventListener("resize", draw);
addEventListener("beforeprint", () => paper(true));
addEventListener("afterprint", () => paper(false));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
