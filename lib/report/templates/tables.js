"use strict";
// Sorting, filtering and one tab stop for every table of a page. Without it the tables are as read.
const number = text => {
  const found = text.replace(/[,\u00a0 ]/g, "").replace("−", "-").match(/-?\d+(\.\d+)?(e[-+]?\d+)?/);
  return found ? Number(found[0]) : NaN;
};
const told = (row, column) => row.cells[column] ? row.cells[column].textContent.trim() : "";

// The column that a heading cell of the last lines stands over, by the widths of those before it.
const columns = table => {
  const taken = [], found = new Map();
  [...table.tHead.rows].forEach((row, line) => {
    let column = 0;
    for (const cell of row.cells) {
      while ((taken[line] || [])[column]) column++;
      if (cell.colSpan === 1) found.set(column, cell);
      for (let y = 0; y < cell.rowSpan; y++)
        for (let x = 0; x < cell.colSpan; x++) (taken[line + y] ||= [])[column + x] = true;
      column += cell.colSpan;
    }
  });
  return found;
};

const sort = (table, column, heading) => {
  const down = heading.getAttribute("aria-sort") === "descending";
  const body = table.tBodies[0], way = down ? 1 : -1;
  const numeric = [...body.rows].some(row => !Number.isNaN(number(told(row, column))) && column > 0);
  const ordered = [...body.rows].map(row => [told(row, column), row]);
  ordered.sort(([a], [b]) => {
    if (!numeric) return -way * a.localeCompare(b);
    const [x, y] = [number(a), number(b)];
    if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
    return way * (x - y);
  });
  body.append(...ordered.map(([, row]) => row));
  table.querySelectorAll("[aria-sort]").forEach(cell => cell.removeAttribute("aria-sort"));
  heading.setAttribute("aria-sort", down ? "ascending" : "descending");
};

for (const region of document.querySelectorAll(".scroll")) {
  const table = region.querySelector("table");
  if (!table || !table.tHead || !table.tBodies.length) continue;
  const rows = [...table.tBodies[0].rows];
  if (rows.length > 3) {
    for (const [column, heading] of columns(table)) {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...heading.childNodes);
      heading.append(button);
      button.addEventListener("click", () => sort(table, column, heading));
    }
  }
  if (rows.length > 7) {
    const field = document.createElement("input");
    field.type = "search";
    field.placeholder = "Filter rows";
    field.setAttribute("aria-label", "Filter rows");
    const caption = table.caption || table.createCaption();
    (caption.querySelector("span") || caption).append(field);
    field.addEventListener("input", () => {
      const wanted = field.value.toLowerCase();
      for (const row of rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
    });
  }
  // One tab stop: Enter goes in, arrow keys move inside, Escape comes back.
  const inside = () => [...region.querySelectorAll("a, button, input")].filter(e => e.offsetParent);
  for (const one of inside()) one.tabIndex = -1;
  if (inside().length) region.setAttribute("aria-description", "Enter: sort, filter, follow links");
  region.addEventListener("keydown", event => {
    const all = inside(), here = all.indexOf(document.activeElement);
    const field = document.activeElement.tagName === "INPUT";
    const by = { ArrowDown: 1, ArrowUp: -1, ArrowRight: field ? 0 : 1, ArrowLeft: field ? 0 : -1 };
    if (here < 0 && event.key === "Enter" && all.length) all[0].focus();
    else if (here >= 0 && event.key === "Escape") region.focus();
    else if (here >= 0 && by[event.key]) all[Math.max(0, here + by[event.key])]?.focus();
    else return;
    event.preventDefault();
  });
}
