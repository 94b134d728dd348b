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

function draw() {
  const style = getComputedStyle(document.documentElement);
  for (const [id, figure] of Object.entries(figures)) {
    const { data, layout } = coloured(figure, style);
    const place = document.getElementById(id);
    Plotly.react(place, data, { ...layout, width: place.clientWidth }, config);
  }
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
    if (place) location.hash = place;
  });
}
addEventListener("resize", draw);
addEventListener("beforeprint", () => paper(true));
addEventListener("afterprint", () => paper(false));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
