"use strict";
// Sortable tables: a header's button sorts by the cells' data-sort number where there is one, else by their text.
for (const table of document.querySelectorAll("table.sortable")) {
  const headers = [...table.tHead.rows[0].cells];
  headers.forEach((header, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    header.append(button);
    button.addEventListener("click", () => {
      const sign = header.getAttribute("aria-sort") === "descending" ? 1 : -1;
      headers.forEach((other) => other.removeAttribute("aria-sort"));
      header.setAttribute("aria-sort", sign === 1 ? "ascending" : "descending");
      const body = table.tBodies[0];
      const key = (row) => row.cells[column].dataset.sort ?? row.cells[column].textContent;
      const rows = [...body.rows].sort((a, b) => {
        const [x, y] = [key(a), key(b)];
        if (x === "" || y === "") return (x === "") - (y === "");
        const numeric = !Number.isNaN(Number(x)) && !Number.isNaN(Number(y));
        return sign * (numeric ? Number(x) - Number(y) : x.localeCompare(y, undefined, { numeric: true }));
      });
      body.append(...rows);
    });
  });
}
// The heatmap: which number its cells show, and one line of detail for fingers, which cannot hover.
const heat = document.querySelector("table.heat");
if (heat) {
  const told = document.querySelector(".told");
  const cells = [...heat.querySelectorAll("tbody td")];
  const views = document.querySelector(".views");
  views.hidden = false;
  for (const button of views.children) {
    button.addEventListener("click", () => {
      for (const other of button.parentElement.children) other.setAttribute("aria-pressed", String(other === button));
      for (const cell of cells) cell.textContent = cell.dataset[button.value];
    });
  }
  const tell = (cell) => {
    for (const other of cells) other.classList.toggle("chosen", other === cell);
    told.textContent = cell.title;
  };
  heat.addEventListener("click", (event) => {
    const cell = event.target.closest("td");
    if (cell) tell(cell);
  });
}
