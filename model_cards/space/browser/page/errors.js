// An error whose sentence is meant for the visitor. All others are faults of the page.

export class PageError extends Error {}

export const number = (n) => Math.round(n).toLocaleString("en-US");

export function listed(names, most = 3) {
  const shown = names.slice(0, most).map((name) => `'${String(name).slice(0, 60)}'`);
  return shown.join(", ") + (names.length > most ? ", ..." : "");
}
