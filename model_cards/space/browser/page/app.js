// The page: takes a file, shows progress and results. All work is done by workers; every text of a file is set as text.

import { number } from "./errors.js";

/* global cellPlot */ // vendor/cell_plot/cell_plot.js, which other pages of cellglot use, too

const PAGE_ROWS = 25;
const MOST_ON_MAP = 15_000;
const LEAST_ON_MAP = 5;
const COMPUTE = new URLSearchParams(location.search).get("compute"); // wasm, webgpu, or null for the faster one
const TOP = 254, MISSING = 255; // the plot's values in bytes

const $ = (id) => document.getElementById(id);
const state = { worker: null, layout: null, plot: null, settings: null, symbols: [], result: null, only: null, page: 0, began: 0 };

/** Make an element with text, never with markup. */
function element(tag, content = "", name = "") {
  const made = document.createElement(tag);
  made.textContent = content;
  if (name) made.className = name;
  return made;
}

// ---------------------------------------------------------------------- workers

/**
 * Start a worker from a blob: such a worker obeys the page's rules on connections (its Content-Security-Policy), which
 * a worker from an address would not.
 */
function startWorker(path, type) {
  const address = JSON.stringify(new URL(path, import.meta.url).href);
  const code = type === "module" ? `import ${address};` : `importScripts(${address});`;
  const url = URL.createObjectURL(new Blob([code], { type: "text/javascript" }));
  return new Worker(url, { type });
}

function startAnnotator() {
  state.worker?.terminate();
  const worker = startWorker("worker.js", "module");
  const waiting = []; // a module worker loses messages that arrive before its modules are there
  let ready = false;
  worker.onmessage = ({ data }) => {
    if (data.type === "alive") {
      ready = true;
      for (const message of waiting.splice(0)) worker.postMessage(message);
    } else answers[data.type](data);
  };
  worker.onerror = (event) => answers.error({ message: `The page failed: ${event.message ?? "a worker did not start"}`, task: "load" });
  state.worker = { terminate: () => worker.terminate(), ask: (message) => (ready ? worker.postMessage(message) : waiting.push(message)) };
  state.worker.ask({ type: "load", compute: COMPUTE });
}

const answers = {
  ready({ settings, symbols }) {
    state.settings = settings;
    state.symbols = symbols;
    document.title = settings.title;
    $("title").textContent = settings.title;
    $("model-name").textContent = settings.name;
    $("class-count").textContent = number(settings.classes.length);
    $("classes").replaceChildren(...settings.classes.map((name) => element("li", name)));
    $("example").hidden = !settings.example;
    if (settings.link) {
      $("link").href = settings.link;
      $("link").hidden = false;
    }
    document.documentElement.dataset.ready = "yes";
  },
  compute({ line, webgpu }) {
    $("compute-line").textContent = line;
    if (webgpu) navigator.serviceWorker?.ready.then(({ active }) => active.postMessage("webgpu"));
  },
  progress({ stage, share, cells }) {
    $("stage").textContent = stage;
    $("bar").value = share;
    if (!cells) return;
    const seconds = (performance.now() - state.began) / 1000;
    const left = share > 0.05 ? `, about ${number(Math.ceil((seconds / share) * (1 - share)))} s left` : "";
    $("pace").textContent = `${number(share * cells)} of ${number(cells)} cells${left}`;
  },
  result(result) {
    state.result = result;
    state.page = 0;
    show("result");
    showResult();
    document.documentElement.dataset.seconds = ((performance.now() - state.began) / 1000).toFixed(2);
  },
  embedding: layOut,
  gene({ name, values }) {
    const high = values.reduce((a, b) => Math.max(a, b), 0);
    const says = high ? "log of counts per 10,000" : "no cell of this file expresses it";
    state.plot?.add({ ...inBytes(name, (cell) => values[cell], 0, high || 1), gene: true, says });
  },
  csv({ blob }) {
    $("download").disabled = false;
    const link = element("a");
    link.href = URL.createObjectURL(blob);
    link.download = `${state.file.name.replace(/\.gz$/i, "").replace(/\.[^.]*$/, "")}-cell-types.csv`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  },
  error({ message, task, fatal }) {
    if (fatal) startAnnotator();
    if (task === "gene") {
      $("gene-says").textContent = message;
      return;
    }
    $("download").disabled = false;
    $("problem-text").textContent = message;
    show("start", "problem");
  },
};

// ---------------------------------------------------------------------- taking a file

function show(...names) {
  for (const name of ["start", "working", "problem", "result"]) $(name).hidden = !names.includes(name);
  document.documentElement.dataset.mapped = "";
  document.documentElement.dataset.shown = names.join(" ");
}

/** Annotate the cells of one file, or of the three files of a 10x matrix. */
function annotate(files) {
  state.file = files.find((file) => /\.mtx(\.gz)?$/i.test(file.name)) ?? files[0];
  state.began = performance.now();
  state.layout?.terminate();
  state.plot?.destroy();
  state.layout = state.plot = state.result = null;
  $("stage").textContent = "Reading the file";
  $("pace").textContent = state.file.name;
  $("bar").removeAttribute("value");
  show("working");
  state.worker.ask({ type: "annotate", files });
}

$("file").addEventListener("change", ({ target }) => {
  if (target.files.length) annotate([...target.files]);
  target.value = "";
});
$("example").addEventListener("click", async () => {
  const reply = await fetch(new URL("model/example_cells.h5ad", import.meta.url));
  if (reply.ok) annotate([new File([await reply.blob()], "example_cells.h5ad")]);
  else answers.error({ message: "The example cells cannot be loaded: reload the page.", task: "annotate" });
});
$("cancel").addEventListener("click", () => {
  startAnnotator(); // ends the old worker, whatever it is at
  show("start");
});
$("another").addEventListener("click", () => {
  show("start");
  $("file").focus();
});
for (const kind of ["dragenter", "dragover"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    $("drop").classList.add("over");
  });
}
for (const kind of ["dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    $("drop").classList.remove("over");
  });
}
document.addEventListener("drop", (event) => {
  const files = event.dataTransfer?.files ?? [];
  if (!files.length || !$("working").hidden) return;
  annotate([...files]);
});
$("download").addEventListener("click", () => {
  $("download").disabled = true;
  state.worker.ask({ type: "csv" });
});

// ---------------------------------------------------------------------- results

const percent = (share, digits = 0) => `${(100 * share).toFixed(digits)}%`;
const decimals = (value) => (Number.isFinite(value) ? value.toFixed(2) : "");
const typeOf = (cell) => cell.label ?? "no prediction";
const isOpen = (cell) => cell.label === "unassigned" || cell.label === null;

function median(values) {
  const sorted = values.filter(Number.isFinite).sort((a, b) => a - b);
  return sorted.length ? sorted[Math.floor((sorted.length - 1) / 2)] : NaN;
}

/** Count the types, the most frequent first; unassigned cells last. */
function typesOf(said) {
  const groups = new Map();
  for (const cell of said) {
    const group = groups.get(typeOf(cell)) ?? { name: typeOf(cell), id: cell.id, cells: 0, scores: [], open: isOpen(cell) };
    group.cells++;
    group.scores.push(cell.score);
    groups.set(group.name, group);
  }
  const sorted = [...groups.values()].sort((a, b) => Number(a.open) - Number(b.open) || b.cells - a.cells || a.name.localeCompare(b.name));
  return sorted;
}

function showResult() {
  const { said, report } = state.result;
  const calibrated = said[0].set !== undefined;
  state.types = typesOf(said);
  state.only = null;
  const named = state.types.filter((type) => !type.open);
  const assigned = said.filter((cell) => !isOpen(cell)).length;
  $("file-name").textContent = state.file.name;
  $("headline").textContent = assigned
    ? `${number(assigned)} of ${number(said.length)} cells have a type: ` +
      named.slice(0, 3).map((type) => `${type.name} (${percent(type.cells / said.length)})`).join(", ") + (named.length > 3 ? ", ..." : "")
    : "No cell has a type: these cells are unlike those that the model was trained on.";
  const notices = [];
  if (report.annotated < report.cells) {
    notices.push(`The file has ${number(report.cells)} cells. This page annotated ${number(report.annotated)} of them, taken at equal steps; cellglot annotate reads all.`);
  }
  if (assigned < said.length / 2 && assigned) notices.push("Most cells are unassigned: they may come from another tissue, or the file from another assay.");
  $("notice").textContent = notices.join(" ");
  $("notice").hidden = !notices.length;
  const numbers = [
    ["cells", number(said.length)],
    ["cell types", number(named.length)],
    [calibrated ? "cells with a type" : "median confidence", calibrated ? percent(assigned / said.length) : decimals(median(said.map((cell) => cell.score)))],
    ["genes found", `${number(report.matched)} of ${number(report.genes)}`],
    ["counts on them", percent(report.coverage, 1)],
  ];
  $("numbers").replaceChildren(...numbers.map(([name, value]) => {
    const pair = element("div");
    pair.append(element("dt", name), element("dd", value));
    return pair;
  }));
  $("calibrated-terms").hidden = !calibrated;
  showTypes();
  showAudit(report);
  const all = element("option", "all cells");
  all.value = "";
  $("only").replaceChildren(all, ...state.types.map((type) => element("option", type.name)));
  const headings = ["cell", "type", "confidence", ...(calibrated ? ["may be", "novelty", "why unassigned"] : []), "genes"];
  $("cells").tHead.rows[0].replaceChildren(...headings.map((name) => {
    const made = element("th", name, ["confidence", "novelty", "genes"].includes(name) ? "n" : "");
    made.scope = "col";
    return made;
  }));
  showCells();
}

function showTypes() {
  const total = state.result.said.length;
  $("types").tBodies[0].replaceChildren(...state.types.map((type) => {
    const row = element("tr", "", state.only === type.name ? "on" : "");
    const name = element("td");
    const button = element("button");
    button.type = "button";
    button.setAttribute("aria-pressed", String(state.only === type.name));
    const label = element("span", type.name);
    if (type.id) label.append(" ", element("span", type.id, "cl"));
    button.append(label);
    name.append(button);
    row.append(name, element("td", number(type.cells), "n"), element("td", percent(type.cells / total, 1), "n"), element("td", decimals(median(type.scores)), "n"));
    row.addEventListener("click", () => choose(state.only === type.name ? null : type.name));
    return row;
  }));
}

/** Show one type only, in the map and in the table of cells; null for all. */
function choose(name) {
  state.only = name;
  state.page = 0;
  $("only").value = name ?? "";
  showTypes();
  showCells();
  state.plot?.colour("cell type").then(() => state.plot.select(name === null ? [] : [name]));
}
$("only").addEventListener("change", ({ target }) => choose(target.value || null));

function showCells() {
  const { said, names, genes } = state.result;
  const calibrated = said[0].set !== undefined;
  const cells = [...said.keys()].filter((cell) => state.only === null || typeOf(said[cell]) === state.only);
  const pages = Math.max(1, Math.ceil(cells.length / PAGE_ROWS));
  state.page = Math.max(0, Math.min(state.page, pages - 1));
  const first = state.page * PAGE_ROWS;
  $("cells").tBodies[0].replaceChildren(...cells.slice(first, first + PAGE_ROWS).map((cell) => {
    const of = said[cell];
    const row = element("tr");
    row.append(element("td", names[cell]), element("td", typeOf(of)), element("td", decimals(of.score), "n"));
    if (calibrated) {
      const wide = of.set.length > 1 ? of.set.join("; ") + (of.broader ? ` (${of.broader})` : "") : "";
      row.append(element("td", wide), element("td", decimals(of.novelty), "n"), element("td", of.reason));
    }
    row.append(element("td", number(genes[cell]), "n"));
    return row;
  }));
  $("page").textContent = cells.length ? `${number(first + 1)} to ${number(Math.min(first + PAGE_ROWS, cells.length))} of ${number(cells.length)}` : "no cells";
  $("before").disabled = state.page === 0;
  $("after").disabled = state.page >= pages - 1;
}
$("before").addEventListener("click", () => (state.page--, showCells()));
$("after").addEventListener("click", () => (state.page++, showCells()));

function showAudit(report) {
  const lines = [
    `${report.format} file with ${number(report.cells)} cells and ${number(report.genes)} genes; the counts are in ${report.location}.`,
    `${number(report.matched)} genes are known to the model; they have ${percent(report.coverage, 1)} of all counts.`,
  ];
  if (report.ambiguous) lines.push(`${number(report.ambiguous)} names mean several genes and were left out.`);
  if (report.losses.length && report.coverage < 0.99) {
    lines.push(`Most counts were lost on ${report.losses.map(([name, counts]) => `${name} (${number(counts)})`).join(", ")}.`);
  }
  if (report.leftOut) lines.push(`Left out, because they are not genes: ${report.leftOut}.`);
  if (report.hint) lines.push(report.hint);
  if (report.empty) lines.push(`${number(report.empty)} cells express no gene of the model: is the file unfiltered?`);
  if (report.cut) lines.push(`${number(report.cut)} cells have more genes than the model reads; their least expressed genes were cut.`);
  lines.push(`Annotated in ${report.seconds.toFixed(1)} seconds, on this machine.`);
  $("audit").replaceChildren(...lines.map((line) => element("li", line)));
}

// ---------------------------------------------------------------------- map

/** Lay the cells out, in a worker, and draw them. */
function layOut({ embedding, size }) {
  const usable = [...state.result.genes.keys()].filter((cell) => state.result.genes[cell] > 0);
  const step = Math.max(1, usable.length / MOST_ON_MAP);
  state.onMap = Int32Array.from({ length: Math.floor(usable.length / step) }, (_, i) => usable[Math.floor(i * step)]);
  const wait = element("p", "Laying out the cells ...", "wait");
  $("map").replaceChildren(wait);
  if (usable.length < LEAST_ON_MAP) {
    wait.textContent = `${number(usable.length)} cells are too few for a map.`;
    return;
  }
  const points = new Float32Array(state.onMap.length * size);
  state.onMap.forEach((cell, i) => points.set(embedding.subarray(cell * size, (cell + 1) * size), i * size));
  state.layout = startWorker("umap_worker.js", "classic");
  state.layout.onmessage = ({ data }) => {
    if (data.type === "progress") wait.textContent = `Laying out the cells ... ${percent(data.share)}`;
    else draw(data.coordinates, step > 1);
  };
  state.layout.onerror = () => (wait.textContent = "The map cannot be drawn.");
  state.layout.postMessage({ embedding: points, size, seed: 42, library: new URL("vendor/umap/umap-js.min.js", import.meta.url).href });
}

/** Return values of the cells on the map as the plot takes them. */
function inBytes(name, valueOf, low, high) {
  const values = Uint8Array.from(state.onMap, (cell) => {
    const value = valueOf(cell);
    return Number.isFinite(value) ? Math.round((Math.max(low, Math.min(high, value)) - low) / (high - low) * TOP) : MISSING;
  });
  return { name, kind: "numbers", values, low, high };
}

async function draw(coordinates, sampled) {
  const { said, names, genes } = state.result;
  const labels = state.types.filter((type) => !type.open).map((type) => type.name);
  const codeOf = new Map(labels.map((label, code) => [label, code]));
  const codes = (labels.length > 254 ? Uint16Array : Uint8Array).from(state.onMap, (cell) => codeOf.get(typeOf(said[cell])) ?? labels.length);
  const colourings = [
    { name: "cell type", kind: "classes", labels, codes, missing: "unassigned" },
    inBytes("confidence", (cell) => said[cell].score, 0, 1),
  ];
  if (said[0].novelty !== undefined) colourings.push(inBytes("novelty", (cell) => said[cell].novelty, 0, 1));
  colourings.push(inBytes("genes expressed", (cell) => genes[cell], 0, genes.reduce((a, b) => Math.max(a, b), 1)));
  const [x, y] = inSteps(coordinates);
  const some = sampled ? ` ${number(state.onMap.length)} of the cells, taken at equal steps, are drawn.` : "";
  const note = `UMAP of the model's embedding: near cells are alike. Drag to move, point at a cell to read it.${some}`;
  const onMap = Array.from(state.onMap, (cell) => names[cell]);
  state.plot = await cellPlot($("map"), { x, y, names: onMap, colourings, note });
  $("map").querySelector(".cell-plot-buttons").before($("gene-search").content.cloneNode(true));
  $("gene").addEventListener("input", completeGene);
  $("gene").addEventListener("change", ({ target }) => {
    $("gene-says").textContent = "";
    if (target.value.trim()) state.worker.ask({ type: "gene", name: target.value });
  });
  document.documentElement.dataset.mapped = "yes";
}

/** Return both axes in whole steps of one scale, as the plot takes them. */
function inSteps(coordinates) {
  const axes = [0, 1].map((axis) => coordinates.filter((_, i) => i % 2 === axis));
  const ends = axes.map((axis) => [axis.reduce((a, b) => Math.min(a, b)), axis.reduce((a, b) => Math.max(a, b))]);
  const width = Math.max(...ends.map(([low, high]) => high - low)) || 1;
  return axes.map((axis, i) => Uint16Array.from(axis, (value) => Math.round(((value - ends[i][0]) / width) * 65535)));
}

function completeGene({ target }) {
  const typed = target.value.trim().toUpperCase();
  const found = typed ? state.symbols.filter((symbol) => symbol.toUpperCase().startsWith(typed)) : [];
  found.sort((a, b) => a.length - b.length || (a < b ? -1 : 1));
  $("gene-names").replaceChildren(...found.slice(0, 12).map((symbol) => {
    const option = element("option");
    option.value = symbol;
    return option;
  }));
}

$("compute-other").href = COMPUTE === "wasm" ? "?" : "?compute=wasm";
$("compute-other").textContent = COMPUTE === "wasm" ? "Use the graphics processor if it is faster" : "Use the processor only";
show("start");
startAnnotator();
navigator.serviceWorker?.register(new URL("offline.js", import.meta.url)).catch(() => {}); // only needed without a network
