// Run the model's graph: by WebAssembly on the processor, or by WebGPU where a graphics processor gives the same scores sooner.

import { unpacked } from "./files.js";
import { softmax } from "./calibration.js";

const RUNTIMES = {
  wasm: ["ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm.gz"],
  webgpu: ["ort.webgpu.bundle.min.mjs", "ort-wasm-simd-threaded.asyncify.wasm.gz"],
};
const LARGEST_NUMBER_OF_THREADS = 4;
const PAUSE = 30; // milliseconds between batches while WebGPU gets ready
const MOST_DIFFERENCE = 0.01; // of a score between the two

const PROCESSOR = "WebAssembly, on the processor";
const GRAPHICS = "WebGPU, on the graphics processor";
const REASONS = {
  wanted: "as the page was told",
  none: "the browser offers no graphics processor",
  software: "the browser's WebGPU is software, which is slower",
  slower: "the graphics processor took longer",
  differs: "the graphics processor gave other scores",
  failed: (error) => `the graphics processor failed: ${String(error?.message ?? error).split("\n")[0].slice(0, 200)}`,
};

/** The graph in one of the two runtimes. */
class Runner {
  /**
   * @param {"wasm"|"webgpu"} kind
   * @param {Promise<ArrayBuffer>} graph
   */
  static async start(kind, graph, threads, adapter) {
    const [script, binary] = RUNTIMES[kind].map((name) => `./vendor/onnxruntime/${name}`);
    const [ort, wasmBinary, bytes] = await Promise.all([import(script), unpacked(binary), graph]);
    Object.assign(ort.env.wasm, { wasmBinary, numThreads: threads });
    if (adapter) ort.env.webgpu.adapter = adapter;
    const session = await ort.InferenceSession.create(new Uint8Array(bytes), { executionProviders: [kind], graphOptimizationLevel: "all" });
    return new Runner(ort, session, ort.env.webgpu.device);
  }

  constructor(ort, session, device) {
    this.Tensor = ort.Tensor;
    this.session = session;
    this.failure = new Promise((_, reject) => {
      device?.lost.then(({ message }) => reject(new Error(message || "it was lost")));
      device?.addEventListener("uncapturederror", ({ error }) => reject(error));
    });
    this.failure.catch(() => {}); // seen by the next run
  }

  async run(arrays, shape) {
    const feeds = {};
    for (const name of this.session.inputNames) {
      const array = arrays[name];
      if (array instanceof Uint8Array) feeds[name] = new this.Tensor("bool", array, [array.length]);
      else feeds[name] = new this.Tensor(array instanceof BigInt64Array ? "int64" : "float32", array, shape);
    }
    const outputs = await Promise.race([this.failure, this.session.run(feeds)]);
    await Promise.race([this.failure, null]); // what a device returns that failed meanwhile is not a result
    return { logits: outputs.logits.data, embedding: outputs[this.session.outputNames.find((name) => name !== "logits")].data };
  }
}

/** Return the adapter of a graphics processor, or the reason why there is none. */
async function graphics(wanted) {
  if (wanted === "wasm") return { reason: REASONS.wanted };
  const adapter = await navigator.gpu?.requestAdapter({ powerPreference: "high-performance" });
  if (!adapter) return { reason: REASONS.none };
  if (wanted !== "webgpu" && adapter.info?.isFallbackAdapter) return { reason: REASONS.software };
  return { adapter };
}

/**
 * The model's graph. WebAssembly computes at once. Meanwhile WebGPU compiles; from the first batch on which it gives the
 * same scores sooner, it computes. If it fails later, WebAssembly computes that batch again, and all others.
 */
export class Graph {
  /**
   * @param {Promise<ArrayBuffer>} graph
   * @param {"wasm"|"webgpu"|null} wanted  "webgpu" also if it is slower, or software; null for the faster one
   * @param {(line: string, webgpu: boolean) => void} tell  is told what computes, and whether WebGPU was loaded
   */
  static async start(graph, wanted, tell) {
    const found = await graphics(wanted).catch((error) => ({ reason: REASONS.failed(error) }));
    const threads = self.crossOriginIsolated ? Math.min(LARGEST_NUMBER_OF_THREADS, navigator.hardwareConcurrency || 1) : 1;
    const made = new Graph(wanted, tell);
    if (found.adapter) made.#graphics = Runner.start("webgpu", graph, 1, found.adapter);
    else made.#settle(null, found.reason);
    made.#graphics?.catch(() => {}); // `warm` sees it
    made.#processor = await Runner.start("wasm", graph, threads);
    return made;
  }

  #processor;
  #graphics = null; // a promise until it is loaded
  #warming = null; // a promise: its first batch, which compiles
  #state = "loading"; // "warm" when WebGPU has computed a batch, "settled" when it is known what computes

  constructor(wanted, tell) {
    this.wanted = wanted;
    this.tell = tell;
  }

  /** Let WebGPU compute some cells, which compiles what it needs; WebAssembly can compute meanwhile. */
  warm(arrays, shape) {
    const warmed = async () => {
      this.#graphics = await this.#graphics;
      this.tell(`Computed by ${PROCESSOR}, while the graphics processor gets ready.`, true);
      await this.#graphics.run(arrays, shape);
      this.#state = "warm";
    };
    if (this.#graphics) this.#warming = warmed().catch((error) => this.#settle(null, REASONS.failed(error)));
  }

  #settle(runner, reason = "") {
    this.#state = "settled";
    this.#graphics = runner;
    this.tell(`Computed by ${runner ? GRAPHICS : PROCESSOR}${reason && `: ${reason}`}.`, runner !== null);
  }

  /** Run the graph on arrays of a shape (cells, genes); returns logits and embeddings, flat. */
  async run(arrays, shape) {
    if (this.#state === "loading") await Promise.race([this.#warming, this.wanted === "webgpu" ? this.#warming : pause()]);
    if (this.#state === "settled") return this.#run(arrays, shape);
    const [expected, onProcessor] = await timed(() => this.#processor.run(arrays, shape));
    if (this.#state === "warm") await this.#compare(arrays, shape, expected, onProcessor);
    return expected;
  }

  async #run(arrays, shape) {
    if (this.#graphics) {
      try {
        return await this.#graphics.run(arrays, shape);
      } catch (error) {
        this.#settle(null, REASONS.failed(error));
      }
    }
    return this.#processor.run(arrays, shape);
  }

  async #compare(arrays, shape, expected, onProcessor) {
    try {
      const byGraphics = () => timed(() => this.#graphics.run(arrays, shape));
      const [found, first] = await byGraphics(); // may compile for this shape
      const same = largestDifference(found.logits, expected.logits, shape[0]) <= MOST_DIFFERENCE; // not if it is NaN
      if (!same) this.#settle(null, REASONS.differs);
      else if (this.wanted !== "webgpu" && first > onProcessor && (await byGraphics())[1] > onProcessor) this.#settle(null, REASONS.slower);
      else this.#settle(this.#graphics);
    } catch (error) {
      this.#settle(null, REASONS.failed(error));
    }
  }
}

/** Give WebGPU time: batches of WebAssembly leave this thread none. */
const pause = () => new Promise((resolve) => setTimeout(resolve, PAUSE));

async function timed(work) {
  const began = performance.now();
  const result = await work();
  return [result, performance.now() - began];
}

/** Return the largest difference of a score of two tables of logits; NaN if one is not a number. */
function largestDifference(first, second, cells) {
  const classes = first.length / cells;
  let most = 0;
  for (let start = 0; start < first.length; start += classes) {
    const [a, b] = [first, second].map((logits) => softmax(logits.subarray(start, start + classes)));
    a.forEach((score, i) => (most = Math.max(most, Math.abs(score - b[i]))));
  }
  return most;
}
