"use strict";
// The map: every passage a point, coloured by kind; the last question a ring, its passages outlined.

let points = [], question = null, placed = [];

async function loadMap() {
  const got = await (await api("api/map", { question: asked })).json();
  points = got.points;
  question = got.question;
  const legend = Object.entries(KINDS).map(([kind, name]) =>
    node("span", { className: kind, textContent: `${name} (${points.filter((each) => each[3] === kind).length})` }));
  if (question) legend.push(node("span", { className: "asked", textContent: `Your question: ${asked}` }));
  $("legend").replaceChildren(...legend);
  const part = points.length < got.passages ? `${points.length} of ${got.passages} passages, chosen at random. ` : "";
  $("map-note").textContent = points.length ? `${part}The two directions in which passages differ most: `
    + `${Math.round(100 * got.share)} % of all differences, so near points are often, and not always, alike. Click one to read it.`
    : "Nothing is indexed yet.";
  draw();
}

function draw(over = -1) {
  const canvas = $("canvas"), ratio = devicePixelRatio || 1;
  const width = canvas.clientWidth, height = canvas.clientHeight, edge = 28;
  if (!width) return;
  canvas.width = width * ratio;
  canvas.height = height * ratio;
  const pen = canvas.getContext("2d"), style = getComputedStyle(document.body);
  pen.scale(ratio, ratio);
  const xs = points.map((each) => each[1]), ys = points.map((each) => each[2]);
  if (question) { xs.push(question[0]); ys.push(question[1]); }
  const range = (all) => [Math.min(...all), Math.max(...all) - Math.min(...all) || 1];
  const [left, wide] = range(xs), [low, high] = range(ys);
  const at = (x, y) => [edge + (x - left) / wide * (width - 2 * edge), height - edge - (y - low) / high * (height - 2 * edge)];
  placed = points.map((each) => at(each[1], each[2]));
  const size = points.length > 1000 ? 3 : 5, hits = new Set(found.map((hit) => hit.number));
  const ink = style.getPropertyValue("color");
  // A computed colour: light-dark() is for style sheets.
  const colours = {};
  for (const kind of Object.keys(KINDS)) {
    const probe = document.body.appendChild(node("i", { className: `kind ${kind}` }));
    colours[kind] = getComputedStyle(probe).color;
    probe.remove();
  }
  points.forEach(([number, , , kind], row) => {
    const [x, y] = placed[row];
    pen.beginPath();
    pen.arc(x, y, row === over ? size + 3 : size, 0, 7);
    pen.globalAlpha = row === over || hits.has(number) ? 1 : 0.72;
    pen.fillStyle = colours[kind];
    pen.fill();
    if (row === over || hits.has(number)) {
      pen.lineWidth = 2;
      pen.strokeStyle = ink;
      pen.stroke();
    }
  });
  if (question) {
    const [x, y] = at(...question);
    pen.globalAlpha = 1;
    pen.lineWidth = 3;
    pen.strokeStyle = ink;
    pen.beginPath();
    pen.arc(x, y, 10, 0, 7);
    pen.moveTo(x - 4, y);
    pen.lineTo(x + 4, y);
    pen.moveTo(x, y - 4);
    pen.lineTo(x, y + 4);
    pen.stroke();
  }
}

function nearest(event) {
  let best = -1, least = 14 ** 2;
  placed.forEach(([x, y], row) => {
    const far = (x - event.offsetX) ** 2 + (y - event.offsetY) ** 2;
    if (far < least) [best, least] = [row, far];
  });
  return best;
}

$("canvas").onpointermove = (event) => {
  const row = nearest(event), tip = $("tip");
  draw(row);
  $("canvas").style.cursor = row < 0 ? "default" : "pointer";
  tip.hidden = row < 0;
  if (row < 0) return;
  tip.textContent = points[row][4];
  const [x, y] = placed[row];
  tip.style.left = `${Math.min(x + 12, Math.max($("canvas").clientWidth - tip.offsetWidth - 8, 8))}px`;
  tip.style.top = `${y > 60 ? y - tip.offsetHeight - 10 : y + 14}px`;
};
$("canvas").onpointerleave = () => { $("tip").hidden = true; draw(); };
$("canvas").onclick = async (event) => {
  const row = nearest(event);
  if (row < 0) return;
  const hit = found.find((each) => each.number === points[row][0]);
  openPassage(hit ?? await (await api(`api/passage/${points[row][0]}`)).json(), hit?.sentences ?? []);
};
new ResizeObserver(() => draw()).observe($("canvas"));
matchMedia("(prefers-color-scheme: dark)").onchange = () => draw();
