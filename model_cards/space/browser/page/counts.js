// Check values for raw counts and choose the matrix that has them, by the rules of count_audit.py and count_matrix.py.

import { described, featuresOf, typeColumns } from "./features.js";
import { number, PageError } from "./errors.js";

const COUNT_LAYERS = ["counts", "raw_counts", "count", "raw", "umi", "umis", "UMIs"];
const SAMPLE_CELLS = 64;
const ENOUGH = 20; // values from which their kind can be told
const LARGEST_LOG = 25;
const OF_A_JOIN =
  "as anndata.concat(join='outer') leaves in dense matrices where a data set lacks a gene: join with fill_value=0";
const OF_A_DIVISION = "as a division by a total of zero leaves: use the values from before that step";
const SCALED =
  "as scaled (z-scored), centred or corrected data has: use the counts from before that step, often in raw.X, a " +
  "layer or the published file";
const EXPECTED =
  "as expected counts have that RSEM, salmon (alevin), kallisto or STARsolo's EM estimate, and counts from which " +
  "ambient RNA was subtracted: if so, round them (numpy.rint) and bring the file again";
const LOG_NORMALISED =
  "as log-normalised data has: use the counts from before scanpy.pp.log1p, often in raw.X, a layer or the published file";
const NORMALISED =
  "as normalised data has (CPM, TPM, counts by size factors): use the counts from before that step, often in raw.X " +
  "or a layer";

const short = (value) => String(Number(value.toPrecision(4)));

function rint(value) {
  const down = Math.floor(value);
  const rest = value - down;
  if (rest !== 0.5) return rest < 0.5 ? down : down + 1;
  return down % 2 === 0 ? down : down + 1;
}

function isNearlyWhole(value) {
  const whole = rint(value);
  return Math.abs(value - whole) <= Math.min(1e-5 + 4e-6 * whole, 0.05) && (whole > 0 || value === 0);
}

/**
 * Return why values cannot be raw counts (a clause, or null), and whether all are exactly whole numbers.
 *
 * @param {Float64Array} values
 */
export function audit(values) {
  let smallest = Infinity, largest = -Infinity, missing = 0, infinite = 0, negative = 0, broken = 0, far = 0;
  for (let i = 0; i < values.length; i++) {
    const value = values[i];
    if (value !== value) missing++;
    else if (value === Infinity || value === -Infinity) infinite++;
    else {
      if (value < smallest) smallest = value;
      if (value > largest) largest = value;
      if (value < 0) negative++;
      if (value % 1 !== 0) {
        broken++;
        if (!isNearlyWhole(value)) far++;
      }
    }
  }
  const n = number(values.length);
  if (missing || infinite) {
    const seen = `${number(missing)} missing (NaN) and ${number(infinite)} infinite values among ${n}`;
    return { reason: `${seen}, ${missing ? OF_A_JOIN : OF_A_DIVISION}`, whole: false };
  }
  if (negative) {
    return { reason: `negative values (${number(negative)} of ${n}, smallest ${short(smallest)}), ${SCALED}`, whole: false };
  }
  if (!broken) return { reason: null, whole: true };
  if (!far) return { reason: null, whole: false };
  const range = `(${number(broken)} of ${n} checked, from ${short(smallest)} to ${short(largest)})`;
  return { reason: `values that are not whole numbers ${range}, ${kindOfFractions(values, largest)}`, whole: false };
}

function kindOfFractions(values, largest) {
  const given = values.filter((value) => value > 0);
  if (given.length < ENOUGH) return largest < LARGEST_LOG ? "as log-normalised data has" : "as normalised data has";
  for (const [base, back, name] of [["log2(counts + 1)", (v) => 2 ** v, "exp2"], ["log1p(counts)", Math.exp, "exp"]]) {
    if (largest < LARGEST_LOG && given.every((value) => isNearlyWhole(back(value) - 1))) {
      return `they are ${base}: compute the counts back, by numpy.${name}(values) - 1`;
    }
  }
  const fractions = given.filter((value) => value % 1 !== 0);
  const share = 1 - fractions.length / given.length;
  const several = new Set(fractions).size > 0.5 * fractions.length;
  if (share > 0.1 || several || given.every((value) => isNearlyWhole(value * 100))) return EXPECTED;
  return largest < LARGEST_LOG ? LOG_NORMALISED : NORMALISED;
}

/** Return the distance from a single-precision value to the next larger one. */
function spacingOf(value) {
  const exponent = Math.floor(Math.log2(value));
  const exact = value < 2 ** exponent ? exponent - 1 : value >= 2 ** (exponent + 1) ? exponent + 1 : exponent;
  return 2 ** (Math.max(exact, -126) - 23);
}

/** Return a bound of the rounding error of each stored value (values of log1p, above 0). */
function roundingErrors(values) {
  const single = values.every((value) => Math.fround(value) === value);
  const spacing = values.map((value) => (single ? spacingOf(value) : spacingOf(value) * 2 ** -29));
  const errors = spacing.map((space) => 3 * space + (single ? 2 ** -22 : 2 ** -50));
  for (let decimals = 1; decimals < 7; decimals++) {
    const scale = 10 ** decimals;
    if (values.every((value, i) => Math.abs(value * scale - rint(value * scale)) <= scale * 2 * spacing[i])) {
      return errors.map((error) => error + 0.5 / scale);
    }
  }
  return errors;
}

/**
 * Compute counts back from log1p of counts that were scaled for each cell, where that is exact.
 *
 * In each cell the smallest value is one count. Return null if a value would not be a whole number of counts within
 * its rounding error.
 *
 * @param {{data: Float64Array, indices: Int32Array, indptr: Int32Array}} rows  without zeros
 */
export function recoverCounts({ data, indptr }) {
  if (!data.length) return data;
  for (const value of data) if (!(value > 0 && value <= 50)) return null;
  const errors = roundingErrors(data);
  const counts = new Float64Array(data.length);
  for (let cell = 0; cell + 1 < indptr.length; cell++) {
    const low = indptr[cell], stop = indptr[cell + 1];
    let smallest = Infinity, unitError = 0;
    for (let i = low; i < stop; i++) {
      if (data[i] < smallest) smallest = data[i];
      if (errors[i] > unitError) unitError = errors[i];
    }
    const unit = Math.expm1(smallest);
    for (let i = low; i < stop; i++) {
      const scaled = Math.expm1(data[i]);
      const ratio = scaled / unit;
      const bound = (errors[i] * (scaled + 1) + ratio * unitError * (unit + 1)) / unit;
      counts[i] = rint(ratio);
      if (Math.abs(ratio - counts[i]) > Math.min(bound, 0.2)) return null;
    }
  }
  return counts;
}

/** Leave out stored zeros. */
function withoutZeros(rows) {
  if (rows.data.every((value) => value !== 0)) return rows;
  const kept = [];
  const indptr = new Int32Array(rows.indptr.length);
  for (let cell = 0; cell + 1 < rows.indptr.length; cell++) {
    for (let i = rows.indptr[cell]; i < rows.indptr[cell + 1]; i++) if (rows.data[i] !== 0) kept.push(i);
    indptr[cell + 1] = kept.length;
  }
  return {
    data: Float64Array.from(kept, (i) => rows.data[i]),
    indices: Int32Array.from(kept, (i) => rows.indices[i]),
    indptr,
  };
}

/** A matrix of raw counts, read by rows; every row is checked. */
export class CountMatrix {
  constructor(place) {
    this.place = place;
    this.matrix = place.matrix;
    this.location = place.name;
    const { genes, leftOut } = featuresOf(place.index, place.columns);
    this.leftOut = leftOut;
    this.columnOf = null; // column of the file -> gene
    this.index = place.index;
    this.columns = place.columns;
    if (genes) {
      this.columnOf = new Int32Array(genes.length).fill(-1);
      let next = 0;
      genes.forEach((isGene, i) => {
        if (isGene) this.columnOf[i] = next++;
      });
      const keep = (values) => values.filter((_, i) => genes[i]);
      this.index = keep(place.index);
      this.columns = new Map([...place.columns].map(([name, values]) => [name, keep(values)]));
    }
    this.recover = false;
    this.rounded = false;
  }

  get cells() {
    return this.matrix.cells;
  }

  get describedLocation() {
    const remarks = [];
    if (this.recover) remarks.push("computed back from log1p values");
    if (this.rounded) remarks.push("rounded to whole numbers, within the error of single precision");
    return remarks.length ? `${this.location} (${remarks.join("; ")})` : this.location;
  }

  /** Read rows, without features that are not genes, unchecked. */
  raw(start, stop) {
    const rows = this.matrix.rows(start, stop);
    if (!this.columnOf) return rows;
    const data = [], indices = [];
    const indptr = new Int32Array(rows.indptr.length);
    for (let cell = 0; cell + 1 < rows.indptr.length; cell++) {
      for (let i = rows.indptr[cell]; i < rows.indptr[cell + 1]; i++) {
        const gene = this.columnOf[rows.indices[i]];
        if (gene < 0) continue;
        data.push(rows.data[i]);
        indices.push(gene);
      }
      indptr[cell + 1] = data.length;
    }
    return { data: Float64Array.from(data), indices: Int32Array.from(indices), indptr };
  }

  /** Read counts of the cells `start` to `stop`; refuse values that are not counts. */
  rows(start, stop) {
    const rows = this.raw(start, stop);
    if (this.recover) {
      const stored = withoutZeros(rows);
      const counts = recoverCounts(stored);
      if (counts === null) {
        throw new PageError(
          `${this.location} is log-normalised, but its counts cannot be computed back in all cells: bring raw counts`,
        );
      }
      return { ...stored, data: counts };
    }
    const { reason, whole } = audit(rows.data);
    if (reason !== null) this.#refuse(rows, start);
    if (whole) return rows;
    this.rounded = true;
    return { ...rows, data: rows.data.map(rint) };
  }

  #refuse(rows, start) {
    for (let cell = 0; cell + 1 < rows.indptr.length; cell++) {
      const { reason } = audit(rows.data.subarray(rows.indptr[cell], rows.indptr[cell + 1]));
      if (reason !== null) {
        throw new PageError(`${this.location} is not raw counts: cell number ${number(start + cell)} has ${reason}.`);
      }
    }
  }

  /** Read some cells from the beginning, the middle and the end. */
  sample() {
    const n = this.cells;
    if (n <= 3 * SAMPLE_CELLS) return [this.raw(0, n)];
    return [0, Math.floor(n / 2), n - SAMPLE_CELLS].map((start) => this.raw(start, start + SAMPLE_CELLS));
  }
}

/** Add types of features to places without them, from another place with features of the same name. */
function withTypes(places) {
  const typed = places.find((place) => typeColumns(place.columns).some((column) => column.own));
  if (!typed) return places;
  const { name, values } = typeColumns(typed.columns).find((column) => column.own);
  const types = new Map();
  typed.index.forEach((feature, i) => {
    const kind = values[i] ?? "";
    types.set(feature, types.has(feature) && types.get(feature) !== kind ? "" : kind);
  });
  return places.map((place) => {
    if (typeColumns(place.columns).some((column) => column.own)) return place;
    const columns = new Map(place.columns).set(name, place.index.map((feature) => types.get(feature) ?? ""));
    return { ...place, columns };
  });
}

/**
 * Choose the place that has raw counts: X, unless raw.X has more genes or counts, then the usual layers, then a place
 * from which counts can be computed back.
 *
 * @param {{name: string, matrix: object, index: string[], columns: Map<string, string[]>}[]} places
 * @returns {CountMatrix}
 */
export function chooseCounts(places) {
  const usual = new Set(["X", "raw.X", ...COUNT_LAYERS.map((name) => `layers['${name}']`)]);
  const seen = [], counts = [], recoverable = [], empty = [];
  let others = "";
  for (const place of withTypes(places)) {
    if (!usual.has(place.name)) continue;
    const candidate = new CountMatrix(place);
    if (candidate.columnOf && candidate.index.length === 0) {
      others ||= `${place.name} has ${described(candidate.leftOut)}`;
      continue;
    }
    const blocks = candidate.sample();
    const values = concatenated(blocks.map((block) => block.data));
    const { reason, whole } = audit(values);
    if (reason === null) {
      candidate.rounded = !whole;
      candidate.sampledSum = values.reduce((sum, value) => sum + value, 0);
      (candidate.sampledSum > 0 ? counts : empty).push(candidate);
      continue;
    }
    seen.push(`${place.name} has ${reason}`);
    if (isRecoverable(blocks)) {
      candidate.recover = true;
      recoverable.push(candidate);
    }
  }
  if (counts.length) return fullest(counts);
  if (recoverable.length || empty.length) return [...recoverable, ...empty][0];
  if (!seen.length && others) throw new PageError(`The file has no genes (features of type 'Gene Expression'): ${others}.`);
  const rest = places.filter((place) => !usual.has(place.name)).map((place) => place.name);
  const named = rest.length ? ` Other matrices of the file are not read: ${rest.join(", ")}.` : "";
  throw new PageError(
    `No raw counts in the file: ${seen.join("; ") || "no place named for counts"}. Counts are whole numbers, not ` +
      `normalised, scaled or corrected.${named}`,
  );
}

function isRecoverable(blocks) {
  return blocks.every((block) => recoverCounts(withoutZeros(block)) !== null);
}

function fullest(candidates) {
  const x = candidates.find((candidate) => candidate.location === "X");
  const raw = candidates.find((candidate) => candidate.location === "raw.X");
  if (x && raw) return raw.index.length > x.index.length || raw.sampledSum > x.sampledSum ? raw : x;
  return x ?? raw ?? candidates[0];
}

export function concatenated(parts) {
  const whole = new parts[0].constructor(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}
