// A stroke paints every code cell that the pointer passes, or erases them where it began on a painted one.
let painting = null;

function cellAt(event) {
  const grid = element.querySelector('.cells').getBoundingClientRect();
  const column = Math.floor((event.clientX - grid.left) / grid.width * props.value.columns);
  const row = Math.floor((event.clientY - grid.top) / grid.height * props.value.rows);
  const inside = column >= 0 && row >= 0 && column < props.value.columns && row < props.value.rows;
  return inside ? row * props.value.columns + column : null;
}

function mark(event) {
  // where the pointer was in between two events
  for (const place of event.getCoalescedEvents ? [...event.getCoalescedEvents(), event] : [event]) {
    const cell = cellAt(place);
    if (cell === null) continue;
    painting.cells[painting.erases ? 'delete' : 'add'](cell);
    element.querySelectorAll('.cells i')[cell].classList.toggle('painted', !painting.erases);
  }
}

element.addEventListener('pointerdown', (event) => {
  const cell = event.target.closest('.cells') ? cellAt(event) : null;
  if (cell === null) return;
  event.preventDefault();
  const cells = new Set(props.value.cells);
  painting = { cells, erases: cells.has(cell) };
  mark(event);
});
element.addEventListener('pointermove', (event) => { if (painting) mark(event); });
window.addEventListener('pointerup', () => {
  if (!painting) return;
  props.value = { ...props.value, cells: [...painting.cells].sort((a, b) => a - b) };
  painting = null;
  trigger('input');
});
