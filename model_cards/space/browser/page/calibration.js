// What the model knows of its own limits, as annotation_calibration.py says it.

import { readSafetensors } from "./safetensors.js";

export const UNASSIGNED = "unassigned";
export const REASONS = [
  "",
  "no gene of the model is expressed",
  "too few genes of the model are expressed",
  "like cells of other tissues",
  "unlike the cells of training",
  "too many cell types are possible",
];
const [ASSIGNED, NO_GENES, FEW_GENES, FOREIGN, NOVEL, TOO_WIDE] = REASONS.keys();

export function softmax(logits, temperature = 1) {
  let largest = -Infinity;
  for (const logit of logits) largest = Math.max(largest, logit / temperature);
  const powers = Array.from(logits, (logit) => Math.exp(logit / temperature - largest));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map((power) => power / sum);
}

/** Return the largest of values; the first of several. */
function argmax(values) {
  let best = 0;
  for (let i = 1; i < values.length; i++) if (values[i] > values[best]) best = i;
  return best;
}

function interpolated(x, xs, ys) {
  if (x !== x) return NaN;
  if (x <= xs[0]) return ys[0];
  const last = xs.length - 1;
  if (x >= xs[last]) return ys[last];
  let low = 0, high = last; // xs[low] <= x < xs[high]
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (xs[middle] <= x) low = middle;
    else high = middle;
  }
  const width = xs[high] - xs[low];
  return width > 0 ? ys[low] + ((x - xs[low]) / width) * (ys[high] - ys[low]) : ys[low];
}

/** Decisions on cells of a model without a calibration: the most likely class. */
export class Plain {
  constructor(classes, cellTypes) {
    this.classes = classes;
    this.cellTypes = cellTypes;
  }

  decide(logits) {
    if (logits === null) return { label: null, id: null, score: NaN, best: null, reason: REASONS[NO_GENES] };
    const probabilities = softmax(logits);
    const best = argmax(probabilities);
    return { label: this.classes[best], id: this.cellTypes[best], score: probabilities[best], best: this.classes[best] };
  }
}

export class Calibration {
  /** @param {ArrayBuffer} buffer  of annotation_calibration.safetensors */
  constructor(buffer) {
    const { metadata, tensors } = readSafetensors(buffer);
    this.named = JSON.parse(metadata.calibration);
    this.classes = this.named.classes;
    this.cellTypes = this.named.cell_types;
    this.tensors = tensors;
    const [terms, classes] = tensors.below.shape;
    this.below = Array.from({ length: terms }, (_, i) => tensors.below.values.subarray(i * classes, (i + 1) * classes));
    this.known = this.classes.map((name) => !this.named.foreign.includes(name));
    const half = Math.max(1, Math.floor((classes - this.named.foreign.length) / 2));
    this.narrow = this.below.filter((row) => row.reduce((a, b) => a + b, 0) <= half);
    const steps = tensors.distances.values.length;
    this.shares = Array.from({ length: steps }, (_, i) => i / (steps - 1));
  }

  get levels() {
    return Array.from(this.tensors.levels.values);
  }

  /** Return the mean distance of a cell to the nearest training cells, in units of their usual distance. */
  distance(embedding) {
    const { center, projection, references } = this.tensors;
    const [size, directions] = projection.shape;
    const x = new Float64Array(directions);
    for (let i = 0; i < size; i++) {
      const away = embedding[i] - center.values[i];
      for (let j = 0, at = i * directions; j < directions; j++) x[j] += away * projection.values[at + j];
    }
    const k = Math.min(this.named.neighbors, references.shape[0]);
    const nearest = new Array(k).fill(Infinity); // ascending
    for (let r = 0, at = 0; r < references.shape[0]; r++, at += directions) {
      let far = 0;
      for (let j = 0; j < directions; j++) far += (x[j] - references.values[at + j]) ** 2;
      if (far >= nearest[k - 1]) continue;
      let place = k - 1;
      while (place > 0 && nearest[place - 1] > far) nearest[place] = nearest[--place];
      nearest[place] = far;
    }
    return nearest.reduce((sum, far) => sum + Math.sqrt(far), 0) / k / this.named.scale;
  }

  /**
   * Say of a cell what it is, what else it may be, and whether it is like the training cells at all.
   *
   * @param {Float32Array|null} logits  null for a cell without genes
   * @param {number} distance  from `distance`
   * @param {number} genes  number of the model's genes that the cell expresses
   * @param {number} level  share of prediction sets that should hold the true type
   */
  decide(logits, distance, genes, level = 0.9) {
    if (logits === null) {
      return { label: UNASSIGNED, id: null, score: NaN, best: null, set: [], broader: null, broaderId: null, novelty: NaN,
        assigned: false, reason: REASONS[NO_GENES] };
    }
    const { named } = this;
    const probabilities = softmax(logits, named.temperature);
    const outside = probabilities.reduce((sum, p, i) => sum + (this.known[i] ? 0 : p), 0);
    const inside = Math.max(1 - outside, 1e-12);
    const among = probabilities.map((p, i) => (this.known[i] ? p / inside : 0));
    const best = argmax(among);
    const threshold = interpolated(level, this.tensors.levels.values, this.tensors.set_thresholds.values);
    const set = among.map((p, i) => this.known[i] && (i === best ? 0 : 1 - p) <= threshold);
    const novelty = interpolated(distance, this.tensors.distances.values, this.shares);
    let reason = ASSIGNED;
    if (this.#evidence(among) < named.least_evidence) reason = TOO_WIDE;
    if (novelty > named.most_novelty) reason = NOVEL;
    if (outside > named.most_foreign) reason = FOREIGN;
    if (genes < named.least_genes) reason = FEW_GENES;
    const members = [...set.keys()].filter((i) => set[i]).sort((a, b) => probabilities[b] - probabilities[a] || a - b);
    const broader = members.length < 2 ? -1 : this.below.findIndex((row) => members.every((i) => row[i]));
    const assigned = reason === ASSIGNED;
    return {
      label: assigned ? this.classes[best] : UNASSIGNED,
      id: assigned ? this.cellTypes[best] : null,
      score: probabilities[best],
      best: this.classes[best],
      set: members.map((i) => this.classes[i]),
      broader: broader < 0 ? null : named.term_names[broader],
      broaderId: broader < 0 ? null : named.terms[broader],
      novelty,
      assigned,
      reason: REASONS[reason],
    };
  }

  /** Return the largest probability that a class, or a term above at most half of the classes, gathers. */
  #evidence(probabilities) {
    let largest = Math.max(...probabilities);
    for (const row of this.narrow) {
      let sum = 0;
      for (let i = 0; i < row.length; i++) if (row[i]) sum += probabilities[i];
      if (sum > largest) largest = sum;
    }
    return largest;
  }
}
