// A click on a heading sorts the rows by that column; a second one turns them round.
for (const table of document.querySelectorAll("table.sorts")) {
  const heads = [...table.tHead.rows[0].cells];
  const keyOf = (row, column) => {
    const marked = row.cells[column].querySelector("[data-key]");
    return marked ? Number(marked.dataset.key) : null;
  };
  const compare = (column, sign) => (one, other) => {
    if (column === 0) {
      return sign * one.cells[0].textContent.localeCompare(other.cells[0].textContent);
    }
    const [a, b] = [keyOf(one, column), keyOf(other, column)];
    // What was not measured stays below, whichever way the others go.
    return a === null ? (b === null ? 0 : 1) : b === null ? -1 : sign * (a - b);
  };
  heads.forEach((head, column) => {
    const sort = () => {
      const rising = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", rising ? "ascending" : "descending");
      table.tBodies[0].append(...[...table.tBodies[0].rows].sort(compare(column, rising ? 1 : -1)));
    };
    head.tabIndex = 0;
    head.addEventListener("click", sort);
    head.addEventListener("keydown", (event) => event.key === "Enter" && sort());
  });
}
