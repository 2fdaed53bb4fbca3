// The page: films come by drop, paste, pick or as examples; each is segmented, shown and kept as rows and masks.
import { start, segment } from "./engine.js";
import { draw } from "./draw.js";
import { element, report, refusal } from "./report.js";
import { save, saveOverlay, saveZip, maskPng } from "./save.js";
import { measurementsOf, rowOf, tableOf } from "./tables.js";
import { fromDrop } from "./drop.js";
import { stem } from "./words.js";

const MOST_FILMS = 1000; // of a folder
const at = (id) => document.getElementById(id);
let films = [], shown = null, shownAs = ""; // the film that is looked at, and by which convention

const say = (text) => (at("status").textContent = text);
const convention = () => document.querySelector("#conventions :checked")?.value ?? conventions[0];
const opacity = () => at("opacity").value / 100;

const loaded = Promise.all(["model.json", "examples/list.json"].map((name) => fetch(name).then((answer) => answer.json())));
loaded.catch((error) => say(`The page can't be loaded: ${error.message}`));
listen(); // before they are here: a film may come sooner
const [model, shelf] = await loaded, { words, measurements } = model, conventions = Object.keys(model.conventions);
furnish();

/** One film is shown at once; of several a list grows, and any of them can be looked at. */
async function take(found) {
  films = found.slice(0, MOST_FILMS);
  forget();
  at("films").replaceChildren();
  at("queue").hidden = films.length < 2;
  if (!films.length) return say("There is no file in it.");
  const these = films;
  await loaded;
  for (const [n, film] of these.entries()) {
    say(these.length > 1 ? `Film ${n + 1} of ${these.length}: ${film.name}…` : `${film.name}…`);
    const done = await segment(film, convention(), (early) => these === films && these.length === 1 && show(early));
    if (these !== films) return done.upright?.close(); // others came
    if (these.length === 1) show(done);
    else list(film, done, n);
    say(these.length > 1 ? `${n + 1} of ${these.length} films are done.` : "");
  }
}

/** Keeps of a film what the table and the archive need: its masks as PNG. */
function list(film, done, n) {
  film.rows = Object.fromEntries(conventions.map((name) => [name, rowOf(done, name, measurements)]));
  film.pngs = Object.fromEntries(conventions.filter((name) => done.masks?.[name]?.mask).map((name) => [name, maskPng(done.masks[name].mask)]));
  const mask = done.masks?.[convention()], error = done.error ?? mask?.error;
  const quality = mask?.quality, verdict = error ? error.replace(/^refused: /, "") : quality ? `${quality.estimate.toFixed(2)}, ${words.flags[quality.flag]}` : "outlined";
  const button = element("button", { type: "button", onclick: () => again(film) }, element("span", {}, film.name), element("span", {}, verdict));
  at("films").append(element("li", {}, button));
  if (n) done.upright?.close();
  else show(done);
}

async function again(film) {
  say(`${film.name}…`);
  const done = await segment(film, convention());
  if (!films.includes(film)) return done.upright?.close(); // others came
  forget();
  show(done);
  say("");
}

/** Shows a film by the convention that is chosen; of one that is shown already the rest is kept for later. */
function show(film) {
  const name = convention(), mask = film.masks?.[name], error = film.error ?? mask?.error;
  if (shown?.upright !== film.upright) forget();
  const isShown = shown && shownAs === name;
  shown = film;
  if (isShown || !(mask || error)) return;
  shownAs = name;
  at("result").replaceChildren(error ? refusal(film.name, error, words) : report(film, name, words, downloads(film, name)));
  paint();
  // On a phone the report begins below the screen, and nothing would seem to happen.
  if (at("result").getBoundingClientRect().top > 0.75 * innerHeight) at("result").scrollIntoView();
}

/** What was shown is gone, and the memory of its picture, which no garbage collector sees in time. */
function forget() {
  shown?.upright?.close();
  shown = null;
  at("result").replaceChildren();
}

function downloads(film, name) {
  const mask = film.masks[name], file = conventions.length > 1 ? `${stem(film.name)}_${name}` : stem(film.name);
  return [
    ["Mask (PNG)", () => save(`${file}_mask.png`, maskPng(mask.mask), "image/png")],
    ["Overlay (PNG)", () => saveOverlay(`${file}_overlay.png`, film, mask.outlines, words.colours, opacity())],
    ["Measurements (CSV)", () => save(`${file}_measurements.csv`, measurementsOf(film, name, measurements), "text/csv")],
  ];
}

function paint() {
  const canvas = document.querySelector("#result canvas"), mask = shown?.masks?.[convention()];
  if (canvas && mask?.outlines) draw(canvas, shown, mask.outlines, words.colours, opacity());
}

function furnish() {
  at("caution").textContent = words.caution;
  at("source").textContent = words.source;
  at("conventions").hidden = conventions.length < 2;
  Object.entries(words.choices).filter(([name]) => conventions.includes(name)).forEach(([name, label]) =>
    at("conventions").append(element("label", {}, element("input", { type: "radio", name: "convention", value: name, checked: name === conventions[0] }), label)));
  for (const { name, caption, thumbnail, age } of shelf) {
    const pick = async () => take([{ name, age, file: await (await fetch(`examples/${name}`)).blob() }]);
    at("examples").append(element("li", {}, element("button", { type: "button", onclick: pick }, element("img", { alt: "", src: `examples/${thumbnail}` }), caption)));
  }
}

function listen() {
  const drop = at("drop"), named = (files) => [...files].map((file) => ({ name: file.name, file }));
  for (const kind of ["dragenter", "dragover"]) document.addEventListener(kind, (event) => { event.preventDefault(); drop.classList.add("over"); });
  document.addEventListener("dragleave", (event) => event.relatedTarget ?? drop.classList.remove("over"));
  document.addEventListener("drop", async (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    take(named(await fromDrop(event.dataTransfer)));
  });
  document.addEventListener("paste", (event) => event.clipboardData.files.length && take(named(event.clipboardData.files)));
  for (const id of ["files", "folder"])
    at(id).addEventListener("change", ({ target }) => {
      const files = named(target.files);
      target.value = "";
      if (files.length) take(files);
    });
  at("conventions").addEventListener("change", () => shown && show(shown));
  at("opacity").addEventListener("input", paint);
  at("choices").addEventListener("submit", (event) => event.preventDefault());
  at("table").addEventListener("click", () => save("measurements.csv", tableOf(films.filter(({ rows }) => rows).map(({ rows }) => rows[convention()]), measurements), "text/csv"));
  at("masks").addEventListener("click", () => saveZip("masks.zip", masksOf(convention())));
}

/** All masks of a convention by their files' names; a name that comes again gets a number. */
function masksOf(name) {
  const files = {};
  for (const film of films.filter(({ pngs }) => pngs?.[name])) {
    let file = `${stem(film.name)}.png`;
    for (let n = 2; file in files; n++) file = `${stem(film.name)}_${n}.png`;
    files[file] = film.pngs[name];
  }
  return files;
}

const moved = (where) => say(`${at("status").textContent} The network runs ${where} from now on.`.trim());
start(moved).then((where) => say(films.length ? at("status").textContent : `Ready. The network runs ${where}.`), (error) => say(`The network can't be loaded: ${error.message}`));
if ("serviceWorker" in navigator && location.protocol.startsWith("http")) navigator.serviceWorker.register("offline.js").catch(() => {});
