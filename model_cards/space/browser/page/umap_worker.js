// Lay out cells in two dimensions, in a thread of its own. A classic worker: umap-js is a script, not a module.

self.window = self;
self.onmessage = ({ data }) => {
  importScripts(data.library);
  const { embedding, size, seed } = data;
  const cells = embedding.length / size;
  const points = Array.from({ length: cells }, (_, i) => Array.from(embedding.subarray(i * size, (i + 1) * size)));
  let state = seed >>> 0;
  const random = () => {
    // mulberry32, so that the same file has the same picture
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296;
  };
  const neighbors = Math.max(2, Math.min(15, cells - 1));
  const umap = new self.UMAP.UMAP({ nNeighbors: neighbors, minDist: 0.4, nEpochs: cells > 5000 ? 200 : 300, random });
  const epochs = umap.initializeFit(points);
  for (let i = 0; i < epochs; i++) {
    umap.step();
    if (i % 20 === 0) self.postMessage({ type: "progress", share: i / epochs });
  }
  self.postMessage({ type: "layout", coordinates: Float32Array.from(umap.getEmbedding().flat()) });
};
