// The mask explorer on a page without a kernel. The masks come with the page, a bit a (query, key) pair; what Python's
// `MaskExplorerModel` computes is computed here from them, and drawn by the same `render` of grid.js.

const STEPS = { up: [-1, 0], down: [1, 0], left: [0, -1], right: [0, 1] };

// Text -> bytes: base64 of zlib's format.
async function unpack(text) {
  const packed = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

const rgb = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
const sum = (values) => values.reduce((total, value) => total + value, 0);
const percent = (values) => (100 * sum(values)) / values.length;

// Who sees whom on one map: `grids` are [first token, rows, columns] of each scale, `patches` their patch sizes.
class Mask {
  constructor({ grids, patches, n }, { groups }, bits) {
    Object.assign(this, { grids, patches, n, groups, bits });
    this.pixels = grids[0][1] * grids[0][2];
  }

  allowed(group, query, key) {
    const at = (group * this.n + query) * this.n + key;
    return (this.bits[at >> 3] >> (7 - (at & 7))) & 1;
  }

  // The keys that a query sees in any head group: n times 0 or 1.
  seen(query) {
    const groups = [...Array(this.groups).keys()];
    return Uint8Array.from({ length: this.n }, (_, key) => (groups.some((g) => this.allowed(g, query, key)) ? 1 : 0));
  }

  density() {
    let kept = 0;
    for (let group = 0; group < this.groups; group++) {
      for (let query = 0; query < this.pixels; query++) {
        for (let key = 0; key < this.n; key++) kept += this.allowed(group, query, key);
      }
    }
    return (100 * kept) / (this.groups * this.pixels * this.n);
  }

  place(token) {
    const grid = this.grids.findLastIndex(([start]) => token >= start);
    const [start, , columns] = this.grids[grid];
    return { grid, row: Math.floor((token - start) / columns), column: (token - start) % columns };
  }

  token({ grid, row, column }) {
    const [start, rows, columns] = this.grids[grid];
    const inside = (value, count) => Math.min(Math.max(value, 0), count - 1);
    return start + inside(row, rows) * columns + inside(column, columns);
  }

  // The place on another grid that covers the centre of this one.
  covering({ grid, row, column }, other) {
    const [own, size] = [this.patches[grid], this.patches[other]];
    const part = (index) => Math.floor((index * own + Math.floor(own / 2)) / size);
    return { grid: other, row: part(row), column: part(column) };
  }

  // The pixels that some tokens hold, a regional token those of its patch.
  carried(tokens) {
    const [, rows, columns] = this.grids[0];
    const pixels = Uint8Array.from(tokens.subarray(0, this.pixels));
    for (let grid = 1; grid < this.grids.length; grid++) {
      const size = this.patches[grid];
      const [start, , across] = this.grids[grid];
      for (let at = 0; at < rows * columns; at++) {
        const [row, column] = [Math.floor(at / columns / size), Math.floor((at % columns) / size)];
        pixels[at] |= tokens[start + row * across + column];
      }
    }
    return pixels;
  }

  // Pixels that can change the query's output after one block, and after two.
  reached(query) {
    const own = this.seen(query);
    own[query] = 1;
    const once = this.carried(own);
    const all = new Uint8Array(this.n);
    once.forEach((is, pixel) => { if (is) this.seen(pixel).forEach((sees, key) => { all[key] |= sees; }); });
    return [once, this.carried(all).map((is, at) => is | once[at])];
  }

  around(seen, { row, column }, half) {
    const [, rows, columns] = this.grids[0];
    const near = [];
    for (let r = Math.max(0, row - half); r <= Math.min(rows - 1, row + half); r++) {
      for (let c = Math.max(0, column - half); c <= Math.min(columns - 1, column + half); c++) {
        near.push(seen[r * columns + c]);
      }
    }
    return percent(near);
  }
}

// What `render` asks for, of one state.
function picture(mask, query, words) {
  const place = mask.place(query);
  const seen = mask.seen(query);
  const [once, twice] = mask.reached(query);
  const paint = Object.fromEntries(Object.entries(words.colours).map(([name, hex]) => [name, rgb(hex)]));
  const colours = new Uint8Array(3 * mask.n);
  seen.forEach((is, key) => colours.set(is ? paint.seen : once[key] ? paint.reached : paint.hidden, 3 * key));
  const counts = mask.grids.map(([start, rows, columns]) => sum(seen.subarray(start, start + rows * columns)));
  const name = (grid) => (grid === 0 ? "pixel" : `${mask.patches[grid]} × ${mask.patches[grid]} token`);
  const count = (value) => value.toLocaleString("en");
  const own = mask.grids.map((_, grid) => mask.covering(place, grid));
  const regional = own.slice(1).map((at) => [`own ${name(at.grid)}`, seen[mask.token(at)] ? "seen" : "hidden"]);
  const captions = mask.grids.map(([, rows, columns], grid) => {
    return `${grid === 0 ? "pixels" : name(grid).replace(" token", "")}: ${count(counts[grid])} of ${count(rows * columns)}`;
  });
  const numbers = [
    ["query", `${name(place.grid)} (${place.row}, ${place.column})`],
    ["sees", `${count(sum(seen))} of ${count(mask.n)}`],
    ...regional,
    [`${words.around} × ${words.around} pixels around`,
      `${mask.around(seen, own[0], (words.around - 1) / 2).toFixed(0)} % seen`],
    ["reach, 1 block", `${percent(once).toFixed(1)} %`],
    ["reach, 2 blocks", `${percent(twice).toFixed(1)} %`],
  ];
  return { grids: mask.grids, colours, captions, marks: marks(mask, place, own), ink: words.colours.query, numbers };
}

// Rectangles, in cells of a grid, that show the query and the patches which hold it; the query comes last.
function marks(mask, place, own) {
  const found = [];
  own.forEach((at, grid) => {
    const size = mask.patches[grid];
    if (grid > 0 && place.grid === 0) {
      found.push({ grid: 0, row: size * at.row, column: size * at.column, size, query: false });
    }
    const large = grid === 0 && place.grid > 0 ? mask.patches[place.grid] : 1;
    const from = large > 1 ? place : at;
    found.push({ grid, row: large * from.row, column: large * from.column, size: large, query: grid === place.grid });
  });
  return found.sort((one, other) => one.query - other.query);
}

// The page: two lists to choose from, the canvas, the numbers.
async function start(root, data) {
  const [rules, maps] = ["rule", "map"].map((name) => root.querySelector(`select[name=${name}]`));
  const table = root.querySelector("table");
  const masks = {};
  let [mask, density, query, now, listener] = [null, 0, null, null, () => {}];

  async function choose() {
    const name = `${rules.value} ${maps.value}`;
    const place = mask && mask.place(query);
    const map = data.maps[maps.value];
    if (!masks[name]) {
      const made = new Mask(map, map.rules[rules.value], await unpack(map.rules[rules.value].bits));
      masks[name] = [made, made.density()];
    }
    [mask, density] = masks[name];
    show(mask.token(place || data.first));
  }

  function show(token) {
    query = token;
    now = picture(mask, query, data);
    now.label = `${rules.value}: ${now.numbers[0][1]} and the keys it sees`;
    now.numbers.push(["density of the mask", `${density.toFixed(1)} %`]);
    root.querySelector(".hae-meaning").textContent = data.meanings[rules.value];
    table.replaceChildren(...now.numbers.map((texts) => {
      const row = document.createElement("tr");
      row.append(...texts.map((text) => Object.assign(document.createElement("td"), { textContent: text })));
      return row;
    }));
    listener();
  }

  const model = {
    get: (name) => now[name],
    on: (_, callback) => { listener = callback; },
    off: () => {},
    send({ pick, move, grid }) {
      const place = mask.place(query);
      if (pick !== undefined) show(pick);
      if (move) show(mask.token({ ...place, row: place.row + STEPS[move][0], column: place.column + STEPS[move][1] }));
      const scales = mask.grids.length;
      if (grid) show(mask.token(mask.covering(place, (place.grid + grid + scales) % scales)));
    },
  };
  await choose();
  rules.addEventListener("change", choose);
  maps.addEventListener("change", choose);
  render({ model, el: root.querySelector(".hae-picker") });
  root.explorer = model; // for whoever wants to look in from a console
}
