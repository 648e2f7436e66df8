// Turn counts into the model's tokens, as gene_encoding.py does.

/**
 * @typedef {object} TokenRows
 * @property {Int32Array} tokens
 * @property {Float32Array|null} values  of the tokens, for Exceiver
 * @property {Float32Array} logs  log1p of their scaled counts
 * @property {Int32Array} indptr  where each cell begins
 */

/** Encodes rows of counts, and counts what is lost. */
export class Encoder {
  /**
   * @param {object} settings  of the tokenizer: kind, target_sum, clip, max_length, cls_token_id, ...
   * @param {{means?: Float64Array, stds?: Float64Array, medians?: Float64Array}} statistics  by token id
   * @param {Int32Array} tokenOf  column of the file -> token id, -1 for unknown genes
   */
  constructor(settings, statistics, tokenOf) {
    this.settings = settings;
    this.statistics = statistics;
    this.tokenOf = tokenOf;
    this.summed = new Float64Array(settings.vocab_size); // counts of a cell by token: columns of one gene are added
    this.lost = new Float64Array(tokenOf.length);
    this.seen = 0;
    this.covered = 0;
    this.cut = 0;
  }

  /** @returns {TokenRows} */
  encode({ data, indices, indptr }) {
    const cells = indptr.length - 1;
    const ends = new Int32Array(cells + 1);
    const tokens = new Int32Array(data.length + cells);
    const logs = new Float32Array(data.length + cells);
    const values = this.settings.kind === "exceiver" ? new Float32Array(data.length + cells) : null;
    let end = 0;
    for (let cell = 0; cell < cells; cell++) {
      const genes = this.#gather(data, indices, indptr[cell], indptr[cell + 1], tokens.subarray(end));
      if (values) this.#standardize(genes, values.subarray(end), logs.subarray(end));
      end += values ? genes.length : this.#rank(genes, tokens.subarray(end), logs.subarray(end));
      ends[cell + 1] = end;
    }
    return { tokens: tokens.slice(0, end), values: values?.slice(0, end) ?? null, logs: logs.slice(0, end), indptr: ends };
  }

  /** Add up the counts of a cell by token, and return its tokens in ascending order. */
  #gather(data, indices, low, stop, space) {
    let n = 0;
    for (let i = low; i < stop; i++) {
      const count = data[i], column = indices[i], token = this.tokenOf[column];
      this.seen += count;
      if (token < 0) this.lost[column] += count;
      else if (count > 0) {
        if (this.summed[token] === 0) space[n++] = token;
        this.summed[token] += count;
        this.covered += count;
      }
    }
    return space.subarray(0, n).sort();
  }

  /** Return what counts of the cell are multiplied by, for a total of `target_sum`. */
  #scale(genes) {
    let total = 0;
    for (const token of genes) total += this.summed[token];
    return this.settings.target_sum / (total > 0 ? total : 1);
  }

  #standardize(genes, values, logs) {
    const { means, stds } = this.statistics;
    const scale = this.#scale(genes);
    genes.forEach((token, i) => {
      const log = Math.log1p(this.summed[token] * scale);
      logs[i] = log;
      values[i] = Math.min((log - means[token]) / stds[token], this.settings.clip) + 1;
    });
    for (const token of genes) this.summed[token] = 0;
  }

  /** Sort genes by count relative to their median, the largest first; write them after <cls>; return their number. */
  #rank(genes, space, logs) {
    const scale = this.#scale(genes);
    const { cls_token_id: first, max_length: most } = this.settings;
    const weighted = (token) => this.summed[token] * this.statistics.weights[token];
    const ranked = Array.from(genes).sort((a, b) => weighted(b) - weighted(a) || a - b);
    const special = first === null ? 0 : 1;
    const kept = Math.min(ranked.length, most - special);
    if (kept < ranked.length) this.cut++;
    if (special) space[0] = first;
    for (let i = 0; i < kept; i++) {
      space[special + i] = ranked[i];
      logs[special + i] = Math.log1p(this.summed[ranked[i]] * scale);
    }
    for (const token of ranked) this.summed[token] = 0;
    return kept + special;
  }

  get coverage() {
    return this.seen > 0 ? this.covered / this.seen : 0;
  }
}

/** Return the number of cells of each batch, for cells in ascending order of their lengths. */
export function batchesOf(lengths, mostCells = 64, mostTokens = 1 << 17) {
  const order = Int32Array.from(lengths.keys()).sort((a, b) => lengths[a] - lengths[b]);
  const batches = [];
  for (let start = 0; start < order.length; ) {
    let stop = start + 1;
    while (stop < order.length && stop - start < mostCells && (stop + 1 - start) * lengths[order[stop]] <= mostTokens) stop++;
    batches.push(order.subarray(start, stop));
    start = stop;
  }
  return batches;
}

/** Pad the tokens of some cells to the longest of them; returns plain arrays and their width. */
export function padded(rows, cells, padTokenId) {
  let width = 1;
  for (const cell of cells) width = Math.max(width, rows.indptr[cell + 1] - rows.indptr[cell]);
  const ids = new BigInt64Array(cells.length * width).fill(BigInt(padTokenId));
  const mask = new BigInt64Array(cells.length * width);
  const values = rows.values ? new Float32Array(cells.length * width) : null;
  cells.forEach((cell, row) => {
    for (let i = rows.indptr[cell], at = row * width; i < rows.indptr[cell + 1]; i++, at++) {
      ids[at] = BigInt(rows.tokens[i]);
      mask[at] = 1n;
      if (values) values[at] = rows.values[i];
    }
  });
  return { input_ids: ids, attention_mask: mask, expression_values: values, width };
}
