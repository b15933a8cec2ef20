"use strict";
// The map: every passage a point, coloured by kind; the last question a ring, its passages outlined.

async function loadMap() {
  const { points, question, share, passages } = await (await api("map", { question: asked })).json();
  const spread = (axis) => {
    const all = [...points.map((each) => each[axis + 1]), ...(question ? [question[axis]] : [])];
    const low = Math.min(...all), wide = Math.max(...all) - low || 1;
    return (value) => `${4 + 92 * (value - low) / wide}%`;
  };
  const left = spread(0), bottom = spread(1);
  const placed = (made, x, y) => {
    Object.assign(made.style, { left: left(x), bottom: bottom(y) });
    return made;
  };
  const hits = new Map(found.map((hit) => [hit.number, hit]));
  $("chart").replaceChildren(...points.map(([number, x, y, kind, title]) => placed(node("button", {
    className: `point kind ${kind} ${hits.has(number) ? "hit" : ""}`, title, tabIndex: -1,
    onpointerenter: () => { $("tip").textContent = title; },
    onclick: async () => openPassage(hits.get(number) ?? await (await api(`passage/${number}`)).json()),
  }), x, y)));
  if (question) $("chart").append(placed(node("span", { className: "point asked", title: asked }), ...question));
  $("legend").replaceChildren(...Object.entries(KINDS).map(([kind, name]) =>
    node("span", { className: `kind ${kind}`, textContent: `${name} (${points.filter((each) => each[3] === kind).length}) ` })));
  if (question) $("legend").append(`◎ Your question: ${asked}`);
  const part = points.length < passages ? `${points.length} of ${passages} passages, chosen at random. ` : "";
  $("map-note").textContent = points.length ? `${part}The two directions in which passages differ most: `
    + `${Math.round(100 * share)} % of all differences, so near points are often, and not always, alike.`
    : "Nothing is indexed yet.";
}
