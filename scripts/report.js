/* The maps of a report: linked views of the same samples, a panel of one of them. See report.py and report_data.py.
 *
 * One state, drawn anew where it changes: every view of a map gets its points and their colours from it, so that no two views can
 * disagree. Hovering changes no map (a ring moves over it), which keeps it quick with many points.
 */
"use strict";

const byId = (id) => document.getElementById(id);
const data = JSON.parse(byId("data").textContent);

// ---- numbers of the page --------------------------------------------------------------------------------------------

function bytes(base) {
  const text = atob(base.trim());
  const out = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) out[i] = text.charCodeAt(i);
  return out;
}

const whole = (base) => base && new Int32Array(bytes(base).buffer);

/** 65,535 steps from low to high, the last value is NaN: see steps() of report_data.py. */
function numbers(packed) {
  const steps = new Uint16Array(bytes(packed.data).buffer);
  const step = (packed.high - packed.low) / 65534;
  return Float64Array.from(steps, (s) => (s === 65535 ? NaN : packed.low + s * step));
}

const all = (packed) => Object.fromEntries(Object.entries(packed).map(([name, p]) => [name, numbers(p)]));
const samples = whole(data.samples);
const label = whole(data.label);
const tiles = whole(data.tiles);
const runs = data.runs.map((run) => ({
  ...run,
  prediction: whole(run.prediction),
  numbers: all(run.numbers),
  suspects: new Set(run.suspects),
  maps: run.maps.map((m) => ({ ...m, axes: m.axes.map(numbers), behind: m.behind?.map(numbers), trust: all(m.trust) })),
}));
for (const sheet of data.sheets) sheet.evidence = all(sheet.evidence);
const layers = [...new Set(runs.flatMap((run) => run.maps.map((m) => m.layer)))];
const isWrong = (run, i) => label && run.prediction && label[i] >= 0 && label[i] !== run.prediction[i];
const categoryName = (c) => (c < 0 ? "no label" : data.categories[c] ?? String(c));
const count = (n) => n.toLocaleString("en");

// Points are drawn in a fixed random order (xorshift), so that no category covers the others.
const order = Int32Array.from(samples, (_, i) => i);
for (let i = order.length - 1, seed = 2463534242; i > 0; i--) {
  seed ^= seed << 13;
  seed ^= seed >>> 17;
  seed ^= seed << 5;
  const j = (seed >>> 0) % (i + 1);
  [order[i], order[j]] = [order[j], order[i]];
}

const state = { layer: layers.includes("logits") ? "logits" : layers.at(-1), beside: "", page: "", colour: "", category: "",
  kind: "all", fade: true, current: -1, selected: new Set() };
let views = []; // that are shown
const made = [];
let revision = 0;
const canWebgl = !!document.createElement("canvas").getContext("webgl");
const touch = matchMedia("(pointer: coarse)").matches; // there a drag moves the page, until a button says otherwise
const MAX_WEBGL = 5; // views: each takes three contexts, browsers have 16
const PAGE = 4; // views of all t-SNE maps of a layer

// ---- colours --------------------------------------------------------------------------------------------------------

const GREY = [176, 176, 176];
const WRONG = [213, 0, 50];
const RIGHT = [120, 160, 200];
const VIRIDIS = ["#440154", "#472d7b", "#3b528b", "#2c728e", "#21918c", "#28ae80", "#5ec962", "#addc30", "#fde725"].map(rgb);
const hues = data.hues.map(rgb);

function rgb(hex) {
  return [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
}

function viridis(share) {
  const place = Math.min(Math.max(share, 0), 1) * (VIRIDIS.length - 1);
  const i = Math.min(Math.floor(place), VIRIDIS.length - 2);
  return VIRIDIS[i].map((low, c) => Math.round(low + (place - i) * (VIRIDIS[i + 1][c] - low)));
}

const few = data.categories.length <= 2 * hues.length;

function categoryColour(c) {
  if (c < 0) return GREY;
  return few ? hues[c % hues.length] : viridis((0.9 * c) / (data.categories.length - 1));
}

/** The value that a share of all is below: one sample far off must not take all colours. */
function quantile(values, share) {
  const known = values.filter((v) => !Number.isNaN(v)).sort();
  return known.length ? known[Math.floor(share * (known.length - 1))] : NaN;
}

const trustOf = (map) => map.trust.trustworthiness ?? Object.values(map.trust)[0];
const valuesOf = (view) => view.run.numbers[state.colour] ?? view.map.trust[state.colour];

/** A function from a sample to its colour [r, g, b] in this view. */
function colouring(view) {
  const values = valuesOf(view);
  if (values) {
    const low = quantile(values, 0.01);
    const span = quantile(values, 0.99) - low || 1;
    return (i) => (Number.isNaN(values[i]) ? GREY : viridis((values[i] - low) / span));
  }
  if (state.colour === "right or wrong") return (i) => (!label || label[i] < 0 ? GREY : isWrong(view.run, i) ? WRONG : RIGHT);
  const categories = state.colour === "label" ? label : state.colour === "prediction" ? view.run.prediction : null;
  return categories ? (i) => categoryColour(categories[i]) : () => GREY;
}

/** A function from a sample to how opaque it is: by its trust, and whether it is selected. */
function opacity(view) {
  const trust = state.fade ? trustOf(view.map) : null;
  const low = trust ? quantile(trust, 0.01) : 0;
  return (i) => {
    if (state.selected.size && !state.selected.has(i)) return 0.06;
    if (state.selected.size || !trust) return 0.85;
    const clear = Math.min(Math.max((trust[i] - low) / Math.max(1 - low, 1e-3), 0), 1);
    return 0.12 + 0.75 * (clear || 0);
  };
}

// ---- maps -----------------------------------------------------------------------------------------------------------

/** Sample indices that a view draws, the ones to be seen last. */
function shownIn(view) {
  const [x, y] = view.map.axes;
  const shown = [...order].filter((i) => passes(i) && !Number.isNaN(x[i] + y[i]));
  const late = (i) => (state.selected.has(i) ? 2 : 0) + (state.colour === "right or wrong" && isWrong(view.run, i) ? 1 : 0);
  return shown.sort((a, b) => late(a) - late(b));
}

function passes(i) {
  if (state.category !== "" && (label ?? runs[0].prediction)[i] !== Number(state.category)) return false;
  switch (state.kind) {
    case "wrong": return runs.some((run) => isWrong(run, i));
    case "right": return !runs.some((run) => isWrong(run, i)) && !(label && label[i] < 0);
    case "likely label errors": return runs.some((run) => run.suspects.has(i));
    case "flipped": return runs[0].prediction[i] !== runs[1].prediction[i];
    case "selected": return state.selected.has(i);
    default: return true;
  }
}

/** Side by side: the PCA and t-SNE of one or two layers; or a page of all t-SNE maps of one layer; the same of both files. */
function wantedMaps() {
  const of = (run, layer) => run.maps.filter((map) => map.layer === layer).map((map) => ({ run, map }));
  if (state.page !== "") {
    const few = Math.ceil(PAGE / runs.length);
    const all = runs.map((run) => of(run, state.layer).filter(({ map }) => ["tsne", "further"].includes(map.method)));
    return all.flatMap((maps) => maps.slice(state.page * few, (Number(state.page) + 1) * few));
  }
  const methods = [...new Set(runs.flatMap((run) => run.maps.map((map) => map.method)))].filter((method) => method !== "further");
  const chosen = runs.length > 1 ? [state.layer] : [...new Set([state.layer, state.beside])];
  return chosen.flatMap((layer) => methods.flatMap((method) => runs.flatMap((run) => of(run, layer).filter(({ map }) => map.method === method))));
}

/** Views are hidden and used again, never taken down: each holds drawing contexts, of which a browser has few and takes
 * the oldest away before it has noticed that others are free. */
function makeViews() {
  views = wantedMaps().map((part, n) => {
    made[n] ??= makeView(n < MAX_WEBGL);
    Object.assign(made[n], part);
    tellWhat(made[n]);
    return made[n];
  });
  const again = views.filter((view) => view.figure.hidden);
  made.forEach((view, n) => { view.figure.hidden = n >= views.length; });
  drawAll();
  again.forEach((view) => Plotly.Plots.resize(view.div)); // the window may have changed since
  fillPanel();
}

function makeView(webgl) {
  const view = { webgl: webgl && canWebgl, figure: element("figure", { className: "view" }), title: element("h3", {}),
    overall: element("div", { className: "overall" }), div: element("div", { className: "map", tabIndex: 0 }),
    ring: element("div", { className: "ring", hidden: true }) };
  view.div.setAttribute("role", "application");
  view.div.addEventListener("keydown", (event) => onKey(view, event));
  view.figure.append(view.title, view.overall, view.div);
  byId("views").append(view.figure);
  return view;
}

function tellWhat(view) {
  view.title.textContent = view.map.title + (runs.length > 1 ? ` (${view.run.name})` : "");
  view.overall.textContent = view.map.overall;
  view.div.setAttribute("aria-label", `${view.title.textContent}, ${view.map.overall || "no measures"}. Arrow keys move to the next point ` +
    "in a direction, space selects it, Escape clears the selection.");
}

function drawAll() {
  revision++;
  views.forEach(draw);
  drawKey();
  tell();
}

function draw(view) {
  const [x, y, z] = view.map.axes;
  const shown = (view.shown = shownIn(view));
  const colour = colouring(view);
  const alpha = opacity(view);
  const categories = { label, prediction: view.run.prediction }[state.colour];
  const second = few && data.categories.length > hues.length && categories;
  const pick = (values) => shown.map((i) => values[i]);
  const size = (shown.length > 20000 ? 3 : shown.length > 2000 ? 4.5 : 7) * (z ? 0.4 : 1);
  const trace = {
    name: "samples", type: z ? "scatter3d" : view.webgl ? "scattergl" : "scatter", mode: "markers", x: pick(x), y: pick(y), hoverinfo: "none",
    marker: {
      // Points in 3-D that one can see through come out in other colours: there they are pale, and small.
      size: z ? shown.map((i) => size * (0.3 + 0.8 * alpha(i))) : size, line: { width: 0 }, opacity: 1,
      color: z ? shown.map((i) => `rgb(${colour(i).map((c) => Math.round(255 + alpha(i) * (c - 255))).join()})`)
        : shown.map((i) => `rgba(${colour(i).join()},${alpha(i).toFixed(2)})`),
      symbol: second ? shown.map((i) => (categories[i] < hues.length ? "circle" : z ? "diamond" : "triangle-up")) : "circle",
    },
  };
  if (z) trace.z = pick(z);
  else Object.assign(trace, { selected: { marker: { opacity: 1 } }, unselected: { marker: { opacity: 1 } } });
  const axis = { visible: false };
  const layout = {
    margin: { l: 4, r: 4, t: 4, b: 4 }, hovermode: "closest", showlegend: false, paper_bgcolor: "#fff", plot_bgcolor: "#fff",
    uirevision: view.title.textContent, selectionrevision: revision, selections: [], hoverdistance: 30,
    ...(z ? { scene: { xaxis: axis, yaxis: axis, zaxis: axis, camera: { eye: { x: 1, y: 1, z: 1 } } } } 
      : { dragmode: touch ? false : "lasso", xaxis: axis, yaxis: { ...axis, scaleanchor: "x" } }),
  };
  const traces = [...behind(view), trace, ...(z ? [ringOf(view)] : [])];
  // Named, because the library's own choice has a button that sends the data to its maker.
  const buttons = z ? [["orbitRotation", "zoom3d", "pan3d", "resetCameraDefault3d"]]
    : [["lasso2d", "select2d", "pan2d", "zoom2d"], ["zoomIn2d", "zoomOut2d", "resetScale2d"]];
  const config = { responsive: true, displaylogo: false, scrollZoom: !touch, modeBarButtons: buttons, plotlyServerURL: "" };
  Plotly.react(view.div, traces, layout, config);
  if (!view.listens) listen(view);
  if (z) view.ring.hidden = true;
  else moveRing(view);
}

function listen(view) {
  view.listens = true;
  view.div.append(view.ring);
  const indices = (event) => event.points.filter((p) => p.data.name === "samples").map((p) => view.shown[p.pointNumber]);
  view.div.on("plotly_hover", (event) => show(indices(event)[0]));
  view.div.on("plotly_click", (event) => show(indices(event)[0]));
  // Later, because Plotly is still at work on the event. One of no shape is the empty selection that a new drawing begins with.
  view.div.on("plotly_selected", (event) => (event?.lassoPoints || event?.range) && setTimeout(select, 0, indices(event)));
  view.div.on("plotly_deselect", () => setTimeout(select, 0, []));
  for (const name of ["plotly_relayout", "plotly_relayouting", "plotly_afterplot"]) {
    view.div.on(name, () => view.map.axes.length < 3 && moveRing(view));
  }
}

/** The points of a stored map, which new samples were placed in. */
function behind(view) {
  if (!view.map.behind) return [];
  const [x, y, z] = view.map.behind;
  return [{ name: "stored map", type: z ? "scatter3d" : view.webgl ? "scattergl" : "scatter", mode: "markers", hoverinfo: "skip",
    x, y, ...(z ? { z } : {}),
    marker: { size: 3, color: "rgba(176,176,176,0.4)", line: { width: 0 } } }];
}

/** In 3-D the ring is a point of its own. */
function ringOf(view) {
  const [x, y, z] = view.map.axes.map((values) => (state.current < 0 ? [] : [values[state.current]]));
  return { type: "scatter3d", mode: "markers", x, y, z, hoverinfo: "skip",
    marker: { size: 6, symbol: "circle-open", color: "#000", line: { width: 3 } } };
}

function moveRing(view) {
  const i = state.current;
  const [x, y, z] = view.map.axes;
  const { xaxis, yaxis } = view.div._fullLayout ?? {};
  view.ring.hidden = !!z || i < 0 || !xaxis || Number.isNaN(x[i] + y[i]);
  if (z && i >= 0) setTimeout(() => Plotly.restyle(view.div, { x: [[x[i]]], y: [[y[i]]], z: [[z[i]]] }, [view.div.data.length - 1]), 0);
  if (view.ring.hidden) return;
  view.ring.style.left = `${xaxis.l2p(x[i]) + xaxis._offset}px`;
  view.ring.style.top = `${yaxis.l2p(y[i]) + yaxis._offset}px`;
}

function select(indices) {
  state.selected = new Set(indices);
  if (!indices.length && state.kind === "selected") byId("kind").value = state.kind = "all";
  drawAll();
}

const DIRECTIONS = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };

function onKey(view, event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key in DIRECTIONS) show(neighbour(view, DIRECTIONS[event.key]));
  else if (event.key === "Escape") select([]);
  else if (event.key === " " && state.current >= 0) {
    const next = new Set(state.selected);
    if (!next.delete(state.current)) next.add(state.current);
    select([...next]);
  } else return;
  event.preventDefault();
}

/** The nearest point within 45 degrees of a direction; in 3-D, and without a point to start from, the next in the file. */
function neighbour(view, [right, up]) {
  const [x, y, z] = view.map.axes;
  const from = state.current;
  const shown = [...view.shown].sort((a, b) => a - b);
  if (from < 0 || Number.isNaN(x[from] + y[from])) return shown[0] ?? from;
  if (z) return (right + up > 0 ? shown.find((i) => i > from) : shown.findLast((i) => i < from)) ?? from;
  let best = from;
  let least = Infinity;
  for (const i of shown) {
    const [dx, dy] = [x[i] - x[from], y[i] - y[from]];
    const along = dx * right + dy * up;
    const distance = dx * dx + dy * dy;
    if (along > 0 && Math.abs(dx * up) + Math.abs(dy * right) <= along && distance < least) [best, least] = [i, distance];
  }
  return best;
}

// ---- start ---------------------------------------------------------------------------------------------------------

/** The library comes packed, and after the first paint: it is a third of the page. */
async function loadLibrary() {
  const stream = new Blob([bytes(byId("plotly").textContent)]).stream().pipeThrough(new DecompressionStream("gzip"));
  document.head.append(element("script", { textContent: await new Response(stream).text() }));
}

async function start() {
  setUp();
  await new Promise((done) => requestAnimationFrame(() => setTimeout(done, 0)));
  await loadLibrary();
  makeViews();
  document.documentElement.dataset.ready = Math.round(performance.now());
}

start().catch((error) => {
  byId("count").textContent = `The maps cannot be drawn: ${error.message}. A browser of 2023 or newer is needed.`;
  throw error;
});
