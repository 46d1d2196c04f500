// Tables sorted by a click on a head, or Enter; a table of groups keeps the rows of each together.
function keyOf(row, column) {
  const cell = row.cells[column], text = cell.dataset.key ?? cell.textContent.trim(), value = parseFloat(text);
  return isNaN(value) ? text : value;
}
function compare(a, b) { return typeof a === typeof b ? (a < b ? -1 : a > b ? 1 : 0) : typeof a === "number" ? -1 : 1; }
for (const table of document.querySelectorAll(".scroll table")) {
  const heads = [...table.tHead?.rows[0].cells ?? []], grouped = table.tBodies.length > 1;
  heads.forEach((head, column) => {
    head.tabIndex = 0; head.setAttribute("aria-sort", "none");
    const sort = () => {
      const down = head.getAttribute("aria-sort") !== "descending";
      heads.forEach(other => other.setAttribute("aria-sort", other === head ? (down ? "descending" : "ascending") : "none"));
      const items = grouped ? [...table.tBodies] : [...table.tBodies[0].rows], key = item => keyOf(grouped ? item.rows[0] : item, column);
      items.sort((a, b) => (down ? -1 : 1) * compare(key(a), key(b))).forEach(item => (grouped ? table : table.tBodies[0]).append(item));
    };
    head.addEventListener("click", sort);
    head.addEventListener("keydown", event => { if (event.key === "Enter") sort(); });
  });
}
