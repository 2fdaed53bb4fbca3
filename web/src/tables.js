// Tables as CSV: the columns and texts of the package's own, in which no text is a formula.
import { stem } from "./words.js";

/** Of one mask: `measurements.csv`. */
export function measurementsOf(film, convention, columns) {
  return csv(["name", ...columns], [[stem(film.name), ...columns.map((name) => number(film.masks[convention].measured[name]))]]);
}

/** Of many films: of each what `predictions.csv` says, and what was measured. */
export function rowOf(film, convention, columns) {
  const mask = film.masks?.[convention], quality = mask?.quality, error = film.error ?? mask?.error ?? "";
  const notes = (mask?.notes ?? film.notes).join("; "), measured = columns.map((name) => number(mask?.measured?.[name]));
  const judged = quality ? [quality.estimate.toFixed(3), quality.flag, quality.reasons.join("; ")] : ["", "", ""];
  return [stem(film.name), film.height ?? "", film.width ?? "", mask?.lungPx ?? "", ...judged, notes, error, ...measured];
}

export function tableOf(rows, columns) {
  return csv(["name", "height", "width", "lung_px", "quality", "flag", "reasons", "notes", "error", ...columns], rows);
}

function number(value) {
  return Number.isFinite(value) ? Number(value.toFixed(4)) : "";
}

function csv(columns, rows) {
  return [columns, ...rows].map((row) => `${row.map(cell).join(",")}\n`).join("");
}

function cell(value) {
  if (typeof value === "number") return String(value);
  const text = /^'*[=+\-@\t\r]/.test(value) ? `'${value}` : String(value);
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}
