"use strict";
// Sort the table of a cohort by the column whose heading is clicked: numbers by size, words by the alphabet, no value last.

const body = document.querySelector("tbody");
const words = new Intl.Collator(undefined, { numeric: true });

function compare(one, other) {
  if (one === "" || other === "") return one === other ? 0 : null;
  return isNaN(one) || isNaN(other) ? words.compare(one, other) : one - other;
}

document.querySelectorAll("thead th").forEach((heading, column) => {
  heading.querySelector("button").addEventListener("click", () => {
    const down = heading.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    document.querySelectorAll("thead th").forEach((each) => each.removeAttribute("aria-sort"));
    heading.setAttribute("aria-sort", down === 1 ? "ascending" : "descending");
    const key = (row) => row.cells[column].dataset.sort;
    const rows = [...body.rows].sort((a, b) => {
      const order = compare(key(a), key(b));
      return order === null ? (key(a) === "") - (key(b) === "") : down * order;
    });
    body.append(...rows);
  });
});
