// Read the three files of a 10x matrix where they lie: matrix.mtx, features.tsv (or genes.tsv), barcodes.tsv; also gzipped.

import { number, PageError } from "./errors.js";
import { LIMITS } from "./cells.js";

const MOST_ENTRIES = 60_000_000; // in memory: 12 bytes each
const SHORTEST_ENTRY = 4; // bytes: "1 1" and the end of the line
const NUMBERS = ["integer", "real", "pattern", "unsigned-integer"];
const LONGEST_LINE = 1 << 16;
const LONGEST_HEAD = 1 << 20;
const NEWLINE = 10, SPACE = 32, ZERO = 48, NINE = 57;

const plainName = (file) => file.name.toLowerCase().replace(/\.gz$/, "");
const isMatrix = (file) => plainName(file).endsWith(".mtx");

/** Whether files are to be read by `openMarket`. */
export const isMarket = (files) => files.length > 1 || isMatrix(files[0]);

/** Open the files of a matrix. The result has `places`, `obs` and `close`, as that of `openCells`. */
export async function openMarket(files, mostBytes) {
  const { matrix, features, barcodes } = byRole(files);
  const bytes = files.reduce((sum, file) => sum + file.size, 0);
  if (bytes > mostBytes) {
    throw new PageError(
      `These files have ${number(bytes / 2 ** 20)} MB: this page reads up to ${number(mostBytes / 2 ** 20)} MB. Use ` +
        "cellglot annotate for larger ones.",
    );
  }
  const rows = (await linesOf(features, LIMITS.genes, "genes")).map((line) => line.split("\t"));
  const names = (await linesOf(barcodes, LIMITS.storedCells, "cells")).map((line) => line.split("\t")[0]);
  const symbols = rows.map((row) => row[1] ?? row[0]);
  const columns = new Map([["gene_ids", rows.map((row) => row[0])], ["gene_symbols", symbols]]);
  if (rows.some((row) => row.length > 2)) columns.set("feature_types", rows.map((row) => row[2] ?? ""));
  const read = await new MarketText(matrix, names.length, rows.length).read();
  const obs = { length: names.length, names: [], index: () => names, column: () => null };
  return { format: "10x matrix", places: [{ name: "X", matrix: read, index: symbols, columns }], obs, close() {} };
}

/** Say which file is which, by their names. */
function byRole(files) {
  const named = (...endings) => files.find((file) => endings.some((ending) => plainName(file).endsWith(ending)));
  const roles = { matrix: files.find(isMatrix), features: named("features.tsv", "genes.tsv"), barcodes: named("barcodes.tsv") };
  if (files.length === 3 && Object.values(roles).every(Boolean)) return roles;
  const these = files.slice(0, 5).map((file) => file.name).join(", ");
  const what = roles.matrix
    ? `${roles.matrix.name} needs the names of its genes and cells: bring it together with features.tsv.gz (or genes.tsv) and ` +
      "barcodes.tsv.gz."
    : "Bring one file of cells, or the three files of one 10x matrix together: matrix.mtx.gz, features.tsv.gz, barcodes.tsv.gz.";
  throw new PageError(`${what} ${files.length === 1 ? "This is" : "These are"} ${these}${files.length > 5 ? ", ..." : ""}.`);
}

const isPacked = async (file) => {
  const [first, second] = new Uint8Array(await file.slice(0, 2).arrayBuffer());
  return first === 0x1f && second === 0x8b;
};

/** Yield the bytes of a file in parts, unpacked. */
async function* partsOf(file) {
  const packed = await isPacked(file);
  const stream = packed ? file.stream().pipeThrough(new DecompressionStream("gzip")) : file.stream();
  const reader = stream.getReader();
  try {
    for (;;) {
      let part;
      try {
        part = await reader.read();
      } catch {
        throw new PageError(`${file.name} is damaged or cut off${packed ? ": it cannot be unpacked" : ""}. Copy or download it again.`);
      }
      if (part.done) return;
      yield part.value;
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** Return the lines of a file that are not empty. */
async function linesOf(file, most, what) {
  const decoder = new TextDecoder();
  let rest = "";
  const lines = [];
  const add = (line) => {
    const content = line.replace(/\r$/, "");
    if (content) lines.push(content);
  };
  for await (const part of partsOf(file)) {
    const split = (rest + decoder.decode(part, { stream: true })).split("\n");
    rest = split.pop();
    if (rest.length > LONGEST_LINE) throw new PageError(`${file.name} has a line of more than ${number(LONGEST_LINE)} characters: it is not a list of ${what}.`);
    split.forEach(add);
    if (lines.length > most) throw new PageError(`${file.name} has more than ${number(most)} ${what}: too many for this page.`);
  }
  add(rest + decoder.decode());
  if (!lines.length) throw new PageError(`${file.name} is empty.`);
  return lines;
}

/** The text of a matrix, genes x cells or cells x genes. */
class MarketText {
  constructor(file, cells, genes) {
    this.file = file;
    this.cells = cells;
    this.genes = genes;
    this.seen = 0;
  }

  /** Read all entries, and return them as rows of cells. */
  async read() {
    let rest = new Uint8Array(0), head = null;
    for await (const part of partsOf(this.file)) {
      let bytes = joined(rest, part);
      if (head === null) {
        head = await this.#head(bytes);
        if (head === null) {
          if (bytes.length > LONGEST_HEAD) throw this.#noHead("");
          rest = bytes;
          continue;
        }
        bytes = bytes.subarray(head.end);
      }
      const end = bytes.lastIndexOf(NEWLINE) + 1;
      this.#entries(bytes, end);
      rest = bytes.slice(end);
      if (rest.length > LONGEST_LINE) throw this.#wrong("a line that is too long");
    }
    if (head === null && (head = await this.#head(joined(rest, Uint8Array.of(NEWLINE)))) === null) throw this.#noHead("");
    else if (rest.length && this.values) {
      const last = joined(rest, Uint8Array.of(NEWLINE));
      this.#entries(last, last.length);
    }
    if (this.seen !== this.entries) {
      throw new PageError(
        `${this.file.name} has ${number(this.seen)} entries, but its head declares ${number(this.entries)}: it may be cut off.`,
      );
    }
    return new Rows(this);
  }

  #noHead(found) {
    return new PageError(
      `${this.file.name} is not a general coordinate Matrix Market file` + (found ? `: it begins '${found.slice(0, 60)}'.` : "."),
    );
  }

  #wrong(what) {
    return new PageError(`${this.file.name} has ${what} after ${number(this.seen)} entries: it is damaged.`);
  }

  /** Read the head; null if it is not complete. */
  async #head(bytes) {
    const first = bytes.indexOf(NEWLINE);
    if (first < 0) return null;
    const lineAt = (start, end) => new TextDecoder("latin1").decode(bytes.subarray(start, end)).trim();
    const begins = lineAt(0, first);
    const words = begins.toLowerCase().split(/\s+/);
    if (words.slice(0, 3).join(" ") !== "%%matrixmarket matrix coordinate" || words.slice(4).join(" ") !== "general") {
      throw this.#noHead(begins);
    }
    if (!NUMBERS.includes(words[3])) throw new PageError(`${this.file.name} contains ${words[3].slice(0, 30)} numbers, not counts.`);
    for (let start = first + 1; ; ) {
      const end = bytes.indexOf(NEWLINE, start);
      if (end < 0) return null;
      const line = lineAt(start, end);
      start = end + 1;
      if (!line || line.startsWith("%")) continue;
      await this.#prepare(line.split(/\s+/).map(Number), line);
      this.fields = words[3] === "pattern" ? 2 : 3;
      return { end: start };
    }
  }

  async #prepare(sizes, line) {
    const [rows, columns, entries] = sizes;
    if (sizes.length !== 3 || !sizes.every((size) => Number.isInteger(size) && size >= 0)) {
      throw new PageError(`${this.file.name} has no readable head: found '${line.slice(0, 60)}', not rows, columns and entries.`);
    }
    this.genesFirst = rows === this.genes && columns === this.cells;
    if (!this.genesFirst && !(rows === this.cells && columns === this.genes)) {
      throw new PageError(
        `${this.file.name} is ${number(rows)} x ${number(columns)}, but there are ${number(this.genes)} genes and ` +
          `${number(this.cells)} cells: do the three files belong together?`,
      );
    }
    const size = this.file.size * ((await isPacked(this.file)) ? LIMITS.inflation : 1);
    if (entries * SHORTEST_ENTRY > size + 1) {
      throw new PageError(`${this.file.name} declares ${number(entries)} entries, too many for its size: it may be cut off.`);
    }
    if (entries > MOST_ENTRIES) {
      throw new PageError(
        `${this.file.name} has ${number(entries)} entries: this page reads up to ${number(MOST_ENTRIES)} of a text. Use ` +
          "cellglot annotate, or write the cells as .h5ad.",
      );
    }
    this.entries = entries;
    this.cellOf = new Int32Array(entries);
    this.geneOf = new Int32Array(entries);
    this.values = new Float32Array(entries);
  }

  /** Read the lines of entries in bytes up to `end`, which is behind the end of a line. */
  #entries(bytes, end) {
    const fields = [0, 0, 1];
    let at = 0;
    while (at < end) {
      let found = 0;
      while (bytes[at] !== NEWLINE) {
        if (bytes[at] <= SPACE) {
          at++;
          continue;
        }
        const start = at;
        let value = 0, whole = true;
        for (; bytes[at] > SPACE; at++) {
          if (bytes[at] >= ZERO && bytes[at] <= NINE) value = 10 * value + bytes[at] - ZERO;
          else whole = false;
        }
        if (!whole) value = Number(String.fromCharCode(...bytes.subarray(start, Math.min(at, start + 64))));
        if (found < 3) fields[found] = value;
        found++;
      }
      at++;
      if (found) this.#add(fields, found);
    }
  }

  #add(fields, found) {
    if (found !== this.fields || !Number.isFinite(fields[2])) throw this.#wrong("a line that is not an entry");
    if (this.seen === this.entries) throw new PageError(`${this.file.name} has more entries than its head declares: it is damaged.`);
    const [gene, cell] = this.genesFirst ? fields : [fields[1], fields[0]];
    if (!(cell >= 1 && cell <= this.cells && gene >= 1 && gene <= this.genes && Number.isInteger(cell) && Number.isInteger(gene))) {
      throw this.#wrong(`an entry outside its ${number(this.genes)} genes x ${number(this.cells)} cells`);
    }
    this.cellOf[this.seen] = cell - 1;
    this.geneOf[this.seen] = gene - 1;
    this.values[this.seen++] = fields[2];
  }
}

function joined(first, second) {
  if (!first.length) return second;
  const whole = new Uint8Array(first.length + second.length);
  whole.set(first);
  whole.set(second, first.length);
  return whole;
}

/** Rows of cells in memory. */
class Rows {
  constructor({ cells, genes, cellOf, geneOf, values }) {
    this.cells = cells;
    this.genes = genes;
    this.indptr = new Float64Array(cells + 1);
    let inOrder = true;
    for (let i = 0; i < cellOf.length; i++) {
      this.indptr[cellOf[i] + 1]++;
      inOrder &&= i === 0 || cellOf[i] >= cellOf[i - 1];
    }
    for (let i = 1; i <= cells; i++) this.indptr[i] += this.indptr[i - 1];
    [this.data, this.indices] = inOrder ? [values, geneOf] : this.#sorted(cellOf, geneOf, values);
  }

  #sorted(cellOf, geneOf, values) {
    const next = this.indptr.slice();
    const data = new Float32Array(values.length), indices = new Int32Array(values.length);
    for (let i = 0; i < values.length; i++) {
      const place = next[cellOf[i]]++;
      data[place] = values[i];
      indices[place] = geneOf[i];
    }
    return [data, indices];
  }

  /** Return the end of a chunk of rows that begins at `start`. */
  chunkEnd(start) {
    let stop = start + 1;
    while (stop < this.cells && stop - start < 4096 && this.indptr[stop + 1] - this.indptr[start] <= LIMITS.bytesAtOnce / 16) stop++;
    return stop;
  }

  rows(start, stop) {
    const low = this.indptr[start], high = this.indptr[stop];
    const indptr = Int32Array.from(this.indptr.subarray(start, stop + 1), (at) => at - low);
    return { data: Float64Array.from(this.data.subarray(low, high)), indices: this.indices.slice(low, high), indptr };
  }
}
