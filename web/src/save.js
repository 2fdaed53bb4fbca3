// Downloads: a mask, an overlay, tables, and all masks in one archive.
import { encode } from "fast-png";
import { zipSync } from "fflate";
import { draw } from "./draw.js";

export function save(name, content, type) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([content], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

/** A mask as the film lies in its file, 0 and 255. */
export function maskPng({ data, width, height }) {
  return encode({ width, height, data: data.map((value) => 255 * value), channels: 1, depth: 8 });
}

export async function saveOverlay(name, film, outlines, colours, opacity) {
  const canvas = document.createElement("canvas");
  draw(canvas, film, outlines, colours, opacity, Infinity);
  save(name, await new Promise((resolve) => canvas.toBlob(resolve, "image/png")), "image/png");
}

/** @param files - {name: bytes}; PNG is packed already. */
export function saveZip(name, files) {
  save(name, zipSync(files, { level: 0 }), "application/zip");
}
