// Files beside a message, read in the browser alone. Images are drawn again at a bounded size, which also leaves out where
// and when they were taken.

import { Refused } from "./call.js";
import { megabytes } from "./words.js";

export const MOST_FILES = 6;
const MOST_IMAGE = 20 * 1024 * 1024; // bytes of the file
const MOST_TEXT = 200 * 1024; // bytes of the file
const LONGEST_SIDE = 1568; // pixels: models scale larger ones down to about this
const JPEG = 0.85; // quality

const IMAGES = /^image\/(?:png|jpeg|webp|gif|bmp|avif)$/;
async function readImage(file) {
  if (file.size > MOST_IMAGE) throw new Refused("file-large", { name: file.name, most: megabytes(MOST_IMAGE) });
  const picture = await createImageBitmap(file).catch(() => { throw new Refused("file-unread", { name: file.name }); });
  const scale = Math.min(1, LONGEST_SIDE / Math.max(picture.width, picture.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(picture.width * scale));
  canvas.height = Math.max(1, Math.round(picture.height * scale));
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff"; // JPEG has no transparency
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(picture, 0, 0, canvas.width, canvas.height);
  picture.close();
  return { kind: "image", name: file.name, url: canvas.toDataURL("image/jpeg", JPEG) };
}

// UTF-8, else what Japanese Windows writes. A file that is neither, or has a zero byte, is no text.
async function readText(file) {
  if (file.size > MOST_TEXT) throw new Refused("file-large", { name: file.name, most: megabytes(MOST_TEXT) });
  const bytes = await file.arrayBuffer();
  for (const encoding of ["utf-8", "shift_jis"]) {
    try {
      const text = new TextDecoder(encoding, { fatal: true }).decode(bytes);
      if (text.includes("\0")) break;
      return { kind: "text", name: file.name, text };
    } catch { /* the next one */ }
  }
  throw new Refused("file-unread", { name: file.name });
}

// What is sent of a file. Throws Refused.
export async function readFile(file, { seesImages }) {
  if (!IMAGES.test(file.type)) return readText(file);
  if (!seesImages) throw new Refused("no-images");
  return readImage(file);
}
