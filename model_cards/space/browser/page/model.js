// Load the model's files and run its network.

import { Calibration, Plain } from "./calibration.js";
import { Vocabulary } from "./genes.js";
import { padded } from "./tokens.js";
import { fetched, unpacked } from "./files.js";
import { Graph } from "./graph.js";
import { readSafetensors } from "./safetensors.js";

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
  /**
   * @param {"wasm"|"webgpu"|null} wanted  what computes; null for the faster one
   * @param {(line: string, webgpu: boolean) => void} tell  is told what computes, and whether WebGPU was loaded
   */
  static async load(wanted, tell) {
    const settings = await (await fetched("model/settings.json")).json();
    const [genes, statistics, graph, calibration] = await Promise.all([
      unpacked("model/genes.json.gz"),
      fetched("model/gene_stats.safetensors").then((reply) => reply.arrayBuffer()),
      Graph.start(unpacked("model/model.onnx.gz"), wanted, tell),
      settings.calibrated ? fetched("model/annotation_calibration.safetensors").then((reply) => reply.arrayBuffer()) : null,
    ]);
    const model = new Model(settings, new Vocabulary(json(genes)), readSafetensors(statistics).tensors, graph, calibration);
    model.#warm();
    return model;
  }

  constructor(settings, vocabulary, tensors, graph, calibration) {
    this.settings = settings;
    this.vocabulary = vocabulary;
    this.statistics = byToken(tensors, vocabulary, settings.tokenizer);
    this.graph = graph;
    this.judge = calibration ? new Calibration(calibration) : new Plain(settings.classes, settings.cell_types);
  }

  /** Let the graph compile for cells that each express the same genes. */
  #warm(cells = 8, width = 64) {
    const size = cells * width;
    const { tokens } = this.vocabulary;
    const input_ids = BigInt64Array.from({ length: size }, (_, i) => BigInt(tokens[(i % width) % tokens.length]));
    const arrays = { input_ids, attention_mask: new BigInt64Array(size).fill(1n), expression_values: new Float32Array(size).fill(1) };
    arrays.measured_genes = new Uint8Array(this.settings.tokenizer.vocab_size).fill(1);
    this.graph.warm(arrays, [cells, width]);
  }

  /** Return whether each token is a gene of a file, from the token of each column; models may expect the other genes. */
  measured(tokens) {
    const found = new Uint8Array(this.settings.tokenizer.vocab_size);
    for (const token of tokens) if (token >= 0) found[token] = 1;
    return found;
  }

  /** Run the network on some cells; returns logits and embeddings, flat. */
  run(rows, cells, measured_genes) {
    const { width, ...arrays } = padded(rows, cells, this.settings.tokenizer.pad_token_id);
    return this.graph.run({ ...arrays, measured_genes }, [cells.length, width]);
  }
}
