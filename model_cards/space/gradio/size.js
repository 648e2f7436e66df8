// Refuse files that are too large before they are uploaded: Gradio itself says no more than "Error".

(() => {
  const MOST_BYTES = BYTES_OF_A_VISIT;
  const MEGABYTE = BYTES_OF_A_MEGABYTE;
  const megabytes = (bytes) => `${Math.floor(bytes / MEGABYTE).toLocaleString("en")} MB`;

  function check(event, given) {
    const files = Array.from(given ?? []); // the list of an input empties with it
    const place = event.target?.closest?.("#cg-files");
    if (!place || !files.length) return;
    document.getElementById("cg-too-large")?.remove();
    const bytes = files.reduce((sum, file) => sum + file.size, 0);
    if (bytes <= MOST_BYTES) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    if (event.type === "change") event.target.value = "";
    const said = document.createElement("p");
    said.id = "cg-too-large";
    said.className = "cg-refused";
    said.setAttribute("role", "alert");
    const named = files.length === 1 ? files[0].name : `These ${files.length} files`;
    said.textContent =
      `${named} ${files.length === 1 ? "has" : "have"} ${megabytes(bytes)}; this page takes at most ${megabytes(MOST_BYTES)}. ` +
      "Annotate the cells on your own machine by: cellglot annotate CELLS";
    place.after(said);
  }

  document.addEventListener("change", (event) => check(event, event.target?.files), true);
  document.addEventListener("drop", (event) => check(event, event.dataTransfer?.files), true);
})();
