// The page's own files.

import { PageError } from "./errors.js";

export async function fetched(path) {
  const reply = await fetch(new URL(path, import.meta.url));
  if (!reply.ok) throw new PageError(`The page's file ${path} cannot be loaded (${reply.status}): reload the page.`);
  return reply;
}

/** Fetch a file that lies there packed by gzip; some servers unpack it on the way. */
export async function unpacked(path) {
  const buffer = await (await fetched(path)).arrayBuffer();
  const bytes = new Uint8Array(buffer, 0, 2);
  if (bytes[0] !== 0x1f || bytes[1] !== 0x8b) return buffer;
  return new Response(new Blob([buffer]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
}
