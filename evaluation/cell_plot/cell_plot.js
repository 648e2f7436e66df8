/*
 * cellPlot(root, data): cells in two dimensions, to zoom, hover and colour. No other file is needed but cell_plot.css.
 *
 * data.x, data.y         Uint16Array, one value per cell, both axes in one scale
 * data.names             names of the cells, or nothing
 * data.colourings        list of
 *     {name, kind: "classes", labels, codes, missing}   codes: index into labels; labels.length for a missing one
 *     {name, kind: "numbers", values, low, high, gene}  values: Uint8Array, 0 is low, 254 high, 255 missing
 * data.title, data.note  texts
 * data.wheel             true: the wheel zooms at once; else after a click into the plot, or with Ctrl
 *
 * An array may also be a text: zlib-compressed bytes (names: a JSON list) in base64, as the Python side writes them.
 * The promise gives {colour(name), add(colouring), select(labels), reset(), draw(), destroy()}.
 * A click on a cell sends the event "cell-plot-cell" from root, with detail.cell: its number.
 * All texts of data are shown as text, never as HTML.
 */
"use strict";

globalThis.cellPlot = (() => {
  const PALETTE = [
    "#2364aa", "#d1495b", "#3da35d", "#edae49", "#7b4fa3", "#00798c", "#c77dff", "#8d6b4f", "#6c757d", "#f28482",
    "#90be6d", "#577590", "#b5179e", "#f3722c", "#4d908e", "#9d8189", "#277da1", "#a7c957", "#6d597a", "#bc4749",
  ];
  const RAMPS = {
    light: ["#dde4ec", "#8fb8de", "#2364aa", "#0b2545"],
    dark: ["#36424f", "#2f6ea8", "#6db6f5", "#f2f9ff"],
  };
  const MISSING = 255, TOP = 254, GRID = 96, MOST_ZOOM = 400, NEAR = 12, STILL = 4, MARGIN = 18, WHILE_MOVING = 30000;

  // ------------------------------------------------------------------ data

  async function unpack(value, kind = Uint8Array) {
    if (typeof value !== "string") return value;
    if (typeof DecompressionStream === "undefined") throw new Error("This browser is too old to show the cells.");
    const packed = Uint8Array.from(atob(value), (letter) => letter.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
    const bytes = await new Response(stream).arrayBuffer();
    return kind === String ? new TextDecoder().decode(bytes) : new kind(bytes);
  }

  async function read(data) {
    const [x, y] = await Promise.all([unpack(data.x, Uint16Array), unpack(data.y, Uint16Array)]);
    const names = typeof data.names === "string" ? JSON.parse(await unpack(data.names, String)) : data.names;
    return { ...data, x, y, names, n: x.length, colourings: [...(data.colourings || [])] };
  }

  // Decode a colouring when it is first shown: genes that nobody asks for stay compressed.
  async function open(colouring) {
    if (colouring.kind === "numbers") colouring.values = await unpack(colouring.values);
    else colouring.codes = await unpack(colouring.codes, colouring.labels.length > 254 ? Uint16Array : Uint8Array);
    return colouring;
  }

  const valueOf = (c, cell) => c.low + ((c.high - c.low) * c.values[cell]) / TOP;
  const short = (value) => (Math.abs(value) >= 100 ? value.toFixed(0) : value.toPrecision(3));

  function textOf(c, cell) {
    if (c.kind === "numbers") return c.values[cell] === MISSING ? "–" : short(valueOf(c, cell));
    return c.codes[cell] < c.labels.length ? c.labels[c.codes[cell]] : c.missing || "–";
  }

  // ------------------------------------------------------------------ colours

  function rgb(text) {
    const number = parseInt(text.slice(1), 16);
    return [number >> 16, (number >> 8) & 255, number & 255];
  }

  function hue(number) {
    const h = (number * 137.5) % 360, light = [0.45, 0.6, 0.52][number % 3];
    const part = (k) => {
      const a = (k + h / 30) % 12;
      return Math.round(255 * (light - 0.55 * Math.min(light, 1 - light) * Math.max(-1, Math.min(a - 3, 9 - a, 1))));
    };
    return "#" + [part(0), part(8), part(4)].map((v) => v.toString(16).padStart(2, "0")).join("");
  }

  const paint = (number) => (number < PALETTE.length ? PALETTE[number] : hue(number));

  // Labels that the first colouring has, too, keep their colour from there; the others get those that are left.
  function coloursOf(colouring, first) {
    const known = new Map();
    if (first && first !== colouring) first.labels.forEach((label, i) => known.set(label, paint(i)));
    const taken = new Set(colouring.labels.filter((label) => known.has(label)).map((label) => known.get(label)));
    let next = 0;
    return colouring.labels.map((label) => {
      if (known.has(label)) return known.get(label);
      while (taken.has(paint(next))) next += 1;
      next += 1;
      return paint(next - 1);
    });
  }

  function ramp(stops) {
    const colours = stops.map(rgb), table = [];
    for (let i = 0; i <= TOP; i += 1) {
      const place = (i / TOP) * (colours.length - 1), at = Math.min(Math.floor(place), colours.length - 2);
      table.push(colours[at].map((v, k) => Math.round(v + (colours[at + 1][k] - v) * (place - at))));
    }
    return table;
  }

  // ------------------------------------------------------------------ drawing

  // A disc of `radius` pixels: offsets from its centre, and how much of each pixel it covers (0 to 256).
  function disc(radius, width, alpha) {
    const reach = Math.ceil(radius), offsets = [], covered = [];
    for (let dy = -reach; dy <= reach; dy += 1) {
      for (let dx = -reach; dx <= reach; dx += 1) {
        const part = Math.min(1, Math.max(0, radius + 0.5 - Math.hypot(dx, dy)));
        if (part > 0.03) {
          offsets.push(dy * width + dx);
          covered.push(Math.round(256 * alpha * part));
        }
      }
    }
    return { reach, offsets: Int32Array.from(offsets), covered: Uint16Array.from(covered) };
  }

  function stamp(pixels, at, disc, red, green, blue) {
    const { offsets, covered } = disc;
    for (let i = 0; i < offsets.length; i += 1) {
      const place = at + offsets[i], a = covered[i], rest = 256 - a, under = pixels[place];
      const r = ((under & 255) * rest + red * a) >> 8;
      const g = (((under >> 8) & 255) * rest + green * a) >> 8;
      const b = (((under >> 16) & 255) * rest + blue * a) >> 8;
      pixels[place] = 0xff000000 | (b << 16) | (g << 8) | r;
    }
  }

  // Cells in the order in which they are drawn: missing ones lowest, then low numbers; classes are mixed.
  function drawingOrder(colouring, n) {
    const order = new Uint32Array(n), keys = colouring.kind === "numbers" ? colouring.values : colouring.codes;
    const numbers = colouring.kind === "numbers", most = numbers ? MISSING : colouring.labels.length;
    const starts = new Uint32Array(257), bin = new Uint8Array(n);
    for (let i = 0; i < n; i += 1) {
      bin[i] = keys[i] >= most ? 0 : numbers ? keys[i] + 1 : 1 + ((Math.imul(i, 2654435761) >>> 16) % 251);
      starts[bin[i] + 1] += 1;
    }
    for (let i = 1; i < 257; i += 1) starts[i] += starts[i - 1];
    for (let i = 0; i < n; i += 1) order[starts[bin[i]]++] = i;
    return order;
  }

  // ------------------------------------------------------------------ cells near a place

  function gridOf(cells) {
    const bins = new Uint32Array(cells.n), starts = new Uint32Array(GRID * GRID + 1);
    const bin = (v) => Math.min(GRID - 1, Math.floor((v / 65536) * GRID));
    for (let i = 0; i < cells.n; i += 1) {
      bins[i] = bin(cells.y[i]) * GRID + bin(cells.x[i]);
      starts[bins[i] + 1] += 1;
    }
    for (let i = 1; i < starts.length; i += 1) starts[i] += starts[i - 1];
    const order = new Uint32Array(cells.n), next = starts.slice();
    for (let i = 0; i < cells.n; i += 1) order[next[bins[i]]++] = i;
    return { bin, starts, order };
  }

  function nearest(cells, grid, x, y, reach, shown) {
    const clamp = (v) => grid.bin(Math.min(65535, Math.max(0, v)));
    let found = -1, best = reach * reach;
    for (let row = clamp(y - reach); row <= clamp(y + reach); row += 1) {
      const from = grid.starts[row * GRID + clamp(x - reach)], to = grid.starts[row * GRID + clamp(x + reach) + 1];
      for (let k = from; k < to; k += 1) {
        const i = grid.order[k], away = (cells.x[i] - x) ** 2 + (cells.y[i] - y) ** 2;
        if (away < best && shown(i)) [found, best] = [i, away];
      }
    }
    return found;
  }

  // ------------------------------------------------------------------ the page's parts

  function make(tag, name, text, attributes = {}) {
    const made = document.createElement(tag);
    if (name) made.className = `cell-plot-${name}`;
    if (text !== undefined && text !== null) made.textContent = text;
    Object.entries(attributes).forEach(([key, value]) => made.setAttribute(key, value));
    return made;
  }

  let numbered = 0;

  function build(root, data) {
    numbered += 1;
    const id = `cell-plot-${numbered}`, part = {};
    part.figure = make("div", "figure");
    part.bar = make("div", "bar");
    part.choice = make("select", "choice", null, { id: `${id}-choice` });
    part.bar.append(make("label", "label", "Colour by", { for: `${id}-choice` }), part.choice);
    part.choice.append(make("option", "", "a gene", { value: "", hidden: "" }));
    part.genes = make("datalist", "", null, { id: `${id}-genes` });
    part.gene = make("input", "gene", null, {
      type: "text", placeholder: "gene", "aria-label": "Colour by a gene", list: `${id}-genes`, autocomplete: "off",
      spellcheck: "false",
    });
    part.bar.append(part.gene, part.genes);
    part.buttons = make("div", "buttons");
    [part.closer, part.wider, part.whole] = [["+", "Zoom in"], ["−", "Zoom out"], ["Reset", "Show all cells"]].map(
      ([text, says]) => make("button", "button", text, { type: "button", title: says, "aria-label": says }),
    );
    part.save = make("button", "button", "PNG", { type: "button", title: "Save as a picture" });
    part.buttons.append(part.closer, part.wider, part.whole, part.save);
    part.bar.append(part.buttons);
    part.stage = make("div", "stage");
    part.canvas = make("canvas", "canvas", null, {
      tabindex: "0", role: "img",
      "aria-label": `${data.title || "Cells"}: ${data.n.toLocaleString("en")} cells in two dimensions. ` +
        "Arrow keys move, plus and minus zoom, 0 shows all.",
    });
    part.ring = make("div", "ring");
    part.tip = make("div", "tip", null, { role: "status" });
    part.hint = make("div", "hint", data.wheel ? "" : "Ctrl + wheel, or click first, to zoom");
    part.stage.append(part.canvas, part.ring, part.tip, part.hint);
    part.legend = make("div", "legend");
    part.note = make("p", "note", data.note || "");
    const body = make("div", "body");
    body.append(part.stage, part.legend);
    if (data.title) part.figure.append(make("div", "title", data.title));
    part.figure.append(part.bar, body, ...(data.note ? [part.note] : []));
    root.replaceChildren(part.figure);
    return part;
  }

  // ------------------------------------------------------------------ the plot

  async function cellPlot(root, given) {
    const data = await read(given);
    const part = build(root, data), context = part.canvas.getContext("2d"), grid = gridOf(data);
    const right = data.x.reduce((a, b) => Math.max(a, b), 1), lower = data.y.reduce((a, b) => Math.max(a, b), 1);
    const view = { zoom: 1, x: right / 2, y: lower / 2 };
    const dark = globalThis.matchMedia("(prefers-color-scheme: dark)"), touching = new Map();
    let current = null, order = null, chosen = new Set(), frame = 0, settled = 0, size = { width: 0, height: 0, ratio: 1 };

    const style = (name) => getComputedStyle(part.figure).getPropertyValue(name).trim();
    const scale = () =>
      view.zoom * Math.min((size.width - 2 * MARGIN) / right, (size.height - 2 * MARGIN) / lower);
    const shown = (cell) => !chosen.size || current.kind === "numbers" || chosen.has(current.codes[cell]);
    const theme = () => (rgb(style("--cell-plot-paper")).reduce((a, b) => a + b) < 384 ? "dark" : "light");

    function fit() {
      const box = part.stage.getBoundingClientRect(), ratio = Math.min(globalThis.devicePixelRatio || 1, 2);
      size = { width: Math.max(box.width, 50), height: Math.max(box.height, 50), ratio };
      part.canvas.width = Math.round(size.width * ratio);
      part.canvas.height = Math.round(size.height * ratio);
      request();
    }

    // Large enough to be seen, small enough not to hide neighbours; a little larger the closer one looks.
    function radius() {
      const apart = Math.sqrt((size.width * size.height) / Math.max(data.n, 1));
      return Math.min(9, Math.min(4.5, Math.max(0.9, apart * 0.13)) * view.zoom ** 0.3) * size.ratio;
    }

    // While one moves, every so many cells of a large plot; all of them when it rests.
    function draw(moving = false) {
      frame = 0;
      if (!current) return;
      const step = moving ? Math.max(1, Math.ceil(data.n / WHILE_MOVING)) : 1;
      const { width, height } = part.canvas, image = context.createImageData(width, height);
      const pixels = new Uint32Array(image.data.buffer), [r, g, b] = rgb(style("--cell-plot-paper"));
      pixels.fill((0xff000000 | (b << 16) | (g << 8) | r) >>> 0);
      const missing = rgb(style("--cell-plot-missing")), faint = disc(radius() * 0.8, width, 0.35);
      const solid = disc(radius(), width, 0.88), table = current.table, keys = current.keys;
      const by = scale() * size.ratio, reach = solid.reach + 1;
      const left = width / 2 - view.x * by, top = height / 2 - view.y * by;
      const each = (mine, of) => {
        for (let k = 0; k < order.length; k += step) {
          const i = order[k];
          if (chosen.size && shown(i) !== mine) continue;
          const px = Math.round(data.x[i] * by + left), py = Math.round(data.y[i] * by + top);
          if (px < reach || py < reach || px >= width - reach || py >= height - reach) continue;
          const colour = mine ? table[keys[i]] || missing : missing;
          stamp(pixels, py * width + px, of, colour[0], colour[1], colour[2]);
        }
      };
      if (chosen.size) each(false, faint);
      each(true, solid);
      context.putImageData(image, 0, 0);
      part.canvas.style.touchAction = view.zoom > 1 ? "none" : "pan-y";
    }

    function request(moving = false) {
      if (!frame) frame = requestAnimationFrame(() => draw(moving));
      clearTimeout(settled);
      if (moving && data.n > WHILE_MOVING) settled = setTimeout(() => draw(), 140);
    }

    // ---------------------------------------------------------------- colours and legend

    function tables() {
      const first = data.colourings.find((c) => c.kind === "classes");
      if (current.kind === "numbers") [current.table, current.keys] = [ramp(RAMPS[theme()]), current.values];
      else {
        current.shades = coloursOf(current, first);
        [current.table, current.keys] = [current.shades.map(rgb), current.codes];
      }
    }

    async function colour(name) {
      const found = data.colourings.find((c) => c.name === name);
      if (!found) return false;
      current = await open(found);
      chosen = new Set();
      order = drawingOrder(current, data.n);
      tables();
      part.gene.value = current.gene ? name : "";
      part.choice.value = current.gene ? "" : name;
      legend();
      request();
      return true;
    }

    function legend() {
      part.legend.replaceChildren();
      if (current.kind === "numbers") return scaleLegend();
      const counts = new Uint32Array(current.labels.length + 1);
      current.codes.forEach((code) => (counts[Math.min(code, current.labels.length)] += 1));
      const rows = current.labels.map((label, code) => [label, code, current.shades[code]]);
      if (counts[current.labels.length]) {
        rows.push([current.missing || "missing", current.labels.length, style("--cell-plot-missing")]);
      }
      const head = make("div", "head"), all = make("button", "all", "Show all", { type: "button" });
      all.addEventListener("click", () => select([]));
      head.append(make("span", "", `${rows.filter(([, code]) => counts[code]).length} labels: click to pick`), all);
      part.legend.append(head);
      rows.filter(([, code]) => counts[code]).forEach(([label, code, shade]) => {
        const row = make("button", "row", null, { type: "button", "aria-pressed": "false" });
        const spot = make("span", "spot");
        spot.style.background = shade;
        row.append(spot, make("span", "name", label), make("span", "count", counts[code].toLocaleString("en")));
        row.dataset.code = code;
        row.addEventListener("click", () => {
          if (!chosen.delete(code)) chosen.add(code);
          marked();
        });
        part.legend.append(row);
      });
      marked();
    }

    function marked() {
      part.legend.classList.toggle("cell-plot-some", chosen.size > 0);
      part.legend.querySelectorAll("[data-code]").forEach((row) => {
        row.setAttribute("aria-pressed", String(chosen.has(Number(row.dataset.code))));
      });
      request();
    }

    function scaleLegend() {
      const bar = make("div", "ramp"), ends = make("div", "ends");
      bar.style.background = `linear-gradient(90deg, ${RAMPS[theme()].join(", ")})`;
      ends.append(make("span", "", short(current.low)), make("span", "", short(current.high)));
      part.legend.append(make("div", "name", current.name), bar, ends);
      if (current.says) part.legend.append(make("p", "note", current.says));
      const without = current.values.reduce((sum, v) => sum + (v === MISSING), 0);
      if (without) part.legend.append(make("p", "note", `${without.toLocaleString("en")} cells have no value (grey)`));
    }

    function select(labels) {
      if (current.kind !== "classes") return;
      chosen = new Set(labels.map((label) => current.labels.indexOf(label)).filter((code) => code >= 0));
      marked();
    }

    function list(colouring) {
      const option = make("option", "", colouring.gene ? null : colouring.name, { value: colouring.name });
      (colouring.gene ? part.genes : part.choice).append(option);
      part.gene.hidden = !data.colourings.some((c) => c.gene);
    }

    function add(colouring) {
      if (!data.colourings.some((c) => c.name === colouring.name)) {
        data.colourings.push(colouring);
        list(colouring);
      }
      return colour(colouring.name);
    }

    // ---------------------------------------------------------------- looking closer

    const place = (event) => {
      const box = part.canvas.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top];
    };
    const under = (px, py) => [view.x + (px - size.width / 2) / scale(), view.y + (py - size.height / 2) / scale()];

    function zoom(by, px = size.width / 2, py = size.height / 2) {
      const [x, y] = under(px, py);
      view.zoom = Math.min(MOST_ZOOM, Math.max(1, view.zoom * by));
      if (view.zoom === 1) [view.x, view.y] = [right / 2, lower / 2];
      else [view.x, view.y] = [x - (px - size.width / 2) / scale(), y - (py - size.height / 2) / scale()];
      hide();
      request(true);
    }

    function move(dx, dy) {
      view.x = Math.min(right, Math.max(0, view.x - dx / scale()));
      view.y = Math.min(lower, Math.max(0, view.y - dy / scale()));
      hide();
      request(true);
    }

    function reset() {
      Object.assign(view, { zoom: 1, x: right / 2, y: lower / 2 });
      hide();
      request();
    }

    function hide() {
      part.tip.style.display = part.ring.style.display = "none";
    }

    async function hover(px, py) {
      if (!current) return;
      const [x, y] = under(px, py), cell = nearest(data, grid, x, y, NEAR / scale(), shown);
      if (cell < 0) return hide();
      const plain = data.colourings.filter((c) => !c.gene);
      await Promise.all(plain.map(open));
      const told = plain.filter((c) => c === current || textOf(c, cell) !== "–").slice(0, 11);
      const lines = current.gene ? [...told, current] : told;
      part.tip.replaceChildren();
      if (data.names) part.tip.append(make("div", "cell", data.names[cell]));
      lines.forEach((c) => {
        const line = make("div", c === current ? "line cell-plot-now" : "line");
        line.append(make("span", "", c.name), make("b", "", textOf(c, cell)));
        part.tip.append(line);
      });
      const by = scale();
      const at = [(data.x[cell] - view.x) * by + size.width / 2, (data.y[cell] - view.y) * by + size.height / 2];
      part.tip.style.display = part.ring.style.display = "block";
      part.ring.style.transform = `translate(${at[0]}px, ${at[1]}px)`;
      const wide = part.tip.offsetWidth, high = part.tip.offsetHeight;
      const left = at[0] + 14 + wide > size.width ? Math.max(4, at[0] - wide - 14) : at[0] + 14;
      const top = Math.min(Math.max(4, at[1] - high / 2), Math.max(4, size.height - high - 4));
      part.tip.style.transform = `translate(${Math.min(left, Math.max(4, size.width - wide - 4))}px, ${top}px)`;
    }

    // ---------------------------------------------------------------- events

    // Tell the page which cell was clicked.
    function choose(px, py) {
      const [x, y] = under(px, py), cell = nearest(data, grid, x, y, NEAR / scale(), shown);
      if (cell >= 0) root.dispatchEvent(new CustomEvent("cell-plot-cell", { bubbles: true, detail: { cell } }));
    }

    function pointer(event) {
      const [px, py] = place(event), before = touching.get(event.pointerId);
      if (!before) return hover(px, py);
      touching.set(event.pointerId, [px, py]);
      if (touching.size === 1) return move(px - before[0], py - before[1]);
      const [other] = [...touching.entries()].filter(([id]) => id !== event.pointerId).map(([, at]) => at);
      const was = Math.hypot(before[0] - other[0], before[1] - other[1]);
      const now = Math.hypot(px - other[0], py - other[1]);
      return zoom(now / Math.max(was, 1), (px + other[0]) / 2, (py + other[1]) / 2);
    }

    function wheel(event) {
      if (!(data.wheel || event.ctrlKey || event.metaKey || document.activeElement === part.canvas)) return;
      event.preventDefault();
      zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0016)), ...place(event));
    }

    function key(event) {
      const act = {
        "+": () => zoom(1.4), "=": () => zoom(1.4), "-": () => zoom(1 / 1.4), 0: reset, Escape: hide,
        ArrowLeft: () => move(40, 0), ArrowRight: () => move(-40, 0), ArrowUp: () => move(0, 40),
        ArrowDown: () => move(0, -40),
      }[event.key];
      if (!act) return;
      event.preventDefault();
      act();
    }

    function save() {
      part.canvas.toBlob((blob) => {
        const link = make("a", "", "", { href: URL.createObjectURL(blob), download: "cells.png" });
        link.click();
        setTimeout(() => URL.revokeObjectURL(link.href), 10000);
      });
    }

    function listen() {
      part.choice.addEventListener("change", () => colour(part.choice.value));
      part.gene.addEventListener("input", () => {
        part.gene.classList.remove("cell-plot-unknown");
        if (data.colourings.some((c) => c.gene && c.name === part.gene.value)) colour(part.gene.value);
      });
      part.gene.addEventListener("change", () => {
        const wanted = part.gene.value.trim().toLowerCase();
        const found = data.colourings.find((c) => c.gene && c.name.toLowerCase() === wanted);
        part.gene.classList.toggle("cell-plot-unknown", Boolean(wanted) && !found);
        if (found && found !== current) colour(found.name);
      });
      part.closer.addEventListener("click", () => zoom(1.6));
      part.wider.addEventListener("click", () => zoom(1 / 1.6));
      part.whole.addEventListener("click", reset);
      part.save.addEventListener("click", save);
      let pressed = null;
      part.canvas.addEventListener("pointerdown", (event) => {
        part.canvas.setPointerCapture(event.pointerId);
        touching.set(event.pointerId, place(event));
        pressed = touching.size === 1 ? place(event) : null;
        hover(...place(event));
      });
      part.canvas.addEventListener("pointerup", (event) => {
        const [px, py] = place(event);
        if (pressed && Math.hypot(px - pressed[0], py - pressed[1]) < STILL) choose(px, py);
        pressed = null;
      });
      part.canvas.addEventListener("pointermove", pointer);
      ["pointerup", "pointercancel"].forEach((name) =>
        part.canvas.addEventListener(name, (event) => touching.delete(event.pointerId)));
      part.canvas.addEventListener("pointerleave", hide);
      part.canvas.addEventListener("wheel", wheel, { passive: false });
      part.canvas.addEventListener("dblclick", (event) => zoom(2, ...place(event)));
      part.canvas.addEventListener("keydown", key);
    }

    const restyle = () => {
      if (!current) return;
      tables();
      legend();
    };
    const sized = new ResizeObserver(fit), styled = new MutationObserver(restyle);
    if (!data.colourings.length) {
      data.colourings.push({ name: "cells", kind: "classes", labels: ["cells"], codes: new Uint8Array(data.n) });
    }
    data.colourings.forEach(list);
    part.gene.hidden = !data.colourings.some((c) => c.gene);
    listen();
    dark.addEventListener("change", restyle);
    styled.observe(document.documentElement, { attributes: true, attributeFilter: ["data-theme", "class"] });
    sized.observe(part.stage);
    fit();
    await colour(data.colourings[0].name);
    draw();
    return {
      colour, add, select, reset, draw,
      destroy() {
        clearTimeout(settled);
        sized.disconnect();
        styled.disconnect();
        dark.removeEventListener("change", restyle);
        root.replaceChildren();
      },
    };
  }

  // Draw every plot of a page: an element with data-cell-plot="ID" takes the JSON of the script element ID.
  cellPlot.all = () => Promise.all([...document.querySelectorAll("[data-cell-plot]")].map((root) =>
    cellPlot(root, JSON.parse(document.getElementById(root.dataset.cellPlot).textContent)).catch((error) => {
      root.textContent = `The plot cannot be shown: ${error.message}`;
    })));
  return cellPlot;
})();
