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
// Heatmaps: which number the cells show, and one line of detail for the cell under the pointer, finger or arrow keys.
for (const map of document.querySelectorAll(".map")) {
  const heat = map.querySelector(".heat");
  const told = map.querySelector(".told");
  const rows = [...heat.tBodies[0].rows].map((row) => [...row.querySelectorAll("td")]).filter((row) => row.length);
  const views = map.querySelector(".views");
  if (views) views.hidden = false;
  for (const button of views?.children ?? []) {
    button.addEventListener("click", () => {
      for (const other of views.children) other.setAttribute("aria-pressed", String(other === button));
      for (const cell of rows.flat()) cell.textContent = cell.dataset[button.value];
    });
  }
  let chosen = null;
  const tell = (cell) => {
    chosen?.classList.remove("chosen");
    chosen = cell;
    cell.classList.add("chosen");
    told.textContent = cell.title;
  };
  heat.setAttribute("role", "grid");
  heat.setAttribute("aria-label", heat.parentElement.dataset.title);
  for (const cell of rows.flat()) cell.tabIndex = -1;
  let stop = rows[0][0];
  stop.tabIndex = 0;
  for (const name of ["mouseover", "click", "focusin"]) {
    heat.addEventListener(name, (event) => {
      const cell = event.target.closest("tbody td");
      if (cell) tell(cell);
    });
  }
  heat.addEventListener("keydown", (event) => {
    const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    const i = rows.findIndex((row) => row.includes(event.target));
    if (i < 0 || !steps[event.key]) return;
    const [down, right] = steps[event.key];
    const cell = rows[i + down]?.[rows[i].indexOf(event.target) + right];
    event.preventDefault();
    if (!cell) return;
    stop.tabIndex = -1;
    stop = cell;
    cell.tabIndex = 0;
    cell.focus();
  });
}
// Figures are drawn for a wide page; on a phone a button shows one in that size.
for (const figure of document.querySelectorAll("figure")) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "Larger";
  button.setAttribute("aria-pressed", "false");
  button.addEventListener("click", () => {
    button.setAttribute("aria-pressed", String(figure.classList.toggle("large")));
  });
  figure.append(button);
}
// Boxes that scroll fade where there is more, say so, and can be reached by keyboard.
for (const box of document.querySelectorAll(".scroll")) {
  const hint = document.createElement("p");
  hint.className = "hint";
  hint.hidden = true;
  box.after(hint);
  const look = () => {
    const right = box.scrollWidth - box.clientWidth;
    const below = box.scrollHeight - box.clientHeight;
    box.classList.toggle("left", box.scrollLeft > 1 && !box.querySelector(".heat"));
    box.classList.toggle("right", right - box.scrollLeft > 1);
    box.classList.toggle("below", below - box.scrollTop > 1);
    const words = [right > 1 ? "sideways" : "", below > 1 ? "down" : ""].filter(Boolean).join(" and ");
    hint.hidden = !words;
    hint.textContent = `There is more: scroll ${words} inside the box.`;
    if (words) {
      box.tabIndex = 0;
      box.setAttribute("role", "group");
      box.setAttribute("aria-label", `${box.dataset.title ?? "Table or figure"}, scrolls ${words}`);
    } else {
      for (const name of ["tabindex", "role", "aria-label"]) box.removeAttribute(name);
    }
  };
  box.addEventListener("scroll", look, { passive: true });
  const watch = new ResizeObserver(look);
  watch.observe(box);
  watch.observe(box.firstElementChild);
}
