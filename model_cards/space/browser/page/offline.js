// A service worker: keeps the page's files in the browser, so that the page works without a network once it is loaded.

const { mark, files, webgpu } = FILES_OF_THE_PAGE; // `webgpu`: only for browsers with a graphics processor
const CACHE = `cellglot-${mark}`;

async function keep(paths) {
  await (await caches.open(CACHE)).addAll(paths);
}

self.addEventListener("install", (event) => {
  const kept = caches.match(new URL(webgpu[0], self.location)).then((had) => keep(had ? [...files, ...webgpu] : files));
  event.waitUntil(kept.then(() => self.skipWaiting()));
});

// The page says "webgpu" when it has loaded these files.
self.addEventListener("message", (event) => {
  if (event.data === "webgpu") event.waitUntil(keep(webgpu).catch(() => {})); // without them WebAssembly computes
});

self.addEventListener("activate", (event) => {
  const old = (name) => name.startsWith("cellglot-") && name !== CACHE;
  event.waitUntil(
    caches.keys().then((names) => Promise.all(names.filter(old).map((name) => caches.delete(name)))).then(() => self.clients.claim()),
  );
});

// The network first, so that a new version is seen at once; without it the files that are kept.
self.addEventListener("fetch", (event) => {
  if (event.request.method !== "GET" || new URL(event.request.url).origin !== self.location.origin) return;
  event.respondWith(
    fetch(event.request).catch(async () => {
      const kept = await (await caches.open(CACHE)).match(event.request, { ignoreSearch: true });
      return kept ?? Response.error();
    }),
  );
});
