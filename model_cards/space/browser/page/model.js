// Load the model's files and run its network.

import * as ort from "./vendor/onnxruntime/ort.wasm.bundle.min.mjs";
import { Calibration, Plain } from "./calibration.js";
import { Vocabulary } from "./genes.js";
import { padded } from "./tokens.js";
import { PageError } from "./errors.js";
import { readSafetensors } from "./safetensors.js";

const LARGEST_NUMBER_OF_THREADS = 4;

async function fetched(path) {
  const reply = await fetch(new URL(path, import.meta.url));
  if (!reply.ok) throw new PageError(`The page's file ${path} cannot be loaded (${reply.status}): reload the page.`);
  return reply;
}

/** Fetch a file that lies there packed by gzip; some servers unpack it on the way. */
async function unpacked(path) {
  const buffer = await (await fetched(path)).arrayBuffer();
  const bytes = new Uint8Array(buffer, 0, 2);
  if (bytes[0] !== 0x1f || bytes[1] !== 0x8b) return buffer;
  return new Response(new Blob([buffer]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
}

const json = (buffer) => JSON.parse(new TextDecoder().decode(buffer));

/** Return the statistics of genes by token id. */
function byToken(tensors, vocabulary, settings) {
  const spread = (values, fill) => {
    const all = new Float64Array(settings.vocab_size).fill(fill);
    vocabulary.tokens.forEach((token, i) => (all[token] = values[i]));
    return all;
  };
  if (settings.kind === "exceiver") {
    const stds = tensors.std.values.map((std) => (std === 0 ? 1 : std));
    return { means: spread(tensors.mean.values, 0), stds: spread(stds, 1) };
  }
  return { weights: spread(tensors.median.values.map((median) => 1 / median), 0) };
}

export class Model {
  static async load() {
    const settings = await (await fetched("model/settings.json")).json();
    const [genes, statistics, graph, runtime, calibration] = await Promise.all([
      unpacked("model/genes.json.gz"),
      fetched("model/gene_stats.safetensors").then((reply) => reply.arrayBuffer()),
      unpacked("model/model.onnx.gz"),
      unpacked("vendor/onnxruntime/ort-wasm-simd-threaded.wasm.gz"),
      settings.calibrated ? fetched("model/annotation_calibration.safetensors").then((reply) => reply.arrayBuffer()) : null,
    ]);
    ort.env.wasm.wasmBinary = runtime;
    ort.env.wasm.numThreads = self.crossOriginIsolated
      ? Math.min(LARGEST_NUMBER_OF_THREADS, navigator.hardwareConcurrency || 1)
      : 1;
    const session = await ort.InferenceSession.create(new Uint8Array(graph), {
      executionProviders: ["wasm"],
      graphOptimizationLevel: "all",
    });
    return new Model(settings, new Vocabulary(json(genes)), readSafetensors(statistics).tensors, session, calibration);
  }

  constructor(settings, vocabulary, tensors, session, calibration) {
    this.settings = settings;
    this.vocabulary = vocabulary;
    this.statistics = byToken(tensors, vocabulary, settings.tokenizer);
    this.session = session;
    this.judge = calibration ? new Calibration(calibration) : new Plain(settings.classes, settings.cell_types);
    this.embeddingName = session.outputNames.find((name) => name !== "logits");
  }

  /** Run the network on some cells; returns logits and embeddings, flat. */
  async run(rows, cells) {
    const { width, ...arrays } = padded(rows, cells, this.settings.tokenizer.pad_token_id);
    const feeds = {};
    for (const name of this.session.inputNames) {
      feeds[name] = new ort.Tensor(arrays[name] instanceof BigInt64Array ? "int64" : "float32", arrays[name], [cells.length, width]);
    }
    const outputs = await this.session.run(feeds);
    const found = { logits: outputs.logits.data, embedding: outputs[this.embeddingName].data };
    return found;
  }
}
