// A map of cells on a canvas: zoom, move, point, colour.

const FAR = 12; // pixels within which a cell is pointed at

export class Plot {
  /**
   * @param {HTMLCanvasElement} canvas
   * @param {(cell: number, x: number, y: number) => void} onPoint  -1 where there is no cell
   */
  constructor(canvas, onPoint) {
    this.canvas = canvas;
    this.onPoint = onPoint;
    this.points = null;
    this.colours = null;
    this.faded = null;
    this.view = { x: 0, y: 0, scale: 1 };
    this.pointers = new Map();
    this.waiting = false;
    new ResizeObserver(() => this.draw()).observe(canvas);
    canvas.addEventListener("wheel", (event) => this.#wheel(event), { passive: false });
    canvas.addEventListener("pointerdown", (event) => this.#down(event));
    canvas.addEventListener("pointermove", (event) => this.#move(event));
    for (const end of ["pointerup", "pointercancel", "pointerleave"]) {
      canvas.addEventListener(end, (event) => {
        this.pointers.delete(event.pointerId);
        if (end === "pointerleave") this.onPoint(-1, 0, 0);
      });
    }
    canvas.addEventListener("keydown", (event) => this.#key(event));
  }

  /** @param {Float32Array|null} coordinates  x and y of each cell */
  show(coordinates) {
    this.points = coordinates;
    if (coordinates) {
      let [left, right, top, bottom] = [Infinity, -Infinity, Infinity, -Infinity];
      for (let i = 0; i < coordinates.length; i += 2) {
        left = Math.min(left, coordinates[i]);
        right = Math.max(right, coordinates[i]);
        top = Math.min(top, coordinates[i + 1]);
        bottom = Math.max(bottom, coordinates[i + 1]);
      }
      this.box = { left, top, width: right - left || 1, height: bottom - top || 1 };
    }
    this.reset();
  }

  /**
   * @param {string[]} colours  of each cell
   * @param {Uint8Array|null} faded  cells that are drawn below the others, weakly
   */
  paint(colours, faded = null) {
    this.colours = colours;
    this.faded = faded;
    this.draw();
  }

  reset() {
    this.view = { x: 0, y: 0, scale: 1 };
    this.draw();
  }

  draw() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      this.#drawNow();
    });
  }

  #place() {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    const fit = Math.min((width - 32) / this.box.width, (height - 32) / this.box.height);
    const scale = fit * this.view.scale;
    return {
      scale,
      dx: width / 2 + this.view.x - (this.box.left + this.box.width / 2) * scale,
      dy: height / 2 + this.view.y - (this.box.top + this.box.height / 2) * scale,
    };
  }

  #drawNow() {
    const { canvas } = this;
    const { clientWidth: width, clientHeight: height } = canvas;
    const ratio = window.devicePixelRatio || 1;
    if (!width || !height) return;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    const pen = canvas.getContext("2d");
    pen.scale(ratio, ratio);
    if (!this.points || !this.colours) return;
    const { scale, dx, dy } = this.#place();
    const cells = this.points.length / 2;
    const radius = Math.max(1.1, Math.min(4.5, 90 / Math.sqrt(cells))) * Math.min(2.5, Math.sqrt(this.view.scale));
    const byColour = new Map();
    for (let cell = 0; cell < cells; cell++) {
      const key = (this.faded?.[cell] ? "0" : "1") + this.colours[cell];
      const there = byColour.get(key);
      if (there) there.push(cell);
      else byColour.set(key, [cell]);
    }
    for (const [key, members] of [...byColour].sort(([a], [b]) => (a[0] < b[0] ? -1 : a[0] > b[0] ? 1 : 0))) {
      pen.globalAlpha = key[0] === "0" ? 0.15 : 0.85;
      pen.fillStyle = key.slice(1);
      pen.beginPath();
      for (const cell of members) {
        const x = this.points[2 * cell] * scale + dx, y = this.points[2 * cell + 1] * scale + dy;
        if (x < -9 || y < -9 || x > width + 9 || y > height + 9) continue;
        pen.moveTo(x + radius, y);
        pen.arc(x, y, radius, 0, 7);
      }
      pen.fill();
    }
  }

  #zoom(factor, x, y) {
    const { view, canvas } = this;
    const scale = Math.max(0.5, Math.min(200, view.scale * factor));
    const change = scale / view.scale;
    const [cx, cy] = [x - canvas.clientWidth / 2, y - canvas.clientHeight / 2];
    view.x = cx - (cx - view.x) * change;
    view.y = cy - (cy - view.y) * change;
    view.scale = scale;
    this.draw();
  }

  #wheel(event) {
    event.preventDefault();
    this.#zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0015)), event.offsetX, event.offsetY);
  }

  #down(event) {
    this.canvas.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, { x: event.offsetX, y: event.offsetY });
    if (event.pointerType === "touch") this.#point(event);
  }

  #move(event) {
    const before = this.pointers.get(event.pointerId);
    if (!before) return this.#point(event);
    const now = { x: event.offsetX, y: event.offsetY };
    if (this.pointers.size === 1) {
      this.view.x += now.x - before.x;
      this.view.y += now.y - before.y;
      this.draw();
    } else {
      const other = [...this.pointers].find(([id]) => id !== event.pointerId)[1];
      const length = (a, b) => Math.hypot(a.x - b.x, a.y - b.y) || 1;
      this.#zoom(length(now, other) / length(before, other), (now.x + other.x) / 2, (now.y + other.y) / 2);
    }
    this.pointers.set(event.pointerId, now);
  }

  #key(event) {
    const steps = { ArrowLeft: [40, 0], ArrowRight: [-40, 0], ArrowUp: [0, 40], ArrowDown: [0, -40] };
    const { clientWidth: width, clientHeight: height } = this.canvas;
    if (event.key === "+" || event.key === "=") this.#zoom(1.25, width / 2, height / 2);
    else if (event.key === "-") this.#zoom(0.8, width / 2, height / 2);
    else if (event.key === "0") this.reset();
    else if (steps[event.key]) {
      this.view.x += steps[event.key][0];
      this.view.y += steps[event.key][1];
      this.draw();
    } else return;
    event.preventDefault();
  }

  #point(event) {
    if (!this.points) return;
    const { scale, dx, dy } = this.#place();
    let nearest = -1, least = FAR * FAR;
    for (let cell = 0; cell < this.points.length / 2; cell++) {
      const away = (this.points[2 * cell] * scale + dx - event.offsetX) ** 2 + (this.points[2 * cell + 1] * scale + dy - event.offsetY) ** 2;
      if (away < least) [nearest, least] = [cell, away];
    }
    this.onPoint(nearest, event.offsetX, event.offsetY);
  }
}
