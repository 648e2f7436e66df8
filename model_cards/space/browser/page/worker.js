// The work of the page, in a thread of its own: read a file, annotate its cells, answer what is asked about them.

import { batchesOf, Encoder } from "./tokens.js";
import { chooseCounts, concatenated } from "./counts.js";
import { described } from "./features.js";
import { number, PageError } from "./errors.js";
import { openCells, unreadable } from "./cells.js";
import { isMarket, openMarket } from "./market.js";
import { Model } from "./model.js";
import { csvParts } from "./table.js";

const MOST_KEPT_TOKENS = 40_000_000; // for colouring by a gene

let model = null;
let opened = null; // the file, kept open for the table of cells
let done = null; // results of the last file

const say = (type, content = {}, transfer = []) => self.postMessage({ type, ...content }, transfer);
const loaded = (compute = null) => (model ??= Model.load(compute, (line, webgpu) => say("compute", { line, webgpu })));

self.onmessage = async ({ data }) => {
  try {
    await tasks[data.type](data);
  } catch (error) {
    const found = error instanceof PageError ? error : unreadable(data.files?.[0] ?? { name: "The file" }, error);
    if (found !== error) console.error(error);
    say("error", { message: found.message, task: data.type, fatal: found.fatal === true });
  }
};

const tasks = {
  async load({ compute }) {
    const { settings, vocabulary, judge } = await loaded(compute);
    const symbols = vocabulary.genes.map((gene, i) => vocabulary.symbols[i] || gene);
    say("ready", { settings, symbols, levels: judge.levels ?? null });
  },

  async annotate({ files, level }) {
    opened?.close();
    opened = done = null;
    say("progress", { stage: "Loading the model", share: 0 });
    const network = await loaded();
    say("progress", { stage: "Reading the file", share: 0 });
    opened = await (isMarket(files) ? openMarket(files, network.settings.most_bytes) : openCells(files[0], network.settings.most_bytes));
    done = await annotated(network, opened, level);
    const { embedding, size, shown } = done;
    say("result", shown);
    say("embedding", { embedding: embedding.slice(), size });
  },

  async gene({ name }) {
    const { vocabulary } = await loaded();
    const token = vocabulary.find(name);
    if (token < 0) throw new PageError(`'${name}' is not one of the model's genes.`);
    if (!done.kept) throw new PageError("The file has too many counts for colouring by a gene.");
    say("gene", { name: vocabulary.symbolOf(token), values: expressionOf(token) });
  },

  async csv() {
    const blob = new Blob(csvParts(opened.obs, done.chosen, done.names, done.said), { type: "text/csv" });
    say("csv", { blob });
  },
};

/** Return the numbers of the cells to annotate: all, or cells at equal steps of a larger file. */
function chosenCells(cells, most) {
  const chosen = Math.min(cells, most);
  return Int32Array.from({ length: chosen }, (_, i) => Math.floor((i * cells) / chosen));
}

async function annotated(network, { format, places, obs }, level) {
  const counts = chooseCounts(places);
  const { vocabulary, settings, judge } = network;
  const match = vocabulary.resolve(counts.index, counts.columns);
  if (!match.matched) throw vocabulary.refusal("no gene of these cells", match, counts.index);
  const encoder = new Encoder(settings.tokenizer, network.statistics, match.tokens);
  const measured = network.measured(match.tokens);
  const chosen = chosenCells(counts.cells, settings.most_cells);
  const special = settings.tokenizer.cls_token_id !== null && settings.tokenizer.kind !== "exceiver" ? 1 : 0;
  const { classes } = settings;
  const logits = new Float32Array(chosen.length * classes.length);
  const genes = new Int32Array(chosen.length);
  let embedding = null, size = 0, first = 0;
  const kept = [];
  let keptTokens = 0;
  const began = performance.now();
  for (let start = 0; start < counts.cells; ) {
    const stop = counts.matrix.chunkEnd(start);
    const rows = selected(counts.rows(start, stop), start, chosen, first);
    const encoded = encoder.encode(rows);
    const lengths = encoded.indptr.subarray(1).map((end, i) => end - encoded.indptr[i]);
    lengths.forEach((length, i) => (genes[first + i] = length - special));
    let ready = first;
    for (const batch of batchesOf(lengths)) {
      ready += batch.length;
      const cells = batch.filter((cell) => lengths[cell] > special);
      if (!cells.length) continue;
      const found = await network.run(encoded, cells, measured);
      size = found.embedding.length / cells.length;
      embedding ??= new Float32Array(chosen.length * size);
      cells.forEach((cell, row) => {
        logits.set(found.logits.subarray(row * classes.length, (row + 1) * classes.length), (first + cell) * classes.length);
        embedding.set(found.embedding.subarray(row * size, (row + 1) * size), (first + cell) * size);
      });
      say("progress", { stage: "Annotating cells", share: ready / chosen.length, cells: chosen.length });
    }
    keptTokens += encoded.tokens.length;
    if (keptTokens <= MOST_KEPT_TOKENS) kept.push({ first, tokens: encoded.tokens, logs: encoded.logs, indptr: encoded.indptr });
    first += lengths.length;
    start = stop;
  }
  if (encoder.coverage < settings.tokenizer.min_coverage) {
    const percent = (share) => `${(100 * share).toFixed(1)}%`;
    throw vocabulary.refusal(
      `${percent(encoder.coverage)} of these cells' counts (below ${percent(settings.tokenizer.min_coverage)})`, match, counts.index,
    );
  }
  if (embedding === null) throw new PageError(`None of ${number(chosen.length)} cells expresses a gene of the model.`);
  const allNames = obs.index();
  const names = Array.from(chosen, (cell) => allNames[cell]);
  const said = names.map((_, cell) => {
    const empty = genes[cell] <= 0;
    const own = empty ? null : logits.subarray(cell * classes.length, (cell + 1) * classes.length);
    const distance = judge.distance && !empty ? judge.distance(embedding.subarray(cell * size, (cell + 1) * size)) : NaN;
    return judge.decide(own, distance, genes[cell], level);
  });
  const report = {
    format,
    cells: counts.cells,
    annotated: chosen.length,
    genes: counts.index.length,
    matched: match.matched,
    ambiguous: match.ambiguous,
    coverage: encoder.coverage,
    location: counts.describedLocation,
    leftOut: described(counts.leftOut),
    hint: match.hint,
    cut: encoder.cut,
    empty: genes.reduce((sum, n) => sum + (n <= 0), 0),
    losses: largestLosses(encoder.lost, counts.index),
    seconds: (performance.now() - began) / 1000,
  };
  const shown = { names, said, genes, report };
  return { chosen, names, said, embedding, size, logits, kept: keptTokens <= MOST_KEPT_TOKENS ? kept : null, shown };
}

/** Keep the rows of the chosen cells; `first` is the place of the first of them in `chosen`. */
function selected(rows, start, chosen, first) {
  const cells = rows.indptr.length - 1;
  let last = first;
  while (last < chosen.length && chosen[last] < start + cells) last++;
  if (last - first === cells) return rows;
  const data = [], indices = [];
  const indptr = new Int32Array(last - first + 1);
  for (let i = first; i < last; i++) {
    const [low, high] = [rows.indptr[chosen[i] - start], rows.indptr[chosen[i] - start + 1]];
    data.push(rows.data.subarray(low, high));
    indices.push(rows.indices.subarray(low, high));
    indptr[i - first + 1] = indptr[i - first] + high - low;
  }
  if (!data.length) return { data: new Float64Array(0), indices: new Int32Array(0), indptr };
  return { data: concatenated(data), indices: concatenated(indices), indptr };
}

function largestLosses(lost, index) {
  const order = Array.from(lost.keys()).filter((i) => lost[i] > 0).sort((a, b) => lost[b] - lost[a]);
  return order.slice(0, 5).map((i) => [index[i], lost[i]]);
}

/** Return log1p of the counts of a gene, scaled to 10,000 in each cell. */
function expressionOf(token) {
  const values = new Float32Array(done.names.length);
  for (const { first, tokens, logs, indptr } of done.kept) {
    for (let cell = 0; cell + 1 < indptr.length; cell++) {
      for (let i = indptr[cell]; i < indptr[cell + 1]; i++) if (tokens[i] === token) values[first + cell] = logs[i];
    }
  }
  return values;
}

say("alive");
