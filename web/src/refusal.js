// Why a file is no film that is read here: one sentence for a person.
export class Refusal extends Error {}

export function checkSize(rows, columns, most) {
  const said = `it declares ${columns} x ${rows} pixels`;
  if (rows < 1 || columns < 1) throw new Refusal(said);
  if (rows * columns > most) throw new Refusal(`${said}, more than ${Math.round(most / 1e6)} million: too large for a film`);
}
