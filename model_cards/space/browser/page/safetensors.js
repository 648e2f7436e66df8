// Read a safetensors file: names -> arrays with shapes, and the metadata of its header.

const TYPES = { F64: Float64Array, F32: Float32Array, I64: BigInt64Array, I32: Int32Array, U8: Uint8Array, F16: Uint16Array };

function fromHalf(bits) {
  const sign = bits & 0x8000 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = bits & 1023;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

/** @param {ArrayBuffer} buffer */
export function readSafetensors(buffer) {
  const size = Number(new DataView(buffer).getBigUint64(0, true));
  const { __metadata__: metadata = {}, ...header } = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, size)));
  const tensors = {};
  for (const [name, { dtype, shape, data_offsets: [low, high] }] of Object.entries(header)) {
    const stored = new TYPES[dtype](buffer.slice(8 + size + low, 8 + size + high));
    tensors[name] = { shape, values: dtype === "F16" ? Float32Array.from(stored, fromHalf) : stored };
  }
  return { metadata, tensors };
}
