// A service worker: keeps the page's files in the browser, so that the page works without a network once it is loaded.

const { mark, files } = FILES_OF_THE_PAGE;
const CACHE = `cellglot-${mark}`;

self.addEventListener("install", (event) => {
  event.waitUntil(caches.open(CACHE).then((cache) => cache.addAll(files)).then(() => self.skipWaiting()));
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
