// The film with its lungs: filled as strongly as the reader wants, outlined in two colours.
const SHOWN = 1024; // px, the longer side of the picture in a report; a download has the film's own size

/** Draws a film and its lungs into a canvas, at most `most` px a side. */
export function draw(canvas, film, outlines, colours, opacity, most = SHOWN) {
  const { width, height } = film.upright, scale = Math.min(1, most / Math.max(width, height));
  canvas.width = Math.max(1, Math.round(width * scale));
  canvas.height = Math.max(1, Math.round(height * scale));
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(film.upright, 0, 0, canvas.width, canvas.height);
  context.lineWidth = Math.max(1, Math.round(Math.min(canvas.width, canvas.height) / 256));
  context.lineJoin = "round";
  for (const [side, lines] of Object.entries(outlines)) {
    const path = pathOf(lines, canvas.width / width, canvas.height / height);
    context.fillStyle = context.strokeStyle = colours[side];
    context.globalAlpha = opacity;
    context.fill(path);
    context.globalAlpha = 1;
    context.stroke(path);
  }
}

function pathOf(lines, across, down) {
  const path = new Path2D();
  for (const line of lines) {
    path.moveTo((line[0] + 0.5) * across, (line[1] + 0.5) * down);
    for (let i = 2; i < line.length; i += 2) path.lineTo((line[i] + 0.5) * across, (line[i + 1] + 0.5) * down);
    path.closePath();
  }
  return path;
}
