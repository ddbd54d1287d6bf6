// Sorting and filtering of tables that are whole without it, and boxes that scroll by keyboard.
"use strict";

const NUMBER = /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?(?=$|[\s%[])/i;

function sortKey(text) {
  const number = NUMBER.exec(text);
  return number ? Number(number[0]) : text.toLowerCase();
}

function compare(a, b) {
  if (typeof a === typeof b) return typeof a === "number" ? a - b : a.localeCompare(b, "en", { numeric: true });
  return typeof a === "number" ? -1 : 1;
}

function sortBy(table, column, direction) {
  const body = table.tBodies[0];
  const rows = [...body.rows].map((row) => ({ row, key: sortKey(row.cells[column].textContent.trim()) }));
  rows.sort((a, b) => direction * compare(a.key, b.key));
  body.append(...rows.map(({ row }) => row));
}

function makeSortable(table) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "sort";
    button.textContent = head.textContent;
    button.addEventListener("click", () => {
      const direction = head.ariaSort === "ascending" ? -1 : 1;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.ariaSort = direction > 0 ? "ascending" : "descending";
      sortBy(table, column, direction);
    });
    head.replaceChildren(button);
  });
}

function makeFilters(form) {
  const rows = [...document.getElementById(form.dataset.filters).querySelectorAll("tbody tr")];
  const selects = [...form.querySelectorAll("select")];
  const update = () => {
    const text = form.elements.text.value.trim().toLowerCase();
    for (const row of rows) {
      const chosen = selects.every((select) => !select.value || row.dataset[select.name] === select.value);
      row.hidden = !chosen || !row.textContent.toLowerCase().includes(text);
    }
    form.querySelector("output").value = `${rows.filter((row) => !row.hidden).length} of ${rows.length} papers`;
  };
  form.addEventListener("input", update);
  form.addEventListener("submit", (event) => event.preventDefault());
  for (const link of document.querySelectorAll(".counts a[data-verdict]")) {
    link.addEventListener("click", () => {
      form.elements.verdict.value = link.dataset.verdict;
      update();
    });
  }
  form.hidden = false;
  update();
}

function makeScrollable(box) {
  if (box.scrollWidth <= box.clientWidth || box.hasAttribute("tabindex")) return;
  box.tabIndex = 0;
}

document.addEventListener("DOMContentLoaded", () => {
  // The theme gives its two margins no names to tell them apart.
  document.querySelector(".sidebar-drawer").ariaLabel = "Site";
  document.querySelector(".toc-drawer").ariaLabel = "On this page";
  document.querySelectorAll("table.sortable").forEach(makeSortable);
  document.querySelectorAll("form[data-filters]").forEach(makeFilters);
  document.querySelectorAll("article *").forEach((box) => {
    if (getComputedStyle(box).overflowX === "auto" || getComputedStyle(box).overflowX === "scroll") makeScrollable(box);
  });
});
