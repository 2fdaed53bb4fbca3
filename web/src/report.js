// A film's report: picture, tables, notes and downloads, or why there are none.
import { fill, plain } from "./words.js";

/** An element with its properties and what is in it: texts stay texts. */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) name in made ? (made[name] = value) : made.setAttribute(name, value);
  made.append(...children.filter((child) => child !== null));
  return made;
}

export function refusal(name, error, words) {
  return element("p", { className: "refusal", role: "alert" }, `${name}: ${plain(error, words.plain)}`);
}

/**
 * @param actions - [label, function] of each download.
 * @returns the report; its canvas is empty.
 */
export function report(film, convention, words, actions) {
  const mask = film.masks[convention], { measured, quality } = mask;
  const caption = element("figcaption", {}, `${words.outlined[convention]} The patient's right lung is on the left: `, key("right"), "right, ", key("left"), "left.");
  const canvas = element("canvas", { role: "img", "aria-label": "The film with its lungs outlined" });
  const lungs = ["right", "left"].map((side) => lungOf(measured, side)), sizes = film.spacing ? words.inMm : words.inPx;
  const each = Object.entries({ ...sizes, ...words.points }).map(([name, form]) => [name, ...lungs.map((lung) => fill(form, lung))]);
  const judged = quality ? `${quality.estimate.toFixed(2)} (${words.flags[quality.flag]})` : "–";
  const both = [["Film", `${film.upright.width} × ${film.upright.height} px`], ["Dice, estimated", judged], ...Object.entries(words.both).map(([name, form]) => [name, fill(form, measured)])];
  const notes = [...(quality?.reasons ?? []), ...mask.notes].map((note) => plain(note, words.plain));
  return element("article", { className: "report" },
    element("figure", {}, canvas, caption),
    element("div", {},
      element("p", { className: "hidden", role: "alert" }, `${film.name} is outlined.`),
      element("h2", {}, film.name),
      table("Each lung", each, ["", "Right lung", "Left lung"]),
      table("Both, and the film", both),
      notes.length ? element("h3", {}, "Notes") : null,
      notes.length ? element("ul", {}, ...notes.map((note) => element("li", {}, note))) : null,
      element("p", { className: "downloads" }, ...actions.map(([label, onclick]) => element("button", { type: "button", onclick }, label)))));
}

function key(side) {
  return element("span", { className: `key ${side}` });
}

function lungOf(measured, side) {
  const lung = Object.fromEntries(Object.entries(measured).filter(([name]) => name.startsWith(`${side}_`)).map(([name, value]) => [name.slice(side.length + 1), value]));
  return { ...lung, area_cm2: lung.area_mm2 / 100 };
}

function table(caption, lines, head) {
  const cells = (values) => values.map((value) => element("td", {}, value));
  const top = head && element("thead", {}, element("tr", {}, element("td"), ...head.slice(1).map((name) => element("th", { scope: "col" }, name))));
  const rows = lines.map(([name, ...values]) => element("tr", {}, element("th", { scope: "row" }, name), ...cells(values)));
  return element("table", {}, element("caption", {}, caption), top ?? "", element("tbody", {}, ...rows));
}
