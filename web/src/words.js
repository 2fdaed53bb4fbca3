// Texts that Python and the page share, filled in.

const formats = new Map(); // each takes a millisecond to make

/** A format of Python's with numbers in it, a dash for each that is undefined. */
export function fill(form, numbers) {
  return form.replace(/\{(\w+)(?::(,)?\.(\d)([f%]))?\}([%°]?)/g, (_, name, comma, digits, kind, unit) => {
    const value = numbers[name];
    if (!Number.isFinite(value)) return "–";
    if (digits === undefined) return `${value}${unit}`;
    const key = `${digits}${comma}`;
    if (!formats.has(key)) formats.set(key, new Intl.NumberFormat("en", { minimumFractionDigits: digits, maximumFractionDigits: digits, useGrouping: !!comma }));
    return `${formats.get(key).format(kind === "%" ? 100 * value : value)}${kind === "%" ? "%" : ""}${unit}`;
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
