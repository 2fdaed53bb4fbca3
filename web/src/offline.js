// Keeps the page for when there is no network, and hands it out with the headers of a page that is isolated from others:
// only such a page may compute with threads, and static hosts don't send them. `web.make` writes the build's files in.
const { version, files, later } = BUILD; // what comes later is kept once a page has asked for it
const ISOLATED = { "Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp", "Cross-Origin-Resource-Policy": "same-origin" };

addEventListener("install", (event) => {
  event.waitUntil(caches.open(version).then((cache) => cache.addAll(files)).then(() => skipWaiting()));
});

addEventListener("activate", (event) => {
  const others = caches.keys().then((names) => Promise.all(names.filter((name) => name !== version).map((name) => caches.delete(name))));
  event.waitUntil(others.then(() => clients.claim()));
});

addEventListener("fetch", (event) => {
  if (event.request.method !== "GET" || new URL(event.request.url).origin !== location.origin) return;
  event.respondWith(answer(event.request));
});

async function answer(request) {
  const found = (await caches.match(request, { cacheName: version, ignoreSearch: true })) ?? (await fetch(request));
  if (found.type === "opaqueredirect") return found; // the browser follows it, and asks again
  if (found.ok && later.some((name) => request.url.endsWith(`/${name}`))) await (await caches.open(version)).put(request, found.clone());
  const { body, status, statusText, headers } = found;
  return new Response(body, { status, statusText, headers: { ...Object.fromEntries(headers), ...ISOLATED } });
}
