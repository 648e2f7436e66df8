// Read files of cells (AnnData .h5ad, 10x .h5) where they lie: only the parts that are needed come into memory.

import h5wasm from "./vendor/h5wasm/hdf5_hl.js";
import { number, PageError } from "./errors.js";

export const LIMITS = {
  storedCells: 5_000_000,
  genes: 200_000,
  valuesInMemory: 120_000_000, // of a matrix that is stored by columns
  inflation: 1100, // deflate reaches 1032
  columnsOfCells: 500,
  bytesAtOnce: 64 * 2 ** 20,
};
const MOUNT = "/visitor";
const PLUGINS = { 32000: "lzf", 32015: "zstd", 32001: "blosc" };
const FILTERS = { 307: "bzip2", 32000: "LZF", 32004: "LZ4", 32008: "bitshuffle", 32013: "ZFP", 32026: "Blosc2" };
const GENERAL = new Set([1, 2, 3, 4, 5, 6]);

const text = (value) => (value === null || value === undefined ? "" : String(value));
const attribute = (node, name) => {
  const found = node.attrs[name]?.value;
  return Array.isArray(found) || ArrayBuffer.isView(found) ? found : text(found);
};

/** Open a file of a visitor. The result has `places`, `obs` and `close`. */
export async function openCells(file, mostBytes) {
  if (file.size > mostBytes) {
    throw new PageError(
      `${file.name} has ${number(file.size / 2 ** 20)} MB: this page reads files up to ` +
        `${number(mostBytes / 2 ** 20)} MB. Use cellglot annotate for larger ones.`,
    );
  }
  await checkSignature(file);
  const { FS } = await library();
  if (!FS.analyzePath(MOUNT).exists) FS.mkdir(MOUNT);
  FS.mount(FS.filesystems.WORKERFS, { blobs: [{ name: "cells", data: file }] }, MOUNT);
  let handle = null;
  const close = () => {
    handle?.close();
    FS.unmount(MOUNT);
  };
  try {
    try {
      handle = new h5wasm.File(`${MOUNT}/cells`, "r");
    } catch {
      handle = null;
    }
    if (handle === null || handle.file_id < 0n) {
      handle = null;
      throw new PageError(`${file.name} is damaged or cut off: HDF5 cannot open it. Copy or download it again.`);
    }
    await installPlugins();
    const opened = new Reader(handle, file).open();
    return { ...opened, close };
  } catch (error) {
    close();
    throw error instanceof PageError ? error : unreadable(file, error);
  }
}

/** Return what to say of an error of HDF5. Its memory may be damaged: the worker has to be started again. */
export function unreadable(file, error) {
  const found = new PageError(`${file.name} cannot be read: ${sentence(error)}`);
  found.fatal = true;
  return found;
}

let loading = null;
/** Load HDF5. Its reading function returns a status, which h5wasm does not look at. */
function library() {
  loading ??= h5wasm.ready.then((module) => {
    const read = module.get_dataset_data;
    module.get_dataset_data = (file, path, ...rest) => {
      const status = read(file, path, ...rest);
      if (status < 0) throw new PageError(`${path} cannot be read: the file is damaged, or a part of it lies elsewhere.`);
      return status;
    };
    return module;
  });
  return loading;
}

/** Say what an error of HDF5 means, without its stack. */
export function sentence(error) {
  const message = text(error?.message ?? error).split("\n")[0].slice(0, 300);
  return `${message || "unknown error"}. Is the file complete?`;
}

async function checkSignature(file) {
  const signature = [0x89, 0x48, 0x44, 0x46, 0x0d, 0x0a, 0x1a, 0x0a];
  for (let at = 0; at < file.size; at = at ? 2 * at : 512) {
    const bytes = new Uint8Array(await file.slice(at, at + 8).arrayBuffer());
    if (signature.every((byte, i) => bytes[i] === byte)) return;
    if (at > 2 ** 24) break;
  }
  const what = file.size ? "is not an HDF5 file, whatever its name says" : "is empty";
  throw new PageError(`${file.name} ${what}. This page reads AnnData (.h5ad) and 10x Genomics (.h5) files.`);
}

let installed = null;
function installPlugins() {
  installed ??= (async () => {
    const { FS, get_plugin_search_paths: paths } = await library();
    const folder = paths()[0];
    FS.mkdirTree(folder);
    for (const name of Object.values(PLUGINS)) {
      const reply = await fetch(new URL(`vendor/plugins/libH5Z${name}.so`, import.meta.url));
      if (reply.ok) FS.writeFile(`${folder}/libH5Z${name}.so`, new Uint8Array(await reply.arrayBuffer()));
    }
  })();
  return installed;
}

class Reader {
  constructor(root, file) {
    this.root = root;
    this.file = file;
  }

  open() {
    const keys = this.root.keys();
    const matrix = keys.includes("matrix") ? this.child(this.root, "matrix") : null;
    if (matrix?.type === "Group" && matrix.keys().includes("barcodes")) return this.open10x(matrix);
    const genomes = this.genomes(keys);
    if (genomes.length === 1) return this.open10x(genomes[0]);
    if (genomes.length > 1) {
      throw new PageError(`This 10x file has ${number(genomes.length)} genomes: use cellglot annotate, which reads the human one.`);
    }
    if (keys.includes("row_attrs") && matrix) {
      throw new PageError("This is a loom file: this page reads .h5ad and 10x .h5. Use cellglot annotate for loom.");
    }
    if (keys.includes("mod")) {
      throw new PageError("This is MuData: save its RNA part as an AnnData file, as in mdata['rna'].write_h5ad(...).");
    }
    for (const name of ["obs", "var"]) {
      if (!keys.includes(name)) {
        throw new PageError(
          `This HDF5 file is neither AnnData nor 10x: it has no '${name}'. It has ${keys.slice(0, 6).join(", ") || "nothing"}.`,
        );
      }
    }
    return this.openAnnData(keys);
  }

  /** Return the groups of an old 10x file, one for each genome. */
  genomes(keys) {
    if (keys.includes("obs") || keys.length > 20) return [];
    const groups = keys.map((key) => this.root.get(key)).filter((found) => found?.type === "Group");
    return groups.filter((group) => ["barcodes", "indptr", "genes"].every((name) => group.keys().includes(name)));
  }

  /** Return a member of a group; refuse links that lead out of the file. */
  child(group, name) {
    if (!group.keys().includes(name)) return null;
    const found = group.get(name);
    const path = `${group.path === "/" ? "" : group.path}/${name}`;
    if (found?.type === "ExternalLink") {
      throw new PageError(
        `${path} is a link to another file ('${found.filename}'), which a page cannot follow: write the file whole, ` +
          "as in anndata.read_h5ad(...).write_h5ad(...).",
      );
    }
    if (found === null || found === undefined || found.type === "BrokenSoftLink") {
      throw new PageError(`${path} is a link to nothing: the file is damaged.`);
    }
    if (found.type === "Dataset") this.check(found);
    return found;
  }

  check(dataset) {
    const { virtual_sources: sources, shape, size, vlen, total_size: total } = dataset.metadata;
    if (sources?.some((source) => source.file_name !== ".")) {
      throw new PageError(
        `${dataset.path} is a view of other files ('${sources[0].file_name}'), which a page cannot follow: write the ` +
          "file whole.",
      );
    }
    for (const { id, cd_values: settings } of dataset.filters) {
      const unsized = PLUGINS[id] === "lzf" && settings.length < 3; // of texts: the plugin fails on them
      if (GENERAL.has(id) || (PLUGINS[id] && !unsized)) continue;
      throw new PageError(
        `${dataset.path} is compressed with ${FILTERS[id] ?? `the HDF5 filter ${id}`}, which this page cannot read: ` +
          "write the file again with compression='gzip'.",
      );
    }
    const declared = (shape ?? []).reduce((product, n) => product * Number(n), 1) * (vlen ? 8 : size);
    if (declared > LIMITS.inflation * this.file.size + 2 ** 24) {
      throw new PageError(
        `${dataset.path} declares ${number(declared / 2 ** 20)} MB of values in a file of ` +
          `${number(Math.max(this.file.size / 2 ** 20, 1))} MB: the file is damaged, or made to exhaust memory.`,
      );
    }
    if (Number(total) > 2 ** 31 * 8) throw new PageError(`${dataset.path} has too many values for this page.`);
  }

  // ------------------------------------------------------------------ AnnData

  openAnnData(keys) {
    const places = [];
    const variables = this.table("var", LIMITS.genes, "genes");
    const add = (name, element, table) => {
      if (attribute(element, "encoding-type") === "null") return;
      const matrix = this.matrix(element, name);
      if (matrix.genes !== table.length) {
        throw new PageError(`${name} has ${number(matrix.genes)} columns, but there are ${number(table.length)} genes.`);
      }
      places.push({ name, matrix, index: table.index(), columns: table.texts() });
    };
    if (keys.includes("X")) add("X", this.child(this.root, "X"), variables);
    const raw = keys.includes("raw") ? this.child(this.root, "raw") : null;
    if (raw?.type === "Group" && raw.keys().includes("X")) {
      add("raw.X", this.child(raw, "X"), new Table(this, this.child(raw, "var"), "raw.var", LIMITS.genes, "genes"));
    }
    const layers = keys.includes("layers") ? this.child(this.root, "layers") : null;
    const names = layers?.type === "Group" ? layers.keys() : [];
    if (names.length > 1000) throw new PageError(`There are ${number(names.length)} layers: the file is damaged.`);
    for (const name of names) add(`layers['${name}']`, this.child(layers, name), variables);
    if (!places.length) throw new PageError("The file has no matrix: X, raw.X and layers are empty.");
    const obs = this.table("obs", LIMITS.storedCells, "cells");
    for (const { name, matrix } of places) {
      if (matrix.cells !== obs.length) {
        throw new PageError(`${name} has ${number(matrix.cells)} cells, but obs has ${number(obs.length)}.`);
      }
      if (!matrix.cells || !matrix.genes) {
        throw new PageError(`The file is empty: ${number(matrix.cells)} cells x ${number(matrix.genes)} genes.`);
      }
    }
    return { format: "AnnData", places, obs };
  }

  table(name, most, what) {
    return new Table(this, this.child(this.root, name), name, most, what);
  }

  matrix(element, name) {
    if (element.type === "Dataset") return new DenseMatrix(element, name);
    const parts = ["data", "indices", "indptr"];
    const missing = parts.filter((part) => !element.keys().includes(part));
    if (missing.length) throw new PageError(`The sparse matrix ${name} lacks ${missing.join(", ")}.`);
    const encoding = attribute(element, "encoding-type") || attribute(element, "h5sparse_format") || "csr";
    if (!/^cs[rc]/.test(encoding)) throw new PageError(`The matrix ${name} is stored as '${text(encoding)}', not as CSR or CSC.`);
    const shape = [...(element.attrs.shape ?? element.attrs.h5sparse_shape)?.value ?? []].map(Number);
    if (shape.length !== 2) throw new PageError(`The sparse matrix ${name} lacks its shape.`);
    const [data, indices, indptr] = parts.map((part) => this.child(element, part));
    const byColumns = encoding.startsWith("csc");
    return new SparseRows({ data, indices, indptr }, byColumns ? [shape[1], shape[0]] : shape, name, byColumns);
  }

  // ------------------------------------------------------------------ 10x

  open10x(group) {
    const features = this.child(group, "features") ?? group;
    const column = (name) => (features.keys().includes(name) ? strings(this.child(features, name)) : null);
    const index = column("id") ?? strings(this.child(group, "genes"));
    const columns = new Map();
    const names = column("name") ?? (group.keys().includes("gene_names") ? strings(this.child(group, "gene_names")) : null);
    if (names) columns.set("feature_name", names);
    const types = column("feature_type");
    if (types) columns.set("feature_types", types);
    const shape = [...vector(this.child(group, "shape"))].map(Number); // genes, cells
    const [data, indices, indptr] = ["data", "indices", "indptr"].map((part) => this.child(group, part));
    if ([data, indices, indptr].includes(null)) throw new PageError("The 10x matrix lacks data, indices or indptr.");
    const matrix = new SparseRows({ data, indices, indptr }, [shape[1], shape[0]], "matrix", false);
    if (matrix.genes !== index.length) {
      throw new PageError(`The 10x matrix has ${number(matrix.genes)} features, but ${number(index.length)} names.`);
    }
    const barcodes = strings(this.child(group, "barcodes"));
    if (barcodes.length !== matrix.cells) {
      throw new PageError(`The 10x matrix has ${number(matrix.cells)} cells, but ${number(barcodes.length)} barcodes.`);
    }
    const obs = { length: barcodes.length, names: [], index: () => barcodes, column: () => null };
    return { format: "10x", places: [{ name: "X", matrix, index, columns }], obs };
  }
}

// ---------------------------------------------------------------------- matrices

function numbers(values) {
  if (values instanceof Float64Array) return values;
  if (values instanceof BigInt64Array || values instanceof BigUint64Array) return Float64Array.from(values, Number);
  return Float64Array.from(values);
}

function checkNumeric(dataset, name, types = "bhiqfdBHIQ") {
  const kind = typeof dataset.dtype === "string" ? dataset.dtype : "";
  const isBoolean = dataset.metadata.enum_type !== undefined;
  if (!isBoolean && !(/^[<>]/.test(kind) && types.includes(kind[1]))) {
    throw new PageError(`${name} contains values of type ${kind || "compound"}, not numbers this page reads.`);
  }
  if (kind.startsWith(">")) throw new PageError(`${name} is stored in big-endian order: write the file again.`);
}

class DenseMatrix {
  constructor(dataset, name) {
    checkNumeric(dataset, name);
    if (dataset.shape?.length !== 2) throw new PageError(`${name} has shape (${dataset.shape}), not cells x genes.`);
    this.dataset = dataset;
    [this.cells, this.genes] = dataset.shape.map(Number);
    this.cellsAtOnce = Math.max(1, Math.min(4096, Math.floor(LIMITS.bytesAtOnce / (8 * Math.max(this.genes, 1)))));
  }

  /** Return the end of a chunk of rows that begins at `start`. */
  chunkEnd(start) {
    return Math.min(this.cells, start + this.cellsAtOnce);
  }

  rows(start, stop) {
    const values = this.dataset.slice([[start, stop], [0, this.genes]]);
    const data = [], indices = [];
    const indptr = new Int32Array(stop - start + 1);
    for (let cell = 0, at = 0; cell < stop - start; cell++) {
      for (let gene = 0; gene < this.genes; gene++, at++) {
        const value = Number(values[at]);
        if (value !== 0) {
          data.push(value);
          indices.push(gene);
        }
      }
      indptr[cell + 1] = data.length;
    }
    return { data: Float64Array.from(data), indices: Int32Array.from(indices), indptr };
  }
}

class SparseRows {
  /** @param {number[]} shape  of the stored matrix: (rows, columns); by columns its rows are genes */
  constructor(parts, shape, name, byColumns) {
    checkNumeric(parts.data, `${name}/data`);
    for (const part of ["indices", "indptr"]) checkNumeric(parts[part], `${name}/${part}`, "bhiqBHIQ");
    this.name = name;
    this.parts = parts;
    const [rows, columns] = shape;
    this.cells = byColumns ? columns : rows;
    this.genes = byColumns ? rows : columns;
    const lengths = Object.fromEntries(Object.entries(parts).map(([part, set]) => [part, Number(set.shape?.[0] ?? -1)]));
    if (lengths.indptr !== rows + 1 || lengths.indices !== lengths.data) {
      throw new PageError(
        `${name} is a damaged sparse matrix: ${number(lengths.indptr)} offsets, ${number(lengths.indices)} indices and ` +
          `${number(lengths.data)} values for shape (${number(this.cells)}, ${number(this.genes)}).`,
      );
    }
    if (this.cells > LIMITS.storedCells || this.genes > LIMITS.genes) {
      throw new PageError(`${name} has ${number(this.cells)} cells x ${number(this.genes)} genes: too many for this page.`);
    }
    this.indptr = numbers(parts.indptr.value);
    for (let i = 1; i < this.indptr.length; i++) {
      if (this.indptr[i] < this.indptr[i - 1]) throw this.#damaged("its offsets do not increase");
    }
    if (this.indptr[0] !== 0 || this.indptr[rows] > lengths.data) throw this.#damaged("its offsets lie outside its values");
    this.whole = null;
    this.byColumns = byColumns;
  }

  #damaged(why) {
    return new PageError(`${this.name} is a damaged sparse matrix: ${why}.`);
  }

  chunkEnd(start) {
    if (this.byColumns) this.#convert();
    const most = LIMITS.bytesAtOnce / 16;
    let stop = start + 1;
    while (stop < this.cells && stop - start < 4096 && this.indptr[stop + 1] - this.indptr[start] <= most) stop++;
    return stop;
  }

  rows(start, stop) {
    if (this.byColumns) this.#convert();
    const low = this.indptr[start], high = this.indptr[stop];
    const indptr = Int32Array.from(this.indptr.subarray(start, stop + 1), (at) => at - low);
    if (this.whole) {
      return { data: Float64Array.from(this.whole.data.subarray(low, high)), indices: this.whole.indices.slice(low, high), indptr };
    }
    return { ...this.#read(low, high), indptr };
  }

  #read(low, high, most = this.genes) {
    if (low === high) return { data: new Float64Array(0), indices: new Int32Array(0) };
    const data = numbers(this.parts.data.slice([[low, high]]));
    const stored = this.parts.indices.slice([[low, high]]);
    const indices = stored instanceof Int32Array ? stored : Int32Array.from(stored, Number);
    for (let i = 0; i < indices.length; i++) {
      if (indices[i] < 0 || indices[i] >= most) throw this.#damaged(`it has the index ${indices[i]} along ${number(most)}`);
    }
    return { data, indices };
  }

  /** Turn a matrix that is stored by columns into rows, in memory. */
  #convert() {
    if (this.whole) return;
    const values = this.indptr[this.indptr.length - 1];
    if (values > LIMITS.valuesInMemory) {
      throw new PageError(
        `${this.name} is stored by columns (CSC) and has ${number(values)} values: write it by rows (CSR), as in ` +
          "adata.X = adata.X.tocsr(), or use cellglot annotate.",
      );
    }
    const byColumn = this.indptr;
    const step = LIMITS.bytesAtOnce / 16;
    const counted = new Float64Array(this.cells + 1);
    for (let low = 0; low < values; low += step) {
      for (const cell of this.#read(low, Math.min(low + step, values), this.cells).indices) counted[cell + 1]++;
    }
    for (let i = 1; i < counted.length; i++) counted[i] += counted[i - 1];
    const next = counted.slice();
    const data = new Float32Array(values), indices = new Int32Array(values);
    let gene = 0;
    for (let low = 0; low < values; low += step) {
      const part = this.#read(low, Math.min(low + step, values), this.cells);
      for (let i = 0; i < part.data.length; i++) {
        while (byColumn[gene + 1] <= low + i) gene++;
        const place = next[part.indices[i]]++;
        data[place] = part.data[i];
        indices[place] = gene;
      }
    }
    this.whole = { data, indices };
    this.indptr = counted;
  }
}

// ---------------------------------------------------------------------- tables

function vector(dataset) {
  if (dataset === null || dataset.type !== "Dataset" || dataset.shape?.length !== 1) {
    throw new PageError(`${dataset?.path ?? "a column"} is not a column of values: the file is damaged.`);
  }
  return dataset.value;
}

function strings(dataset) {
  return Array.from(vector(dataset), text);
}

/** A table of AnnData: names of rows, and columns that are read when they are asked for. */
class Table {
  constructor(reader, element, name, most, what) {
    this.reader = reader;
    this.element = element;
    this.name = name;
    if (element.type === "Dataset") {
      this.records = this.#compound(most, what);
      return;
    }
    const stored = element.keys();
    const key = attribute(element, "_index") || "_index";
    if (!stored.includes(key)) throw new PageError(`${name} has no names of ${what}: '${text(key)}' is not there.`);
    this.key = key;
    const order = attribute(element, "column-order");
    const listed = Array.isArray(order) ? order : stored;
    this.names = listed.filter((column) => stored.includes(column) && column !== key && column !== "__categories");
    const names = reader.child(element, key);
    this.length = Number((names.type === "Group" ? reader.child(names, "codes") : names).shape?.[0] ?? 0);
    if (this.length > most) {
      throw new PageError(`${name} has ${number(this.length)} ${what}: this page reads files of up to ${number(most)}.`);
    }
  }

  /** Read a table that is stored as one array of records, as old versions of AnnData wrote it. */
  #compound(most, what) {
    const members = this.element.metadata.compound_type?.members;
    const length = Number(this.element.shape?.[0] ?? 0);
    if (!members || this.element.shape.length !== 1) throw new PageError(`${this.name} is not a table.`);
    if (length > most) throw new PageError(`${this.name} has ${number(length)} ${what}, too many for this page.`);
    this.length = length;
    this.names = members.slice(1).map((member) => member.name);
    const plain = (value) => (typeof value === "object" && value !== null ? value[0] : value);
    const columns = new Map(members.map((member) => [member.name, []]));
    for (const row of this.element.value) members.forEach((member, i) => columns.get(member.name).push(plain(row[i])));
    return columns;
  }

  index() {
    if (this.records) return this.records.values().next().value.map(text);
    return this.#values(this.key).map(text);
  }

  /** Return a column as texts and numbers, null for missing values; null if it is stored in an unknown way. */
  column(name) {
    if (this.records) return this.records.get(name);
    try {
      return this.#values(name);
    } catch (error) {
      if (error instanceof PageError) throw error;
      return null;
    }
  }

  /** Return the columns that contain texts: only these can name genes. */
  texts() {
    const found = new Map();
    for (const name of this.names) {
      const values = this.column(name);
      if (values?.some((value) => typeof value === "string")) found.set(name, values);
    }
    return found;
  }

  #values(name) {
    const element = this.reader.child(this.element, name);
    if (element.type === "Group") {
      const parts = element.keys();
      if (parts.includes("codes")) {
        const categories = this.#plain(this.reader.child(element, "categories"));
        return this.#decoded(this.reader.child(element, "codes"), categories);
      }
      if (!parts.includes("values") || !parts.includes("mask")) return null;
      const values = this.#plain(this.reader.child(element, "values"));
      const mask = vector(this.reader.child(element, "mask"));
      return values.map((value, i) => (mask[i] ? null : value));
    }
    const old = this.element.keys().includes("__categories") ? this.reader.child(this.element, "__categories") : null;
    if (old?.keys().includes(name)) return this.#decoded(element, this.#plain(this.reader.child(old, name)));
    return this.#plain(element);
  }

  #decoded(codes, categories) {
    return Array.from(vector(codes), (code) => (code < 0 ? null : categories[Number(code)] ?? null));
  }

  #plain(dataset) {
    const values = vector(dataset);
    if (dataset.metadata.enum_type) return Array.from(values, (value) => (value ? "True" : "False"));
    return Array.from(values, (value) => {
      if (typeof value === "bigint") return value.toString();
      return typeof value === "number" && Number.isNaN(value) ? null : value;
    });
  }
}
