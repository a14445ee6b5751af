/* What is around the maps of report.js: the panel of one sample, the key of the colours, the controls. */
"use strict";

// ---- the sample -----------------------------------------------------------------------------------------------------

function element(tag, properties) {
  return Object.assign(document.createElement(tag), properties);
}

/** Twice the same is once: moving the ring of a 3-D map makes Plotly tell of the hover again. */
function show(i) {
  if (i === undefined || i < 0 || i === state.current) return;
  state.current = i;
  fillPanel();
  for (const view of views) moveRing(view);
}

function fillPanel() {
  const i = state.current;
  if (i < 0) return;
  const title = `Sample ${samples[i]}` + (data.sampleNames ? ` ${data.sampleNames[i]}` : "");
  const heading = element("h3", { textContent: title });
  heading.setAttribute("aria-live", "polite");
  byId("panel").replaceChildren(heading, pictures(i), facts(i));
  byId("panel").dataset.index = i;
}

function pictures(i) {
  const box = element("div", { className: "pictures" });
  if (data.sheets.length && tiles[i] < 0) return element("p", { className: "note", textContent: "No picture of this sample in this page." });
  for (const sheet of data.sheets) {
    const figure = element("figure", {});
    const over = sheet.key.startsWith("gradcam") && data.sheets[0].key.startsWith("image");
    const frame = element("div", { className: over ? "over" : "" });
    if (over) frame.append(tile(data.sheets[0], i));
    frame.append(tile(sheet, i));
    frame.setAttribute("role", "img");
    frame.setAttribute("aria-label", `${sheet.title} of sample ${samples[i]}`);
    figure.append(frame, element("figcaption", { textContent: sheet.title + (over ? " over the image" : "") }));
    for (const [name, values] of Object.entries(sheet.evidence)) {
      figure.append(element("small", { textContent: `${name === "delta" ? "completeness error" : name} ${brief(values[tiles[i]])}` }));
    }
    box.append(figure);
  }
  return box;
}

const brief = (value) => (Number.isNaN(value) ? "–" : Math.abs(value) < 5e-4 ? "0" : value.toPrecision(3));

function tile(sheet, i) {
  const span = element("span", { className: `tile sheet-${sheet.key}` });
  const x = (100 * (tiles[i] % sheet.columns)) / Math.max(sheet.columns - 1, 1);
  const y = (100 * Math.floor(tiles[i] / sheet.columns)) / Math.max(sheet.rows - 1, 1);
  span.style.backgroundPosition = `${x}% ${y}%`;
  return span;
}

function facts(i) {
  const list = element("dl", {});
  const add = (term, text, className = "") => list.append(element("dt", { textContent: term }), element("dd", { textContent: text, className }));
  if (label) add("label", categoryName(label[i]));
  for (const run of runs) {
    const of = runs.length > 1 ? `${run.name}: ` : "";
    if (run.prediction) add(`${of}prediction`, categoryName(run.prediction[i]) + (isWrong(run, i) ? " (wrong)" : ""), isWrong(run, i) ? "wrong" : "");
    for (const [name, values] of Object.entries(run.numbers)) add(of + name, brief(values[i]));
    if (run.suspects.has(i)) add(`${of}label`, "likely wrong");
  }
  for (const { run, map } of views) {
    const of = runs.length > 1 ? `${run.name}: ` : "";
    for (const [name, values] of Object.entries(map.trust)) add(`${of}${map.title}: ${name.replaceAll("_", " ")}`, brief(values[i]));
  }
  return list;
}

// ---- what is around the maps ----------------------------------------------------------------------------------------

function drawKey() {
  const entry = (background, text, second) => {
    const swatch = element("i", { className: second ? "swatch second" : "swatch" });
    swatch.style.background = `rgb(${background.join()})`;
    const span = element("span", {});
    span.append(swatch, text);
    return span;
  };
  const view = views.find(valuesOf);
  let parts = [];
  if (state.colour === "right or wrong") parts = [entry(RIGHT, "right"), entry(WRONG, "wrong"), entry(GREY, "no label")];
  else if (view) {
    const ramp = element("i", { className: "ramp" });
    ramp.style.background = `linear-gradient(to right, ${VIRIDIS.map((c) => `rgb(${c.join()})`).join()})`;
    const span = element("span", {});
    const ends = [0.01, 0.99].map((share) => quantile(valuesOf(view), share).toPrecision(3));
    const others = views.filter(valuesOf).length > 1 ? " (first map; each has its own range)" : "";
    span.append(`${state.colour.replace("_", " ")} ${ends[0]}`, ramp, ends[1] + others);
    parts = [span];
  } else if (["label", "prediction"].includes(state.colour)) {
    const step = few ? 1 : Math.ceil(data.categories.length / 12);
    parts = data.categories.map((name, c) => [name, c]).filter(([, c]) => c % step === 0)
      .map(([name, c]) => entry(categoryColour(c), name, few && c >= hues.length));
  }
  byId("key").replaceChildren(...parts);
}

function tell() {
  const shown = new Set(views.flatMap((view) => view.shown)).size;
  const chosen = [...state.selected];
  const mistakes = chosen.filter((i) => runs.some((run) => isWrong(run, i))).length;
  byId("count").textContent = `${count(shown)} of ${count(samples.length)} samples shown` +
    (chosen.length ? `, ${count(chosen.length)} selected` + (label ? `, ${count(mistakes)} of these wrong` : "") : "") + ".";
}

function options(id, values, names = values) {
  byId(id).replaceChildren(...values.map((value, i) => element("option", { value, textContent: names[i] })));
}

function setUp() {
  const measures = [...new Set(runs.flatMap((run) => run.maps.flatMap((m) => Object.keys(m.trust))))];
  const judged = label && runs.some((run) => run.prediction);
  const colours = [label && "label", runs[0].prediction && "prediction", judged && "right or wrong",
    ...new Set(runs.flatMap((run) => Object.keys(run.numbers))), ...measures].filter(Boolean);
  state.colour = colours[0] ?? "";
  state.beside = layers.length > 1 && runs.length === 1 ? layers.filter((layer) => layer !== state.layer).at(-1) : "";
  options("layer", layers);
  byId("layer").value = state.layer ?? "";
  options("beside", ["", ...layers], ["none", ...layers]);
  byId("beside").value = state.beside;
  byId("beside-label").hidden = layers.length < 2 || runs.length > 1;
  options("colour", colours, colours.map((name) => name.replaceAll("_", " ")));
  options("category", ["", ...data.categories.keys()], ["all", ...data.categories]);
  options("kind", ["all", ...(judged ? ["wrong", "right"] : []), ...(runs.some((run) => run.suspects.size) ? ["likely label errors"] : []),
    ...(runs.length > 1 && runs.every((run) => run.prediction) ? ["flipped"] : []), "selected"]);
  byId("fade-why").hidden = byId("fade").parentElement.hidden = !measures.length;
  const further = (run, layer) => run.maps.filter((m) => m.layer === layer && m.method === "further").length;
  const most = Math.max(0, ...runs.flatMap((run) => layers.map((layer) => further(run, layer) + 1)));
  const few = Math.ceil(PAGE / runs.length);
  const pages = most > 1 ? Array.from({ length: Math.ceil(most / few) }, (_, p) => p) : [];
  options("page", ["", ...pages], ["PCA and t-SNE", ...pages.map((p) => `t-SNE maps ${p * few + 1} to ${Math.min((p + 1) * few, most)}`)]);
  byId("page").parentElement.hidden = !pages.length;
  for (const id of ["layer", "beside", "page"]) {
    byId(id).addEventListener("change", (e) => { state[id] = e.target.value; byId("beside").disabled = state.page !== ""; makeViews(); });
  }
  for (const id of ["colour", "category", "kind"]) byId(id).addEventListener("change", (e) => { state[id] = e.target.value; drawAll(); });
  byId("fade").addEventListener("change", (e) => { state.fade = e.target.checked; byId("fade-why").hidden = !state.fade; drawAll(); });
  byId("clear").addEventListener("click", () => select([]));
  byId("controls").addEventListener("submit", (e) => e.preventDefault());
  byId("search").addEventListener("change", (e) => search(e.target.value.trim()));
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button.sample");
    if (!button) return;
    show(Number(button.dataset.index));
    byId("views").scrollIntoView({ block: "start" });
  });
}

function search(text) {
  const named = () => (text && data.sampleNames ? data.sampleNames.findIndex((name) => name.includes(text)) : -1);
  const found = /^\d+$/.test(text) ? samples.indexOf(Number(text)) : named();
  if (found >= 0) show(found);
  byId("search").setAttribute("aria-invalid", String(!!text && found < 0));
  if (text && found < 0) byId("count").textContent = `No sample ${text} in this page: it has ${samples[0]} to ${samples[samples.length - 1]}.`;
  else tell();
}
