// The table of cells as CSV: all columns of the file, and what the model says.

const quoted = (value) => {
  if (value === null || value === undefined || value !== value) return "";
  const text = String(value);
  return /[",\r\n]/.test(text) || text !== text.trim() ? `"${text.replaceAll('"', '""')}"` : text;
};
const six = (value) => (Number.isFinite(value) ? String(Number(value.toPrecision(6))) : "");

// Names as `cellglot annotate` writes them: only a calibrated model has a confidence.
const COMMON = {
  cellglot_cell_type: (cell) => cell.label,
  cellglot_cell_type_ontology_term_id: (cell) => cell.id,
};
const UNCALIBRATED = { ...COMMON, cellglot_score_uncalibrated: (cell) => six(cell.score) };
const CALIBRATED = {
  ...COMMON,
  cellglot_confidence: (cell) => six(cell.score),
  cellglot_best_class: (cell) => cell.best,
  cellglot_prediction_set: (cell) => cell.set.join("; "),
  cellglot_broader_type: (cell) => cell.broader,
  cellglot_broader_type_ontology_term_id: (cell) => cell.broaderId,
  cellglot_novelty: (cell) => six(cell.novelty),
  cellglot_assigned: (cell) => (cell.assigned ? "True" : "False"),
  cellglot_reason: (cell) => cell.reason,
};

/** Return the parts of a CSV file with one row per annotated cell. */
export function csvParts(obs, chosen, names, said) {
  const ours = said[0]?.set === undefined ? UNCALIBRATED : CALIBRATED;
  const own = obs.names.map((name) => [name, obs.column(name)]).filter(([, values]) => values !== null);
  const header = ["cell_id", ...own.map(([name]) => name), ...Object.keys(ours)];
  const parts = [header.map(quoted).join(",") + "\n"];
  let lines = [];
  chosen.forEach((cell, i) => {
    const fields = [names[i], ...own.map(([, values]) => values[cell]), ...Object.values(ours).map((of) => of(said[i]))];
    lines.push(fields.map(quoted).join(","));
    if (lines.length === 5000 || i === chosen.length - 1) {
      parts.push(lines.join("\n") + "\n");
      lines = [];
    }
  });
  return parts;
}
