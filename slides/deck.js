// Sizes what is on each slide, then starts reveal.js. A slide is 1280 x 720 px; lengths in it are in em, so that one number scales it.
const [WIDTH, HEIGHT] = [1280, 720];
const SCALES = Array.from({length: 15}, (_, i) => (20 - i) / 20);
const FIGURE = 440;  // px of height that satisfy at full text size
const FOOT = 44;     // px below the content, for the foot line

function fits(slide) {
  const bottom = slide.getBoundingClientRect().top + HEIGHT - FOOT;
  return [...slide.children].every(cell => cell.getBoundingClientRect().bottom <= bottom)
    && [...slide.querySelectorAll("pre, table, .jp-OutputArea-output, .jp-RenderedMarkdown, mjx-container")]
      .every(box => box.scrollWidth <= box.clientWidth + 1 && box.getBoundingClientRect().width <= box.parentElement.clientWidth + 1);
}

// The greatest height of figures, in px, at which the slide fits; 0 if it fits with none.
function figureHeight(slide) {
  const fitsAt = height => { slide.style.setProperty("--figure", `${height}px`); return fits(slide); };
  let [low, high] = fitsAt(0) ? [0, HEIGHT] : [0, 0];
  while (high - low > 8) {
    const middle = (low + high) / 2;
    [low, high] = fitsAt(middle) ? [middle, high] : [low, middle];
  }
  fitsAt(low);
  return low;
}

function apply(slide, {layout, scale, figure}) {
  for (const name of ["columns", "wrapped"]) slide.classList.toggle(name, layout.includes(name));
  slide.style.setProperty("--scale", scale);
  slide.style.setProperty("--figure", `${figure}px`);
}

// Falling text sizes in one layout, until it gets worse: text size times the side of the largest figure, if there are any.
function best(slide, layout, figures) {
  let found = {score: -1, layout, scale: SCALES.at(-1), figure: 100};
  for (const scale of SCALES) {
    apply(slide, {layout, scale, figure: 0});
    const figure = figures.length ? figureHeight(slide) : 0;
    if (!fits(slide)) continue;
    const score = scale * (figures.length ? Math.max(...figures.map(image => Math.sqrt(image.clientWidth * image.clientHeight))) : 1);
    if (score <= found.score) break;
    found = {score, layout, scale, figure};
    if (scale === 1 && (!figures.length || figure >= FIGURE)) break;
  }
  return found;
}

// Code above its output; or beside it, or with long lines broken, or both, where that shows clearly more.
function fit(slide) {
  const figures = [...slide.querySelectorAll("img")];
  const layouts = [];
  if (slide.querySelector(".jp-CodeCell:not(.jp-mod-noOutputs)")) layouts.push(["columns"]);
  if (slide.querySelector("pre")) layouts.push(["wrapped"], ...layouts.map(layout => [...layout, "wrapped"]));
  let chosen = best(slide, [], figures);
  for (const layout of layouts) {
    if (chosen.scale === 1 && (!figures.length || chosen.figure >= FIGURE)) break;
    const other = best(slide, layout, figures);
    if (other.score > 1.15 * chosen.score) chosen = other;
  }
  apply(slide, chosen);
}

// A page inside a slide, in place of its picture: where it was built, and a web server hands out both, as its modules need.
async function goLive(image) {
  if (!location.protocol.startsWith("http")) return;
  const answer = await fetch(image.dataset.live, {method: "HEAD"}).catch(() => null);
  if (!answer?.ok) return;
  const frame = Object.assign(document.createElement("iframe"), {title: image.alt});
  frame.dataset.src = image.dataset.live;  // reveal.js loads it with its slide
  image.replaceWith(frame);
}

async function start() {
  // Links to files beside the notebooks lead nowhere from here.
  document.querySelectorAll(".slides a:not([href^='http']):not([href^='#/'])").forEach(link => link.removeAttribute("href"));
  await MathJax.startup.promise;
  await MathJax.typesetPromise();
  await Promise.all([...document.images].map(image => image.decode().catch(() => {})));
  document.querySelectorAll(".slides > section > section").forEach(fit);
  await Promise.all([...document.querySelectorAll("img[data-live]")].map(goLive));
  document.body.classList.remove("measuring");
  const where = document.querySelector(".where");
  const name = () => { where.textContent = Reveal.getIndices().h ? Reveal.getCurrentSlide().parentElement.querySelector("h1")?.textContent ?? "" : ""; };
  Reveal.on("ready", name);
  Reveal.on("slidechanged", name);
  await Reveal.initialize({width: WIDTH, height: HEIGHT, margin: 0, center: false, hash: true, transition: "none", slideNumber: "c/t",
    navigationMode: "linear", controlsTutorial: false, pdfSeparateFragments: false, plugins: [RevealNotes]});
}

start();
