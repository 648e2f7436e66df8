// Find the genes of a file in the model's vocabulary, by the rules of gene_vocabulary.py and gene_names.py.

import { listed, number, PageError } from "./errors.js";

const ID_COLUMNS = ["ensembl_id", "ensembl", "gene_ids", "gene_id", "feature_id", "ensembl_gene_id", "ensemblid", "id"];
const NAME_COLUMNS = [
  "feature_name", "gene_symbol", "gene_symbols", "symbol", "gene_name", "gene_names", "gene", "name",
];
const ENSEMBL = /^(ENS[A-Z]*GR?\d{8,})(?:\.\d+)?$/;
const WITHIN = /(?<![A-Za-z0-9])(ENS[A-Z]{0,6}GR?\d{8,})(?:\.\d+)?(?![A-Za-z0-9])/gi;
// Text beside an id of a feature that is a part or another copy of the gene.
const PART = /^(?:.*PAR[_-]Y|E\d+|exon.*|intron.*|(?:un)?spliced|nascent|pre-?mrna|antisense|as|\d+|.)$/i;
const GENOME = new RegExp(
  "^(?:(?<human>GRCh3[78]|hg(?:18|19|38)|human|homo_sapiens)|" +
    "(?<mouse>GRCm3[89]|mm(?:9|10|39)|mouse|mus_musculus))" +
    "(?:-(?:20\\d\\d-A|\\d\\.\\d\\.\\d))?(?:_+|-+|:+|\\.+|\\|+)(?<rest>\\S.*)$",
  "i",
);
const GENOME_BEGINS = ["gr", "hg", "hu", "ho", "mm", "mo", "mu"];
const MADE_UNIQUE = /^(?<name>.+)[-._](?<number>\d{1,3})$/;
// Families of genes with such numbers: SNORD115-1 is not a second SNORD115.
const NUMBERED = /^(?:SNOR|SCARNA|MIR|RNU|RN\d|RNA\d|TRN|PIWI|VTRNA|LINC|U\d)/i;
const NUMBER = /^[+-]?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?$/;
const BY_R = /^[XV]\d+(?:\.\d+)?$/;
const AT_THE_ENDS = /^[ \t_\-|:;,.()[\]{}"'/]+|[ \t_\-|:;,.()[\]{}"'/]+$/g;

export const AMBIGUOUS = -1;

const bareId = (name) => ENSEMBL.exec(name)?.[1] ?? null;
const asInR = (name) => name.replace(/[^A-Za-z0-9]/g, ".");
const genomeOf = (name) => (GENOME_BEGINS.includes(name.slice(0, 2).toLowerCase()) ? GENOME.exec(name) : null);

function splitId(name) {
  if (!name.includes("ENS") && !name.includes("ens")) return null;
  const found = [...name.matchAll(WITHIN)];
  if (!found.length || new Set(found.map((m) => m[1].toUpperCase())).size > 1) return null;
  const rest = name.replace(WITHIN, "").replace(AT_THE_ENDS, "");
  if (rest && (PART.test(rest) || /\s/.test(rest))) return null;
  return found[0][1].toUpperCase();
}

function push(map, key, value) {
  const there = map.get(key);
  if (there === undefined) map.set(key, [value]);
  else there.push(value);
}

/** Cleans the names of one column of a file, where their meaning is certain. */
class NameCleaner {
  constructor(names) {
    this.names = names;
    this.madeUnique = this.#findMadeUnique();
  }

  #findMadeUnique() {
    const present = new Set(this.names);
    const found = new Map();
    const rows = [];
    this.names.forEach((name, row) => {
      const matched = /\d$/.test(name) ? MADE_UNIQUE.exec(name) : null;
      if (!matched || !present.has(matched.groups.name) || NUMBERED.test(name)) return;
      const count = Number(matched.groups.number);
      const before = name.slice(0, name.length - matched.groups.number.length) + (count - 1);
      if (count === 1 || (count > 1 && present.has(before))) {
        found.set(name, matched.groups.name);
        rows.push(row);
      }
    });
    if (rows.length >= 3) {
      // Close together at the end, after all names that they repeat: proteins that are named as their genes.
      const originals = new Set(found.values());
      let last = 0;
      this.names.forEach((name, row) => {
        if (originals.has(name)) last = row;
      });
      if (last < rows[0] && rows.length > 0.2 * (this.names.length - rows[0])) return new Map();
    }
    return found;
  }

  clean(name) {
    const id = splitId(name);
    if (id) return id;
    let text = (this.madeUnique.get(name) ?? name).replace(/^["' ]+|["' ]+$/g, "");
    const genome = genomeOf(text);
    if (genome?.groups.human) text = genome.groups.rest; // the vocabulary is of human genes
    const inner = splitId(text);
    if (inner) return inner;
    const bar = text.indexOf("|");
    if (bar >= 0 && NUMBER.test(text.slice(bar + 1))) text = text.slice(0, bar);
    if (text.includes("ORF")) text = text.replace(/^C(\d{1,2}|X|Y)ORF(\d+)$/, "C$1orf$2");
    return text !== "" && text !== "?" ? text : name;
  }
}

/** The genes of a model with all names that mean one of them. */
export class Vocabulary {
  /** @param {object} content  genes.json of the build: see browser/genes.py */
  constructor(content) {
    this.size = content.vocab_size;
    this.genes = content.genes;
    this.tokens = content.tokens;
    this.symbols = content.symbols;
    this.byToken = new Map(this.tokens.map((token, i) => [token, i]));
    this.ids = new Map(this.genes.map((gene, i) => [gene, this.tokens[i]]));
    this.names = new Map();
    this.aliases = new Map();
    this.genes.forEach((_, i) => {
      if (this.symbols[i]) push(this.names, this.symbols[i], this.tokens[i]);
    });
    for (const [i, others] of content.aliases) for (const alias of others) push(this.aliases, alias, this.tokens[i]);
    this.otherNames = new Map(content.other_names);
    this.otherIds = new Map(content.other_ids);
    this.inR = null;
  }

  /** Return how a gene is shown: its symbol, or its id. */
  symbolOf(token) {
    const i = this.byToken.get(token);
    return i === undefined ? "" : this.symbols[i] || this.genes[i];
  }

  /** Return the token of a gene that a visitor typed, or -1. */
  find(name) {
    const text = name.trim();
    const found = this.#tokensOf(text) ?? this.#tokensOf(text.toUpperCase());
    return found?.length === 1 ? found[0] : -1;
  }

  #tokensOf(name) {
    const token = this.ids.get(name) ?? this.ids.get(bareId(name) ?? name);
    return token !== undefined ? [token] : this.names.get(name) ?? this.aliases.get(name);
  }

  #namesInR() {
    if (this.inR) return this.inR;
    const found = new Map();
    const add = (name, tokens) => {
      const key = asInR(name);
      if (key === name) return;
      const there = found.get(key) ?? new Set();
      tokens.forEach((token) => there.add(token));
      found.set(key, there);
    };
    this.ids.forEach((token, name) => add(name, [token]));
    this.names.forEach((tokens, name) => add(name, tokens));
    this.aliases.forEach((tokens, name) => add(name, tokens));
    this.inR = found;
    return found;
  }

  /**
   * Find the genes of a file.
   *
   * @param {string[]} index  names of the genes
   * @param {Map<string, string[]>} columns  columns of the gene table
   * @returns {{tokens: Int32Array, matched: number, unknown: number, ambiguous: number, hint: string}}
   */
  resolve(index, columns) {
    const sources = nameSources(index, columns);
    const n = index.length;
    const tokens = new Int32Array(n).fill(-1);
    const ambiguous = new Uint8Array(n);
    const own = new Array(n).fill(null);
    for (const values of sources) {
      for (let i = 0; i < n; i++) {
        const name = values[i];
        const listedAs = this.ids.get(name);
        let bare = bareId(name);
        if (bare === null && listedAs === undefined) bare = splitId(name);
        if (bare === null && listedAs === undefined) continue;
        if (own[i] === null) own[i] = bare;
        else if (bare !== null && bare !== own[i]) continue;
        if (tokens[i] < 0) tokens[i] = listedAs ?? this.ids.get(bare ?? "") ?? -1;
      }
    }
    for (const [table, isSymbol] of [[this.names, true], [this.aliases, false]]) {
      for (const values of sources) {
        for (let i = 0; i < n; i++) {
          if (tokens[i] >= 0 || ambiguous[i] || (own[i] !== null && isSymbol)) continue;
          this.#take(table.get(own[i] ?? values[i]), i, tokens, ambiguous);
        }
      }
    }
    for (const values of sources) this.#matchCleaned(values, own, tokens, ambiguous);
    this.#matchOthers(sources, own, tokens, ambiguous);
    const matched = tokens.reduce((sum, token) => sum + (token >= 0), 0);
    const unclear = ambiguous.reduce((sum, flag) => sum + flag, 0);
    const hint = this.#hint(sources[0], tokens);
    return { tokens, matched, unknown: n - matched - unclear, ambiguous: unclear, hint };
  }

  #take(found, i, tokens, ambiguous) {
    if (found === undefined) return;
    const all = [...found];
    if (all.length === 1) tokens[i] = all[0];
    else ambiguous[i] = 1;
  }

  #matchCleaned(values, own, tokens, ambiguous) {
    const rows = [];
    for (let i = 0; i < tokens.length; i++) if (tokens[i] < 0 && !ambiguous[i] && own[i] === null && values[i]) rows.push(i);
    if (!rows.length) return;
    const cleaner = new NameCleaner(values);
    for (const i of rows) {
      const name = cleaner.clean(values[i]);
      let found = name !== values[i] ? this.#tokensOf(name) : undefined;
      if (found === undefined && name.includes(".")) {
        found = this.#namesInR().get(name[0] === "X" && /\d/.test(name[1] ?? "") ? name.slice(1) : name);
      }
      this.#take(found, i, tokens, ambiguous);
    }
  }

  /** Look up names and ids that the vocabulary does not have in the table of human genes. */
  #matchOthers(sources, own, tokens, ambiguous) {
    for (let i = 0; i < tokens.length; i++) {
      if (tokens[i] >= 0 || ambiguous[i]) continue;
      if (own[i] !== null) {
        tokens[i] = this.otherIds.get(own[i]) ?? -1;
        continue;
      }
      for (const values of sources) {
        const found = values[i] ? this.otherNames.get(values[i]) : undefined;
        if (found === undefined) continue;
        if (found === AMBIGUOUS) ambiguous[i] = 1;
        else if (found >= 0) tokens[i] = found;
        break;
      }
    }
  }

  #hint(names, tokens) {
    const lost = names.filter((_, i) => tokens[i] < 0);
    if (lost.length < Math.max(10, Math.floor(names.length / 10))) return "";
    const share = Math.max(Math.floor(lost.length / 2), 1);
    const count = (test) => lost.reduce((sum, name) => sum + (test(name) ? 1 : 0), 0);
    if (count((name) => name.startsWith("ENSMUSG")) >= share) return "The lost genes have mouse ids (ENSMUSG...).";
    const words = lost.filter((name) => name.length > 2 && /^\p{L}/u.test(name) && bareId(name) === null);
    const mouse = words.filter((name) => /^\p{Lu}\p{Ll}/u.test(name)).length;
    if (words.length > lost.length / 4 && mouse > words.length / 2) return "The lost genes are named as in mouse (Cd3e).";
    if (count((name) => /^(ENST|NM_)/.test(name)) >= share) return "The lost names are transcripts: sum them to genes first.";
    if (count((name) => NUMBER.test(name) || BY_R.test(name)) >= share) {
      return "The lost names are numbers: the file needs a column with Ensembl ids, such as gene_ids.";
    }
    return "";
  }

  /** Return a sentence about genes that are not in the vocabulary, for refusals. */
  refusal(covered, match, names) {
    const lost = names.filter((_, i) => match.tokens[i] < 0);
    const mouse = match.hint.includes("mouse")
      ? " This model reads human cells: for mouse cells use cellglot annotate --species mouse."
      : "";
    const example = this.symbols[0] ? ` or '${this.symbols[0]}'` : "";
    return new PageError(
      `The model covers ${covered}: ${number(lost.length)} of ${number(names.length)} genes are not among its genes, ` +
        `for example ${listed(lost)}. It names genes as in '${this.genes[0]}'${example}. ${match.hint}${mouse}`.trim(),
    );
  }
}

const columnKey = (column) => column.toLowerCase().replaceAll(" ", "_").replaceAll("-", "_");

function nameSources(index, columns) {
  const clean = (values) => values.map((value) => (value === null || value === undefined ? "" : String(value).trim()));
  const keys = new Map([...columns.keys()].map((name) => [columnKey(name), name]));
  const usual = [...ID_COLUMNS, ...NAME_COLUMNS].filter((key) => keys.has(key));
  return [clean(index), ...usual.map((key) => clean(columns.get(keys.get(key))))];
}
