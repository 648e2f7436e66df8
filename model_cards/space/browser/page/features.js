// Tell genes from antibodies, peaks, guides and hashtags, by the rules of feature_types.py.

import { number } from "./errors.js";

const words = (text) => new Set(text.trim().split(/\s+/));
// Names of columns and types, in lower case, with letters and digits only.
const TYPE_COLUMNS = words(
  "featuretypes featuretype featurestype featurestypes modality modalities featuremodality mod omic omics",
);
// Columns that may have types of features: short types, which also mean something else, are not used there.
const OTHER_COLUMNS = words(`
  type types assay assays assaytype librarytype librarytypes datatype class featureclass category featurecategory kind
  genetype biotype genebiotype featurebiotype measurement`);
const GENE_TYPES = words(`
  geneexpression gene genes rna mrna gex expression rnaexpression transcriptome scrna scrnaseq snrna snrnaseq`);
const OTHER_TYPES = words(`
  antibodycapture antibody antibodies antibodyderivedtag antibodyderivedtags antibodytag adt adts adtcapture abcapture
  abseq citeseq surfaceprotein surfaceproteins cellsurfaceprotein proteinexpression proteincapture proteinadt prot
  antigencapture antigen crisprguidecapture crisprcapture crispr crisprguide guidecapture grna grnas sgrna sgrnas
  multiplexingcapture multiplexing multiplexingtag cellmultiplexing hto htos hashtag hashtags hashtagoligo
  hashtagoligos hashing cellhashing hashtagcapture cmo cmos lmo lmos sampletag sampletags featurebarcode
  featurebarcodes featurebarcoding peak peaks atac atacpeak atacpeaks atacseq scatac scatacseq chromatinaccessibility
  openchromatin chromatin accessibility geneactivity genescore genescores chromvar motifs methylation dnamethylation
  tcr bcr negativecontrolprobe negativecontrolcodeword negativecontrol negativeprobe negprobe genomiccontrol
  unassignedcodeword deprecatedcodeword blankcodeword controlprobe controlcodeword systemcontrol`);
const SHORT_TYPES = words("custom customfeature protein proteins ab guide guides guiderna guidernas tag");
const BIOTYPES = ["proteincoding", "lncrna", "lincrna"];
const INTERVAL = /^(?:[\w.]+:\d+-\d+|(?:[A-Za-z0-9]+_+)?chr[0-9A-Za-z]+[._-]\d+[._-]\d+)$/;
const ANTIBODY = new RegExp(
  "^(?:adt|prot|protein|antibody)[:_-]|[-_. |](?:total(?:seq)?[-_ ]?[abcd]|adt|prot|protein|antibody|pabo)$",
  "i",
);
const SAMPLE = /^(?:hto[:_-]|cmo\d{3}$|hashtag[-_ ]?\d)|[-_. ](?:hto|hashtag)$/i;

const plain = (text) => text.toLowerCase().replace(/[^a-z0-9]/g, "");

/** Return the columns with types of features, the usual ones first. */
export function typeColumns(columns) {
  const found = [];
  for (const [name, values] of columns) {
    const key = plain(name);
    if (TYPE_COLUMNS.has(key) || OTHER_COLUMNS.has(key)) found.push({ name, values, own: TYPE_COLUMNS.has(key) });
  }
  return found.sort((a, b) => Number(b.own) - Number(a.own));
}

function readTypes({ values, own }) {
  const texts = values.map((value) => (value === null || value === undefined ? "" : String(value).trim()));
  const kinds = new Map([...new Set(texts)].map((text) => [text, plain(text)]));
  const biotypes = [...kinds.values()].some((kind) => BIOTYPES.includes(kind));
  const isOther = (kind) => {
    if (kind.startsWith("vdj")) return true;
    if (biotypes && (kind === "guiderna" || kind === "guidernas")) return false; // a biotype of small RNAs
    return OTHER_TYPES.has(kind) || (own && SHORT_TYPES.has(kind));
  };
  const others = new Set([...kinds].filter(([, kind]) => isOther(kind)).map(([text]) => text));
  return { texts, others, isGene: (text) => GENE_TYPES.has(kinds.get(text)) };
}

function typeByName(name) {
  const text = name.trim();
  if (INTERVAL.test(text)) return "intervals of the genome (by name)";
  if (ANTIBODY.test(text)) return "antibodies (by name)";
  return SAMPLE.test(text) ? "sample tags (by name)" : null;
}

/**
 * Find the genes among the features of a matrix.
 *
 * @param {string[]} index  names of the features
 * @param {Map<string, string[]>} columns  columns of their table
 * @returns {{genes: Uint8Array|null, leftOut: Map<string, number>}}  genes is null if all are
 */
export function featuresOf(index, columns) {
  const leftOut = new Array(index.length).fill(null);
  const said = new Uint8Array(index.length);
  for (const column of typeColumns(columns)) {
    const { texts, others, isGene } = readTypes(column);
    texts.forEach((text, i) => {
      if (isGene(text)) said[i] = 1;
      if (others.has(text)) leftOut[i] ??= text;
    });
  }
  index.forEach((name, i) => {
    if (!said[i]) leftOut[i] ??= typeByName(String(name));
  });
  const counted = new Map();
  for (const kind of leftOut) if (kind !== null) counted.set(kind, (counted.get(kind) ?? 0) + 1);
  const genes = counted.size ? Uint8Array.from(leftOut, (kind) => (kind === null ? 1 : 0)) : null;
  return { genes, leftOut: counted };
}

export const described = (leftOut) => [...leftOut].map(([kind, n]) => `${number(n)} ${kind}`).join(", ");
