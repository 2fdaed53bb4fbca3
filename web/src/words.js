// Texts that Python and the page share, filled in.

/** A format of Python's with numbers in it, a dash for each that is undefined. */
export function fill(form, numbers) {
  return form.replace(/\{(\w+)(?::(,)?\.(\d)([f%]))?\}([%°]?)/g, (_, name, comma, digits, kind, unit) => {
    const value = numbers[name];
    if (!Number.isFinite(value)) return "–";
    if (digits === undefined) return `${value}${unit}`;
    const shown = (kind === "%" ? 100 * value : value).toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits, useGrouping: !!comma });
    return `${shown}${kind === "%" ? "%" : ""}${unit}`;
  });
}

/** A note or reason in words for a visitor. */
export function plain(note, table) {
  for (const [pattern, text] of table) {
    const found = new RegExp(`^(?:${pattern})$`).exec(note);
    if (found) return text.replace(/\\(\d)/g, (_, n) => found[n] ?? "");
  }
  return note;
}

/** What a film's name is without its last suffix. */
export function stem(name) {
  return name.replace(/(?<=.)\.[^.]*$/, "");
}
