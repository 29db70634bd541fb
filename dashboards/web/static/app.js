"use strict";
// Figures are drawn from the data that stand in the page; parts marked data-live are fetched again when a study changes.
const SETTINGS = { displayModeBar: false, responsive: true, displaylogo: false };

function draw(root) {
  for (const place of root.querySelectorAll(".plot")) {
    const figure = JSON.parse(place.dataset.figure);
    if (place.clientWidth < 560) narrow(figure);
    Plotly.newPlot(place, figure.data, figure.layout, SETTINGS);
  }
  brush(root);
  slide(root);
  leaf(root);
}

// On a phone's width long titles break, long names end early (the table has them whole), and a tall legend gets room.
function narrow(figure) {
  for (const axis of [figure.layout.xaxis, figure.layout.yaxis]) {
    if (!axis || !axis.title || !axis.title.text) continue;
    axis.title.text = axis.title.text.replace(/, (?=lower|higher)/, ",<br>");
    axis.title.standoff = 18;
    axis.automargin = true;
  }
  const named = figure.layout.showlegend === false ? [] : figure.data.filter((trace) => trace.name && trace.showlegend !== false);
  const longest = Math.max(0, ...named.map((trace) => trace.name.length));
  for (const trace of named) if (trace.name.length > 32) trace.name = `${trace.name.slice(0, 31)}…`;
  figure.layout.height = (figure.layout.height || 420) + 21 * Math.ceil(named.length / (longest > 16 ? 1 : 2));
}

// -- fronts of several figures: what is marked in one picture, or in the table, is marked in all ------------

function brush(root) {
  const plots = [...root.querySelectorAll("[data-brush] .plot")];
  const boxes = [...root.querySelectorAll("[data-brush] input[data-candidate]")];
  if (!plots.length) return;
  const mark = (names) => {
    for (const plot of plots) {
      const chosen = plot.data.map((trace) =>
        names.size ? trace.customdata.flatMap((name, i) => (names.has(name) ? [i] : [])) : null);
      Plotly.restyle(plot, { selectedpoints: chosen });
    }
    for (const box of boxes) box.checked = names.has(box.dataset.candidate);
  };
  for (const plot of plots) {
    plot.on("plotly_selected", (event) => mark(new Set((event ? event.points : []).map((point) => point.customdata))));
    plot.on("plotly_click", (event) => mark(new Set(event.points.map((point) => point.customdata))));
    plot.on("plotly_deselect", () => mark(new Set()));
  }
  for (const box of boxes) {
    box.addEventListener("change", () => mark(new Set(boxes.filter((b) => b.checked).map((b) => b.dataset.candidate))));
  }
}

// -- two pictures, one over the other -----------------------------------------------------------------------

function slide(root) {
  const box = root.querySelector("[data-slider]");
  if (!box) return;
  const [left, right, cut] = ["left", "right", "cut"].map((name) => document.getElementById(name));
  const show = () => {
    const [under, over] = box.querySelectorAll("img");
    for (const [picture, choice] of [[under, left], [over, right]]) {
      if (picture.getAttribute("src") !== choice.value) picture.src = choice.value;
      picture.alt = choice.selectedOptions[0].textContent;
    }
    box.style.setProperty("--cut", `${cut.value}%`);
  };
  for (const input of [left, right, cut]) input.addEventListener("input", show);
  show();
}

// -- one picture of several, by a slider ---------------------------------------------------------------------

function leaf(root) {
  const box = root.querySelector("[data-strip]");
  if (!box) return;
  const slider = document.getElementById("strength"), told = document.getElementById("strength-told");
  const show = () => {
    [...box.children].forEach((picture, place) => { picture.hidden = place !== Number(slider.value); });
    told.value = box.children[Number(slider.value)].dataset.strength;
    slider.setAttribute("aria-valuetext", `strength ${told.value}`);
  };
  slider.addEventListener("input", show);
  show();
}

// -- live ---------------------------------------------------------------------------------------------------

const sources = new Map();
const parts = (page) => [...page.querySelectorAll("[data-live]")];

async function refresh() {
  const answer = await fetch(location.href);
  if (!answer.ok) return;
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  for (const fresh of parts(page)) {
    const source = fresh.outerHTML, old = document.getElementById(fresh.id);
    if (!old || sources.get(fresh.id) === source) continue;
    // Whoever is in the middle of a part keeps it until the next change.
    if (old.contains(document.activeElement)) continue;
    sources.set(fresh.id, source);
    const open = new Set([...old.querySelectorAll("details[open]")].map((entry) => entry.id));
    for (const plot of old.querySelectorAll(".js-plotly-plot")) Plotly.purge(plot);
    const made = document.importNode(fresh, true);
    for (const entry of made.querySelectorAll("details")) entry.open = open.has(entry.id);
    for (const box of old.querySelectorAll("input[name]:checked")) {
      const same = made.querySelector(`input[value="${CSS.escape(box.value)}"]`);
      if (same) same.checked = true;
    }
    old.replaceWith(made);
    made.classList.add("fresh");
    draw(made);
  }
  document.documentElement.dataset.refreshed = String(Date.now());
}

function listen() {
  const { study: own = "", stamp = "" } = document.body.dataset;
  let waits = false;
  new EventSource(`/events?${new URLSearchParams({ study: own, since: stamp })}`).addEventListener("changed", (event) => {
    if (waits || (own && !JSON.parse(event.data).includes(own))) return;
    waits = true;
    setTimeout(() => { waits = false; refresh().catch(() => {}); }, 500);
  });
}

for (const part of parts(document)) sources.set(part.id, part.outerHTML);
draw(document);
if (parts(document).length) listen();
document.documentElement.dataset.ready = "yes";
