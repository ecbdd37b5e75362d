'use strict';
const tip = document.getElementById('tip');

document.addEventListener('pointermove', event => {
  const target = event.target.closest ? event.target.closest('[data-tip]') : null;
  tip.hidden = !target;
  if (!target) return;
  tip.textContent = target.dataset.tip;
  const box = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(4, Math.min(event.clientX + 14, innerWidth - box.width - 8))}px`;
  tip.style.top = `${event.clientY + 18 + box.height > innerHeight ? event.clientY - box.height - 10 : event.clientY + 18}px`;
});

// Returns the text of a cell, or a number if the text starts with one: '1,234', '99.5%', '12.3 s'.
function cellValue(row, column) {
  const text = row.cells[column].textContent.trim(), number = parseFloat(text.replaceAll(',', ''));
  return Number.isNaN(number) ? text : number;
}

// Compares two cell values; numbers come before text.
function compareValues(first, second) {
  if (typeof first === typeof second) return typeof first === 'number' ? first - second : first.localeCompare(second);
  return typeof first === 'number' ? -1 : 1;
}

for (const table of document.querySelectorAll('table')) {
  table.querySelectorAll('th').forEach((header, column) => header.querySelector('button').addEventListener('click', () => {
    const ascending = header.getAttribute('aria-sort') !== 'ascending', body = table.tBodies[0];
    table.querySelectorAll('th').forEach(other => other.removeAttribute('aria-sort'));
    header.setAttribute('aria-sort', ascending ? 'ascending' : 'descending');
    const compare = (first, second) => compareValues(cellValue(first, column), cellValue(second, column));
    const rows = [...body.rows].sort((first, second) => (ascending ? 1 : -1) * compare(first, second));
    body.append(...rows);
  }));
}
