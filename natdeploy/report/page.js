"use strict";

// plotly by itself offers to send a chart to its makers' server.
const config = {
  displaylogo: false,
  showSendToCloud: false,
  plotlyServerURL: "",
  modeBarButtons: [["zoom2d", "pan2d", "resetScale2d", "toImage"]],
};

let figures = {};
let axes = {};

const chosen = (name) => document.getElementById(name)?.value;

// A figure names its colours; page.css knows them for light, dark and paper.
function coloured(value, style) {
  if (typeof value === "string" && value.startsWith("--")) return style.getPropertyValue(value).trim();
  if (Array.isArray(value)) return value.map((each) => coloured(each, style));
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([key, each]) => [key, coloured(each, style)]));
}

// The front as Python drew it, with other quantities on its axes; nets of which one of the two is not known are left out.
function withChosenAxes(figure) {
  const [across, up] = [chosen("across"), chosen("up")];
  if (across === "latency" && up === "error") return figure;
  const [x, y] = [axes[across], axes[up]];
  const known = (place) => x.values[place] !== undefined && y.values[place] !== undefined;
  const marks = (trace) => {
    const kept = trace.customdata.map((place, number) => [place, trace.hovertext[number]]).filter(([place]) => known(place));
    return {
      ...trace,
      x: kept.map(([place]) => x.values[place]),
      y: kept.map(([place]) => y.values[place]),
      customdata: kept.map(([place]) => place),
      hovertext: kept.map(([, text]) => text),
    };
  };
  const drawn = figure.data.map((trace) => (trace.customdata ? marks(trace) : trace));
  // The line through what no other mark of its front beats.
  const line = (trace) => {
    const own = drawn.filter((each) => each.customdata && each.meta === trace.meta);
    const points = own.flatMap((each) => each.x.map((value, number) => [value, each.y[number]]));
    const steps = [];
    for (const point of points.sort((a, b) => a[0] - b[0] || a[1] - b[1])) {
      if (!steps.length || point[1] < steps[steps.length - 1][1]) steps.push(point);
    }
    return { ...trace, x: steps.map((point) => point[0]), y: steps.map((point) => point[1]) };
  };
  const limited = across === "latency";
  const annotations = figure.layout.annotations
    .filter((each) => (each.name === undefined ? limited : known(each.name)))
    .map((each) => (each.name === undefined ? each : { ...each, x: x.values[each.name], y: y.values[each.name] }));
  const titled = (axis, title) => ({ ...axis, title: { ...axis.title, text: title } });
  return {
    data: drawn.map((trace) => (trace.customdata ? trace : line(trace))),
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
  // What was zoomed stays so until other axes are chosen.
  const uirevision = `${chosen("across")} ${chosen("up")}`;
  for (const [id, figure] of Object.entries(figures)) {
    const { data, layout } = coloured(id === "front" ? withChosenAxes(figure) : figure, style);
    const place = document.getElementById(id);
    Plotly.react(place, data, { ...layout, uirevision, width: place.clientWidth }, config);
  }
}

// A net's row, opened; or, where the net is of another page, that page. A net that was shown last is shown again although the
// address stays.
function show(place) {
  const row = document.getElementById(place);
  if (!row) {
    location.assign(place);
    return;
  }
  row.querySelector("details").open = true;
  location.hash = place;
  row.scrollIntoView({ block: "nearest" });
}

function paper(on) {
  document.documentElement.classList.toggle("paper", on);
  draw();
}

// Draws what the document holds; again after it was replaced.
function start() {
  figures = JSON.parse(document.getElementById("figures").textContent);
  axes = JSON.parse(document.getElementById("axes").textContent);
  draw();
  for (const id of Object.keys(figures)) {
    const place = document.getElementById(id);
    place.removeAllListeners("plotly_click");
    place.on("plotly_click", (event) => {
      const net = event.points[0].customdata;
      if (net) show(net);
    });
  }
  for (const name of ["across", "up"]) document.getElementById(name)?.addEventListener("change", draw);
}

document.documentElement.classList.add("drawn");
start();
document.getElementById(location.hash.slice(1))?.querySelector("details")?.setAttribute("open", "");
addEventListener("resize", draw);
addEventListener("beforeprint", () => paper(true));
addEventListener("afterprint", () => paper(false));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
