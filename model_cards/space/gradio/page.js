// The map of the cells: cellPlot with genes that are asked for by name, and cells to choose.
// gr.HTML gives element, props, trigger, watch and server.
let plot = null, data = null, shown = null, asked = 0;

const inflate = async (text) => {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint32Array(await new Response(stream).arrayBuffer());
};

const made = (tag, name, text) => {
  const node = document.createElement(tag);
  if (name) node.className = name;
  if (text) node.textContent = text;
  return node;
};

// The colours of the table are those of the map.
function paintTable() {
  document.querySelectorAll("#cg-types [data-colour]").forEach((swatch) => {
    const label = swatch.closest("tr").dataset.cellType;
    const row = [...element.querySelectorAll("[data-code]")].find((r) => r.querySelector(".cell-plot-name").textContent === label);
    if (row) swatch.style.background = row.querySelector(".cell-plot-spot").style.background;
  });
}

async function showGene(name, says) {
  const mine = ++asked;
  const found = await server.gene({ visit: data.visit, gene: name });
  if (mine !== asked || !plot) return;
  if (!found) says.textContent = `The file has no gene “${name}”.`;
  else {
    says.textContent = "";
    await plot.add(found);
  }
}

function geneSearch() {
  const box = made("div", "cg-search"), input = made("input"), list = made("ul", "cg-offers"), says = made("span", "cg-says");
  Object.entries({
    type: "text", placeholder: `colour by one of ${data.genes.toLocaleString("en")} genes`, "aria-label": "Colour by a gene",
    role: "combobox", "aria-expanded": "false", "aria-controls": "cg-offers", autocomplete: "off", spellcheck: "false",
  }).forEach(([key, value]) => input.setAttribute(key, value));
  Object.assign(list, { id: "cg-offers", hidden: true });
  list.setAttribute("role", "listbox");
  says.setAttribute("role", "status");
  let at = -1, typed = 0;
  const close = () => {
    list.hidden = true;
    at = -1;
    input.setAttribute("aria-expanded", "false");
  };
  const take = (name) => {
    input.value = name;
    close();
    showGene(name, says);
  };
  const mark = () => [...list.children].forEach((item, i) => item.setAttribute("aria-selected", String(i === at)));
  input.addEventListener("input", async () => {
    const mine = ++typed, text = input.value.trim();
    says.textContent = "";
    const names = text ? await server.complete({ visit: data.visit, text }) : [];
    if (mine !== typed) return;
    list.replaceChildren(...names.map((name) => {
      const item = made("li", "", name);
      item.setAttribute("role", "option");
      item.addEventListener("mousedown", (event) => { event.preventDefault(); take(name); });
      return item;
    }));
    list.hidden = !names.length;
    at = -1;
    input.setAttribute("aria-expanded", String(!list.hidden));
  });
  input.addEventListener("keydown", (event) => {
    const n = list.children.length;
    if (event.key === "ArrowDown" && n) at = (at + 1) % n;
    else if (event.key === "ArrowUp" && n) at = (at + n - 1) % n;
    else if (event.key === "Escape") return close();
    else if (event.key === "Enter" && input.value.trim()) {
      typed += 1;
      return take(at >= 0 && !list.hidden ? list.children[at].textContent : input.value.trim());
    } else return;
    event.preventDefault();
    mark();
  });
  input.addEventListener("blur", close);
  box.append(input, list, says);
  return box;
}

async function render() {
  const root = element.querySelector(".cg-map");
  if (plot) plot.destroy();
  plot = data = null;
  root.replaceChildren();
  if (!props.value) return;
  data = JSON.parse(props.value);
  if (data.says) return root.append(made("p", "cg-says", data.says));
  shown = await inflate(data.shown);
  const stage = made("div", "cg-stage");
  root.append(stage);
  plot = await cellPlot(stage, data.plot);
  stage.querySelector(".cell-plot-bar").insertBefore(geneSearch(), stage.querySelector(".cell-plot-buttons"));
  stage.addEventListener("cell-plot-cell", (event) => trigger("select", { cell: shown[event.detail.cell] }));
  paintTable();
}

watch("value", render);
render();

document.addEventListener("click", (event) => {
  const gene = event.target.closest("#cg-cell [data-gene]");
  if (gene && plot) showGene(gene.dataset.gene, element.querySelector(".cg-search .cg-says"));
  const row = event.target.closest("#cg-types [data-cell-type]");
  if (row && plot) plot.colour("cell type").then(() => plot.select([row.dataset.cellType]));
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && event.target.closest && event.target.closest("#cg-types [data-cell-type]")) event.target.click();
});
