// The three grids of the mask explorer on one canvas. Python sends the colour of every token and says where the query
// is; a click or an arrow key goes back as a message. State and rules live in Python, only drawing is done here.

const GAP = 28; // between the image and the regional grids, in CSS pixels
const CAPTION = 26; // height of a caption
const WIDTH = { least: 320, most: 720 };
const KEYS = {
  ArrowUp: { move: "up" }, ArrowDown: { move: "down" }, ArrowLeft: { move: "left" }, ArrowRight: { move: "right" },
  PageUp: { grid: -1 }, PageDown: { grid: 1 },
};

// The image on the left, the regional grids in a column on its right: place and cell size of each, in device pixels.
function layout(grids, width, scale) {
  const [image, ...regional] = grids;
  const [gap, caption] = [GAP * scale, CAPTION * scale];
  const slots = Math.max(regional.length, 2);
  const cell = Math.max(1, Math.floor((width * scale - gap) / (1 + 1 / slots) / image.columns)); // whole: crisp
  const height = caption + image.rows * cell;
  const left = image.columns * cell + gap;
  const boxes = [{ ...image, x: 0, y: caption, cell }];
  regional.forEach((grid, index) => {
    const top = Math.round((index * (height + caption / 2)) / slots) + caption;
    const room = Math.min((height - (slots - 1) * caption / 2) / slots - caption, width * scale - left);
    boxes.push({ ...grid, x: left, y: top, cell: room / Math.max(grid.rows, grid.columns) });
  });
  return { boxes, height };
}

function paintTokens(context, box, colours) {
  const { x, y, rows, columns, cell, start } = box;
  const seam = cell > 5 ? Math.max(1, Math.round(cell / 20)) : 0; // a light line between cells
  const edge = (index) => Math.round(index * cell);
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) {
      const at = 3 * (start + row * columns + column);
      const [left, top] = [edge(column), edge(row)];
      context.fillStyle = `rgb(${colours[at]},${colours[at + 1]},${colours[at + 2]})`;
      context.fillRect(x + left, y + top, edge(column + 1) - left - seam, edge(row + 1) - top - seam);
    }
  }
}

// Outlines a square of cells; the white halo keeps it visible on every colour.
function outline(context, box, { row, column, size, query }, ink, line) {
  const square = [box.x + column * box.cell, box.y + row * box.cell, size * box.cell, size * box.cell];
  context.lineJoin = "round";
  for (const [style, width] of [["white", 2.5 * line], [ink, line]]) {
    context.strokeStyle = style;
    context.lineWidth = width;
    context.strokeRect(...square);
  }
  if (query) {
    context.fillStyle = ink;
    context.fillRect(...square);
  }
}

function paintCaptions(context, boxes, captions, ink, scale) {
  context.fillStyle = ink;
  context.font = `600 ${15 * scale}px system-ui, sans-serif`;
  context.textBaseline = "bottom";
  boxes.forEach((box, index) => context.fillText(captions[index], box.x, box.y - 6 * scale));
}

function tokenAt(boxes, x, y) {
  for (const { x: left, y: top, rows, columns, cell, start } of boxes) {
    const [row, column] = [Math.floor((y - top) / cell), Math.floor((x - left) / cell)];
    if (row >= 0 && row < rows && column >= 0 && column < columns) return start + row * columns + column;
  }
  return null;
}

function render({ model, el }) {
  const canvas = document.createElement("canvas");
  canvas.className = "hae-grids";
  canvas.tabIndex = 0;
  canvas.setAttribute("role", "application");
  canvas.style.cssText = "display: block; cursor: crosshair; touch-action: manipulation;";
  el.append(canvas);
  let boxes = [];
  let waiting = 0;

  function draw() {
    waiting = 0;
    const scale = window.devicePixelRatio || 1;
    const width = Math.min(WIDTH.most, Math.max(WIDTH.least, el.clientWidth || WIDTH.most));
    const grids = model.get("grids").map(([start, rows, columns]) => ({ start, rows, columns }));
    const plan = layout(grids, width, scale);
    boxes = plan.boxes;
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(plan.height + 4 * scale);
    canvas.style.width = `${width}px`;
    canvas.style.height = `${canvas.height / scale}px`;
    const context = canvas.getContext("2d");
    const colours = new Uint8Array(model.get("colours").buffer ?? model.get("colours"));
    boxes.forEach((box) => paintTokens(context, box, colours));
    for (const mark of model.get("marks")) {
      outline(context, boxes[mark.grid], mark, model.get("ink"), (mark.query ? 3 : 2) * scale);
    }
    paintCaptions(context, boxes, model.get("captions"), getComputedStyle(el).color, scale);
    canvas.setAttribute("aria-label", model.get("label"));
  }

  // one drawing for all the traits that change together
  const redraw = () => { waiting ||= requestAnimationFrame(draw); };
  model.on("change", redraw);
  const watcher = new ResizeObserver(redraw);
  watcher.observe(el);

  canvas.addEventListener("pointerdown", (event) => {
    const scale = window.devicePixelRatio || 1;
    const token = tokenAt(boxes, event.offsetX * scale, event.offsetY * scale);
    if (token !== null) model.send({ pick: token });
  });
  canvas.addEventListener("keydown", (event) => {
    const message = KEYS[event.key];
    if (!message) return;
    event.preventDefault();
    event.stopPropagation();
    model.send(message);
  });
  redraw();
  return () => { watcher.disconnect(); model.off("change", redraw); };
}

export default { render };
