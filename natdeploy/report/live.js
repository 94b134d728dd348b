"use strict";

// A page of `natdeploy serve` asks now and then whether it changed, and replaces what it shows; what the reader chose, opened or
// zoomed stays.

const EVERY_MS = 1000;
let tag = null;

function replace(next) {
  const { version } = next.documentElement.dataset;
  if (version === document.documentElement.dataset.version) return;
  document.documentElement.dataset.version = version;
  const choices = ["across", "up"].map((name) => [name, chosen(name)]);
  const ticked = new Set([...document.querySelectorAll("input:checked")].map((box) => box.value));
  const opened = [...document.querySelectorAll("tbody[id] details[open]")].map((each) => each.closest("tbody").id);
  // Plots keep their elements, in which plotly draws only what is different.
  for (const id of Object.keys(figures)) next.getElementById(id)?.replaceWith(document.getElementById(id));
  document.querySelector("main").replaceWith(next.querySelector("main"));
  for (const id of ["figures", "axes"]) document.getElementById(id).textContent = next.getElementById(id).textContent;
  document.title = next.title;
  for (const [name, value] of choices) {
    const option = document.querySelector(`#${name} option[value="${CSS.escape(value ?? "")}"]`);
    if (option) option.selected = true;
  }
  for (const box of document.querySelectorAll("input[type=checkbox]")) box.checked = ticked.has(box.value);
  for (const id of opened) document.getElementById(id)?.querySelector("details").setAttribute("open", "");
  start();
}

async function look() {
  try {
    const headers = tag === null ? {} : { "If-None-Match": tag };
    const answer = await fetch(location.pathname + location.search, { headers, cache: "no-store" });
    if (answer.status === 200) {
      replace(new DOMParser().parseFromString(await answer.text(), "text/html"));
      tag = answer.headers.get("ETag");
    }
    document.documentElement.classList.toggle("lost", answer.status !== 200 && answer.status !== 304);
  } catch {
    document.documentElement.classList.add("lost");
  }
  setTimeout(look, EVERY_MS);
}

setTimeout(look, EVERY_MS);
