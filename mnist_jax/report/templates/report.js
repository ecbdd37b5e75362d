'use strict';
const tip = document.getElementById('tip');

document.addEventListener('pointermove', event => {
  const part = event.target.closest ? event.target.closest('[data-tip]') : null;
  tip.hidden = !part;
  if (!part) return;
  tip.textContent = part.dataset.tip;
  const box = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(4, Math.min(event.clientX + 14, innerWidth - box.width - 8))}px`;
  tip.style.top = `${event.clientY + 18 + box.height > innerHeight ? event.clientY - box.height - 10 : event.clientY + 18}px`;
});

// As a number where the text begins with one: '1,234', '99.5 %', '12.3 s'.
function value(row, column) {
  const text = row.cells[column].textContent.trim(), number = parseFloat(text.replaceAll(',', ''));
  return Number.isNaN(number) ? text : number;
}

function order(first, second) {
  if (typeof first === typeof second) return typeof first === 'number' ? first - second : first.localeCompare(second);
  return typeof first === 'number' ? -1 : 1;
}

for (const table of document.querySelectorAll('table')) {
  table.querySelectorAll('th').forEach((head, column) => head.querySelector('button').addEventListener('click', () => {
    const rising = head.getAttribute('aria-sort') !== 'ascending', body = table.tBodies[0];
    table.querySelectorAll('th').forEach(other => other.removeAttribute('aria-sort'));
    head.setAttribute('aria-sort', rising ? 'ascending' : 'descending');
    const rows = [...body.rows].sort((one, other) => (rising ? 1 : -1) * order(value(one, column), value(other, column)));
    body.append(...rows);
  }));
}
